"""``discernible view``: originals and reconstructions side by side, as one HTML page."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import (
    CodecError,
    ConfigError,
    ImageMissingError,
    PipelineError,
    ScatteredSampleError,
    SourceError,
    StorageError,
)
from ..console.text import format_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ...pipeline.reading.worker_codec import Codecs
    from ...pipeline.shards.samples import Sample
    from ...pipeline.sources.shard import SourceShard
    from ...pipeline.storage.s3_client import S3Options
    from .page import Comparison, Picture

__all__ = ["ViewResult", "lossless_picture", "write_view"]

#: Longer sides are shown as the central part at native resolution: a page of whole 50-megapixel photos opens nowhere.
MAX_SIDE = 1280


@dataclass(frozen=True, kw_only=True)
class ViewResult:
    """The page that was written, and what is on it."""

    page: Path
    page_bytes: int
    shown: int
    found: int | None
    """Streams in all inputs; None when that would need reading shards that have no receipt."""
    originals: int
    """How many of the shown have their original beside them."""

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "page": str(self.page),
            "page_bytes": self.page_bytes,
            "shown": self.shown,
            "found": self.found,
            "originals": self.originals,
        }


@dataclass(frozen=True, kw_only=True)
class _Entry:
    key: str
    stream: bytes
    place: str
    members: frozenset[str]
    """Extensions that the converted sample holds, so that the original's image is the one that is not among them."""


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Streams of one shard, or one loose file, with the folder that they are in and where their originals may be."""

    name: str
    folder: str
    entries: tuple[_Entry, ...]
    source: str | None


def write_view(
    inputs: Sequence[str | Path],
    out_html: str | Path,
    *,
    source: str | None = None,
    weights: str | None = None,
    limit: int = 24,
    device: str = "auto",
    title: str | None = None,
    s3: S3Options | None = None,
) -> ViewResult:
    """Write a self-contained page that compares reconstructions with their originals.

    ``inputs`` are ``.dci`` files, converted tars, brace patterns of them, or folders of those: local ones, on S3
    (``s3`` says how that is reached) or behind http(s) URLs. Originals come from ``source`` (a folder of images, tars,
    or one image file) or, when that is None, from where the receipt beside a shard says that it was made, and for a
    loose ``.dci`` from an image file of the same name beside it; without an original the reconstruction stands alone.
    At most ``limit`` images are shown, spread evenly over the shards; no more of these is read than that takes.
    ``weights`` None takes those that made each stream.

    Raises ConfigError when ``limit`` is below 1, SourceError when an input or the given source is missing,
    StreamError and WeightsError when a stream cannot be decoded, StorageError when an input cannot be read or the page
    cannot be written.
    """
    from ...codec.device import resolve_device
    from ...pipeline.reading.shard_list import list_shards
    from ...pipeline.reading.worker_codec import CodecCache, Codecs
    from ...pipeline.storage.locations import base_name, is_local, shown
    from .page import render_page

    if limit < 1:
        raise ConfigError(f"limit must be at least 1, not {limit}")
    if not inputs:
        raise SourceError("nothing to view: name .dci files, converted tars or a folder of them")
    places = [str(item) for item in inputs]
    files = [
        place
        for place in places
        if base_name(place).lower().endswith(".dci") and not (is_local(place) and Path(place).is_dir())
    ]
    others = [place for place in places if place not in files]
    shards = list_shards(others, s3) if others else ()

    groups = [_loose(file, s3) for file in files[:limit]]
    rest = limit - len(groups)
    share = max(1, -(-rest // max(1, len(shards))))
    for shard in shards:
        if rest <= 0:
            break
        group = _from_shard(shard.location, min(share, rest), s3)
        groups.append(group)
        rest -= len(group.entries)

    codecs = Codecs(weights=weights, device=str(resolve_device(device)), s3=s3, cache=CodecCache())
    used: dict[str, None] = {}
    comparisons: list[Comparison] = []
    originals = 0
    for group in groups:
        found = _originals(group, source, s3)
        for entry in group.entries:
            pixels, name = _decode(codecs, entry, group.folder)
            used[name] = None
            comparisons.append(_compare(entry, pixels, found.get(entry.key)))
            originals += len(comparisons[-1].pictures) - 1
    if not comparisons:
        raise SourceError(f"no .dci streams in {', '.join(map(shown, places))}: was it written by discernible?")

    counts = [shard.samples for shard in shards]
    known = [count for count in counts if count is not None]
    total = len(files) + sum(known) if len(known) == len(counts) else None
    page = Path(out_html)
    document = render_page(
        title=title or "Originals and reconstructions",
        lead=_lead(len(comparisons), total, originals, list(used)),
        comparisons=comparisons,
        footer="Both sides are shown losslessly, so 1:1 shows exactly the pixels a training run gets.",
    )
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_bytes(document)
    except OSError as exc:
        raise StorageError(f"the page {page} cannot be written: {exc.strerror or exc}") from exc
    return ViewResult(page=page, page_bytes=len(document), shown=len(comparisons), found=total, originals=originals)


def lossless_picture(label: str, pixels: NDArray[np.uint8], facts: Sequence[str]) -> Picture:
    """A picture for the page from uint8 (H, W, 3): as lossless WebP, a quarter smaller than PNG, with exactly these
    pixels."""
    from PIL import Image

    from .page import Picture

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, method=2, exact=True)
    return Picture(label=label, mime="image/webp", data=buffer.getvalue(), facts=tuple(facts))


def _decode(codecs: Codecs, entry: _Entry, folder: str) -> tuple[NDArray[np.uint8], str]:
    """The pixels of a stream, and the name of the weights that made it."""
    try:
        codec = codecs.of(entry.stream, folder)
        image = codec.decode([entry.stream])[0]
    except CodecError as exc:
        exc.shard, exc.key = exc.shard or entry.place, exc.key or entry.key
        raise
    pixels: NDArray[np.uint8] = image.cpu().permute(1, 2, 0).contiguous().numpy()
    return pixels, codec.name


def _lead(shown: int, total: int | None, originals: int, weights: Sequence[str]) -> str:
    of = f" of {total:,}" if total is not None and total != shown else ""
    names = ", ".join(f"“{name}”" for name in weights)
    text = f"{shown:,}{of} image{'s' if (total or shown) != 1 else ''}, decoded with the weights {names}."
    if originals < shown:
        text += f" {shown - originals} without an original: name its folder or tars with --source to compare."
    return text


def _loose(place: str, s3: S3Options | None) -> _Group:
    from ...pipeline.shards.samples import IMAGE_EXTENSIONS, escape_key
    from ...pipeline.storage.locations import base_name, beside, file_exists, folder_of, read_file

    name = base_name(place)
    stem = name.rpartition(".")[0]
    try:
        stream = read_file(place, s3)
    except StorageError as exc:
        raise SourceError(exc.message) from exc
    images = (beside(place, f"{stem}.{extension}") for extension in IMAGE_EXTENSIONS)
    source = next((image for image in images if file_exists(image, s3)), None)
    entry = _Entry(key=escape_key(stem), stream=stream, place=name, members=frozenset())
    return _Group(name=stem, folder=folder_of(place), entries=(entry,), source=source)


def _from_shard(place: str, limit: int, s3: S3Options | None) -> _Group:
    from ...pipeline.shards.groups import iter_tar_samples
    from ...pipeline.shards.kept import ImageMembers
    from ...pipeline.shards.receipt_files import read_receipt_head
    from ...pipeline.storage.locations import base_name, folder_of, open_file, shown

    entries: list[_Entry] = []
    name = base_name(place)
    receipt = read_receipt_head(place, s3)
    images = ImageMembers(receipt)
    try:
        with open_file(place, s3) as file:
            for sample in iter_tar_samples(file, source=shown(place)):
                if sample.fault is not None:
                    raise sample.fault
                member = images.stream(sample.members)
                if member is not None:
                    members = frozenset(sample.members) - {member}
                    entries.append(_Entry(key=sample.key, stream=sample.members[member], place=name, members=members))
                if len(entries) == limit:
                    break
    except OSError as exc:
        raise SourceError(f"{shown(place)} cannot be read: {exc.strerror or exc}") from exc
    source = receipt.source.location if receipt is not None else None
    return _Group(name=name.removesuffix(".tar"), folder=folder_of(place), entries=tuple(entries), source=source)


def _originals(group: _Group, given: str | None, s3: S3Options | None) -> dict[str, bytes]:
    """Bytes of the original images of a group by key, as far as they can be found."""
    location = given if given is not None else group.source
    if location is None or not group.entries:
        return {}
    try:
        return dict(_search(location, group, s3))
    except PipelineError:
        # What a receipt names may be long gone, and the page is still worth having; what the user names must be there.
        if given is not None:
            raise
        return {}


def _search(location: str, group: _Group, s3: S3Options | None) -> Iterator[tuple[str, bytes]]:
    from ...pipeline.shards.samples import is_image_extension
    from ...pipeline.sources.shard import SourceShard
    from ...pipeline.sources.source import open_source
    from ...pipeline.storage.locations import base_name, read_if_there

    if is_image_extension(base_name(location).rpartition(".")[2]):
        image = read_if_there(location, s3)
        if image is not None:
            if len(group.entries) == 1:
                yield group.entries[0].key, image
            return
    wanted = {entry.key: entry for entry in group.entries}
    shards = open_source(location, s3=s3).shards
    if any(shard.kind == "tar" for shard in shards):
        # A tar keeps its name through the conversion, so the right one is usually the first to be read.
        ordered: list[SourceShard] = sorted(shards, key=lambda shard: shard.name != group.name)
    else:
        ordered = [
            SourceShard(
                name=shard.name,
                kind=shard.kind,
                location=shard.location,
                files=tuple(file for file in shard.files if file.key in wanted),
            )
            for shard in shards
        ]
    for shard in ordered:
        for sample in _samples(shard, s3):
            entry = wanted.get(sample.key)
            if entry is not None and sample.fault is None:
                data = _image_of(sample, entry)
                if data is not None:
                    yield sample.key, data
                    del wanted[sample.key]
            if not wanted:
                return


def _samples(shard: SourceShard, s3: S3Options | None) -> Iterator[Sample]:
    """The samples of a shard; some come twice, whole the second time, where their members lie apart in a tar."""
    from ...pipeline.sources.source import iter_samples

    try:
        yield from iter_samples(shard, s3)
    except ScatteredSampleError:
        yield from iter_samples(replace(shard, grouped=True), s3)


def _image_of(sample: Sample, entry: _Entry) -> bytes | None:
    from ...pipeline.shards.samples import choose_image

    replaced = [name for name in sample.members if name not in entry.members]
    try:
        return sample.members[replaced[0] if len(replaced) == 1 else sample.image or choose_image(sample.members)]
    except ImageMissingError:
        return None


def _compare(entry: _Entry, pixels: NDArray[np.uint8], original: bytes | None) -> Comparison:
    from ...codec import read_stream_info
    from ...pipeline.images.pixels import decode_pixels
    from ...pipeline.shards.samples import unescape_key
    from .page import Comparison
    from .rivals import psnr_db

    height, width = pixels.shape[:2]
    info = read_stream_info(entry.stream)
    top, left = max(0, (height - MAX_SIDE) // 2), max(0, (width - MAX_SIDE) // 2)
    part = (slice(top, top + MAX_SIDE), slice(left, left + MAX_SIDE))
    notes = [entry.place, f"quality {info.quality}"]
    if height > MAX_SIDE or width > MAX_SIDE:
        notes.append(f"central part of {width} × {height}")
    facts = [format_bytes(len(entry.stream)), f"{8 * len(entry.stream) / (height * width):.3f} bpp"]
    pictures: list[Picture] = []
    if original is not None:
        decoded = decode_pixels(original)
        reference = decoded.pixels.transpose(1, 2, 0)
        if reference.shape == pixels.shape:
            facts.append(f"{psnr_db(reference, pixels):.2f} dB PSNR")
            beside = (
                f"{decoded.format}, {format_bytes(len(original))}",
                f"{8 * len(original) / (height * width):.2f} bpp",
            )
            pictures.append(lossless_picture("Original", reference[part], beside))
        else:
            notes.append("the original found for it has another size and is left out")
    pictures.append(lossless_picture("Reconstruction", pixels[part], facts))
    shown = pixels[part].shape
    return Comparison(
        name=unescape_key(entry.key),
        note=" · ".join(notes),
        width=shown[1],
        height=shown[0],
        pictures=tuple(pictures),
    )
