"""``discernible demo``: the whole way on photographs that an installed package ships, ending in a table and a page.

Nothing here is staged: it calls what ``discernible compress``, ``verify`` and ``decompress`` call, reads the shards
with the loader, and takes bytes from the files and PSNR from the restored PNGs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError, JobError, VerificationError
from ..console.text import format_bytes, format_ratio
from .sample_photos import SamplePhoto, sample_photos

if TYPE_CHECKING:
    from rich.table import Table

    from ..conversion.progress import ProgressMode
    from .page import Comparison, Picture
    from .rivals import RivalSearch

__all__ = ["DemoResult", "DemoRow", "demo_table", "run_demo"]

#: Small shards, so that even a handful of photographs shows more than one.
_SHARD_SIZE = 4
_JPEG, _AVIF = "JPEG", "AVIF"


@dataclass(frozen=True, kw_only=True)
class DemoRow:
    """One photograph, or all of them together."""

    name: str
    about: str
    format: str
    width: int
    height: int
    bytes_before: int
    bytes_after: int
    pixels: int
    psnr: float
    """dB between the source's pixels and those of the restored PNG; of the total the mean over the photographs."""
    rivals: Mapping[str, float | None]
    """Bytes that each other codec needs for the same PSNR; None where it cannot reach it."""

    @property
    def bpp(self) -> float:
        """Bits a pixel of the stream."""
        return 8 * self.bytes_after / self.pixels

    def times(self, rival: str) -> float | None:
        """How many times our bytes a rival needs for the same PSNR."""
        needed = self.rivals.get(rival)
        return None if needed is None else needed / self.bytes_after

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "name": self.name,
            "about": self.about,
            "format": self.format,
            "width": self.width,
            "height": self.height,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "bpp": self.bpp,
            "psnr": self.psnr,
            "bytes_at_equal_psnr": dict(self.rivals),
        }


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo made: the page, the folders, and the numbers of the table."""

    page: Path
    shards: Path
    restored: Path
    quality: int
    weights: str
    fingerprint: str
    rows: tuple[DemoRow, ...]
    total: DemoRow
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "page": str(self.page),
            "shards": str(self.shards),
            "restored": str(self.restored),
            "quality": self.quality,
            "weights": {"name": self.weights, "fingerprint": self.fingerprint},
            "photographs": [row.to_json() for row in self.rows],
            "total": self.total.to_json(),
            "notes": list(self.notes),
        }


def run_demo(
    out: str | Path,
    *,
    quality: int = 50,
    weights: str = "default",
    device: str = "auto",
    limit: int | None = None,
    progress: Callable[[str], None] | None = None,
    display: ProgressMode = "none",
) -> DemoResult:
    """Convert, verify, restore and load the bundled photographs, compare with JPEG and AVIF, and write
    ``out/index.html``.

    Each combination of quality and weights has its own folder under ``out``, so a second run finds the first one's
    shards and only makes what is missing. ``limit`` takes only the first so many photographs. ``progress`` is told each
    step in a sentence; ``display`` is how the conversion shows its own progress.

    Raises SourceError when no installed package ships photographs, VerificationError when the shards do not add up, and
    what the conversion raises.
    """
    from ...codec import Codec
    from ...pipeline.convert.decompress import DecompressConfig, decompress
    from ..conversion.compress import compress
    from ..conversion.spec import JobSpec
    from ..conversion.verify import verify_destination

    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, not {limit}")
    tell = progress or (lambda _: None)
    chosen = sample_photos(limit)
    codec = Codec.load(weights, device=device)
    base = Path(out)
    run = base / f"q{quality}-{codec.fingerprint}-{len(chosen)}"
    photos, shards, restored = run / "photos", run / "shards", run / "restored"
    photos.mkdir(parents=True, exist_ok=True)
    for photo in chosen:
        shutil.copyfile(photo.path, photos / photo.path.name)
    origins = ", ".join(dict.fromkeys(photo.origin for photo in chosen))
    tell(f"{len(chosen)} photographs from {origins} are in {photos}")

    tell(f"discernible compress {photos} {shards} --quality {quality} --shard-size {_SHARD_SIZE}")
    spec = JobSpec.of(
        source=str(photos),
        destination=str(shards),
        quality=quality,
        weights=weights,
        shard_size=_SHARD_SIZE,
        device=device,
    )
    done = compress(spec, progress=display)
    if done.status != "done":
        reason = f" ({done.failures[0].error})" if done.failures else ""
        raise JobError(f"the conversion ended as {done.status!r}{reason}; the same command goes on with what is left")

    tell(f"discernible verify {shards} --deep")
    report = verify_destination(str(shards), deep=True, device=device)
    if not report.ok:
        raise VerificationError(f"the shards do not add up: {report.problems[0].message}")

    tell(f"discernible decompress {shards} {restored}")
    unpacked = decompress(str(shards), str(restored), DecompressConfig(device=device))
    if unpacked.failures:
        raise JobError(f"{unpacked.failures[0].key} could not be restored: {unpacked.failures[0].message}")

    loaded = _load_once(shards, weights, device)
    tell(f"CompressedLoader({str(shards)!r}) gave {loaded} images on {codec.device}")

    tell("searching the JPEG and AVIF qualities that give the same PSNR")
    rows, comparisons = _measure(chosen, shards, restored, quality)
    total = _total(rows)
    notes = _notes(origins)
    result = DemoResult(
        page=base / "index.html",
        shards=shards,
        restored=restored,
        quality=quality,
        weights=codec.name,
        fingerprint=codec.fingerprint,
        rows=tuple(rows),
        total=total,
        notes=notes,
    )
    result.page.write_bytes(_page(result, comparisons))
    return result


def demo_table(result: DemoResult) -> Table:
    """The result for a terminal."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_footer=True, caption="\n".join(result.notes), caption_justify="left")
    for number, (head, foot) in enumerate(zip(_HEAD, _cells(result.total), strict=True)):
        table.add_column(head, foot, justify="left" if number == 0 else "right", no_wrap=True)
    for row in result.rows:
        table.add_row(*_cells(row))
    return table


_HEAD = ("Photograph", "Before", "After", "bpp", "PSNR", "Smaller", "JPEG ÷ ours", "AVIF ÷ ours")


def _cells(row: DemoRow) -> tuple[str, ...]:
    def times(rival: str) -> str:
        value = row.times(rival)
        return "–" if value is None else f"{value:.2f}×"

    return (
        row.name,
        f"{row.format} {format_bytes(row.bytes_before)}".strip(),
        format_bytes(row.bytes_after),
        f"{row.bpp:.3f}",
        f"{row.psnr:.2f} dB",
        format_ratio(row.bytes_before, row.bytes_after),
        times(_JPEG),
        times(_AVIF),
    )


def _notes(origins: str) -> tuple[str, ...]:
    return (
        f"Before: the files as {origins} ship them. PNG is lossless; the JPEG files had been compressed already.",
        (
            "JPEG, AVIF: bytes that Pillow needs for the same PSNR, divided by ours, interpolated between two "
            "real files; each with the cheaper of 4:2:0 and 4:4:4, JPEG progressive with optimised tables, AVIF at the "
            "default speed."
        ),
        "A handful of pictures shows how it works; benchmarks/ holds the measurements.",
    )


def _load_once(shards: Path, weights: str, device: str) -> int:
    from ...pipeline.loader.loader import CompressedLoader

    with CompressedLoader(shards, labels=(), weights=weights, device=device, batch_size=8) as loader:
        return sum(len(images) for (images,) in loader)


def _measure(
    photos: Sequence[SamplePhoto], shards: Path, restored: Path, quality: int
) -> tuple[list[DemoRow], list[Comparison]]:
    from ...pipeline.shards.receipts import list_receipts
    from ...pipeline.shards.samples import escape_key
    from ...pipeline.shards.statistics import iter_rows

    streams = {row.key: row.bytes_out or 0 for _, row in iter_rows(str(shards), list_receipts(str(shards)).values())}

    def one(photo: SamplePhoto) -> tuple[DemoRow, Comparison]:
        return _measure_photo(photo, streams[escape_key(photo.name)], restored / f"{photo.name}.png", quality)

    # Pillow's encoders release the interpreter lock, so the photographs are searched side by side.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        measured = list(pool.map(one, photos))
    return [row for row, _ in measured], [comparison for _, comparison in measured]


def _measure_photo(photo: SamplePhoto, size: int, restored: Path, quality: int) -> tuple[DemoRow, Comparison]:
    import numpy as np
    from PIL import Image

    from ...pipeline.images.pixels import decode_pixels
    from .page import Comparison
    from .rivals import RivalSearch, available_rivals, psnr_db
    from .view import lossless_picture

    source = photo.path.read_bytes()
    decoded = decode_pixels(source)
    original = np.ascontiguousarray(decoded.pixels.transpose(1, 2, 0))
    with Image.open(restored) as image:
        reconstruction = np.asarray(image.convert("RGB"))
    height, width = original.shape[:2]
    psnr = psnr_db(original, reconstruction)
    search = RivalSearch(original)
    needed = {rival.name: search.at_psnr(rival, psnr) for rival in available_rivals()}
    row = DemoRow(
        name=photo.name,
        about=photo.about,
        format=decoded.format,
        width=width,
        height=height,
        bytes_before=len(source),
        bytes_after=size,
        pixels=height * width,
        psnr=psnr,
        rivals={name: None if found is None else found.bytes for name, found in needed.items()},
    )
    facts = (format_bytes(size), f"{row.bpp:.3f} bpp", f"{psnr:.2f} dB PSNR")
    before = (f"{row.format}, {format_bytes(len(source))}", f"{8 * len(source) / row.pixels:.2f} bpp")
    pictures = (
        lossless_picture("Original", original, before),
        lossless_picture(f"discernible, quality {quality}", reconstruction, facts),
        *_at_equal_bytes(search, size, row.pixels),
    )
    note = f"{photo.about} · {photo.origin}"
    return row, Comparison(name=photo.name, note=note, width=width, height=height, pictures=pictures)


def _at_equal_bytes(search: RivalSearch, size: int, pixels: int) -> list[Picture]:
    """What the other codecs make of the same number of bytes, as their own files."""
    from .page import Picture
    from .rivals import available_rivals

    pictures = []
    for rival in available_rivals():
        best = search.at_bytes(rival, size)
        length = len(best.data)
        label = f"{rival.name}, same bytes" if length <= size else f"{rival.name}, its smallest"
        facts = (format_bytes(length), f"{8 * length / pixels:.3f} bpp", f"{best.psnr:.2f} dB PSNR")
        pictures.append(Picture(label=label, mime=rival.mime, data=best.data, facts=facts))
    return pictures


def _total(rows: Sequence[DemoRow]) -> DemoRow:
    rivals: dict[str, float | None] = {}
    for name in rows[0].rivals:
        sizes = [row.rivals[name] for row in rows]
        reached = [size for size in sizes if size is not None]
        rivals[name] = sum(reached) if len(reached) == len(sizes) else None
    return DemoRow(
        name="All",
        about=f"{len(rows)} photographs",
        format="",
        width=0,
        height=0,
        bytes_before=sum(row.bytes_before for row in rows),
        bytes_after=sum(row.bytes_after for row in rows),
        pixels=sum(row.pixels for row in rows),
        psnr=sum(row.psnr for row in rows) / len(rows),
        rivals=rivals,
    )


def _page(result: DemoResult, comparisons: Sequence[Comparison]) -> bytes:
    from .page import PageTable, render_page

    total = result.total
    figures = [
        ("Photographs", str(len(result.rows))),
        ("Before", format_bytes(total.bytes_before)),
        ("After", format_bytes(total.bytes_after)),
        ("Smaller", format_ratio(total.bytes_before, total.bytes_after)),
        ("Mean PSNR", f"{total.psnr:.2f} dB"),
    ]
    for rival in (_JPEG, _AVIF):
        times = total.times(rival)
        if times is not None:
            figures.append((f"{rival} bytes ÷ ours", f"{times:.2f}×"))
    return render_page(
        title="discernible demo",
        lead=(
            f"{len(result.rows)} photographs, converted, verified and restored on this machine at quality "
            f"{result.quality} with the weights “{result.weights}” ({result.fingerprint})."
        ),
        figures=figures,
        table=PageTable(
            caption="Bytes and fidelity",
            head=_HEAD,
            rows=tuple(_cells(row) for row in result.rows),
            foot=_cells(total),
            notes=result.notes,
            highlight=frozenset({6, 7}),
        ),
        comparisons=comparisons,
        footer=(
            "Originals and reconstructions are embedded losslessly, so 1:1 shows their exact pixels; the JPEG and AVIF "
            "pictures are their own files, decoded by this browser."
        ),
    )
