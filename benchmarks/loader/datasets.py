"""The same files in the containers that the loaders read: tars for us and webdataset, MDS for Streaming, LitData's."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from discernible.codec import Codec
from discernible.pipeline.convert.config import ConvertConfig
from discernible.pipeline.convert.converter import ShardConverter
from discernible.pipeline.shards.groups import ShardWriter, iter_tar_samples
from discernible.pipeline.sources.source import open_source
from discernible.pipeline.storage.local import LocalStorage

SHARDS = 4
CHUNK_BYTES = 1 << 26


def write_tars(folder: Path, extension: str, files: list[bytes]) -> None:
    """Each file with a label, as many in each of a few tars."""
    folder.mkdir()
    for shard in range(SHARDS):
        with (folder / f"{shard:05d}.tar").open("wb") as out:
            writer = ShardWriter(out)
            for number in range(shard, len(files), SHARDS):
                writer.add(f"{number:06d}", {extension: files[number], "cls": str(number % 10).encode()})
            writer.finish()


def convert(source: Path, folder: Path, codec: Codec, quality: int) -> None:
    """What ``discernible compress`` makes of tars."""
    converter = ShardConverter(ConvertConfig(quality=quality, device=str(codec.device)), codec=codec)
    storage = LocalStorage(folder)
    for shard in open_source(source).shards:
        converter.convert(shard, storage, "benchmark")


def tars(folder: Path) -> list[Path]:
    """The tars in a folder, in order."""
    return sorted(folder.glob("*.tar"))


def tar_rows(folder: Path, extension: str) -> Iterator[dict[str, Any]]:
    """Every sample as the columns that the other containers hold."""
    for path in tars(folder):
        with path.open("rb") as file:
            for sample in iter_tar_samples(file, source=path.name):
                yield {"image": sample.members[extension], "label": int(sample.members["cls"])}


def import_streaming() -> Any:
    """MosaicML Streaming without what only its ready-made datasets and tokenisers need.

    It imports torchvision, of which PyPI has no build for a CPU build of torch, and transformers when it is imported
    itself; modules whose every name is an empty class stand in for them.
    """
    for name in (
        *("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"),
        *("transformers", "transformers.feature_extraction_utils", "transformers.tokenization_utils_base"),
        *("transformers.models", "transformers.models.auto", "transformers.models.auto.tokenization_auto"),
    ):
        module = _Absent(name)
        module.__path__ = []
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        sys.modules[name] = module
    import streaming  # type: ignore[import-not-found]

    return streaming


class _Absent(types.ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def write_mds(source: Path, folder: Path) -> None:
    """Streaming's format; images as the bytes of their files."""
    columns = {"image": "bytes", "label": "int"}
    with import_streaming().MDSWriter(out=str(folder), columns=columns, size_limit=CHUNK_BYTES) as writer:
        for row in tar_rows(source, "jpg"):
            writer.write(row)


def write_litdata(source: Path, folder: Path) -> None:
    """LitData's format; images as the bytes of their files."""
    import litdata  # type: ignore[import-not-found]

    rows = list(tar_rows(source, "jpg"))
    litdata.optimize(fn=_same, inputs=rows, output_dir=str(folder), num_workers=1, chunk_bytes=CHUNK_BYTES)


def _same(row: dict[str, Any]) -> dict[str, Any]:
    return row


def bytes_of(folder: Path) -> int:
    """What a loader reads of a folder: all but the statistics of our conversion."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.suffix != ".parquet")
