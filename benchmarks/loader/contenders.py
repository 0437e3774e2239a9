"""The loaders that take part, each as its own documentation says to use it for whole epochs in order.

All give batches of uint8 images of 256×256 and of labels. What is decoded to rows of pixels (H, W, 3) stays so in the
batch: turning it is free, as ``channels_last``. Where a peer could hold pixels as well as files, it holds the files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import webdataset as wds
from torch.utils.data import DataLoader, default_collate

from benchmarks.loader.datasets import import_streaming, tars, write_litdata, write_mds
from benchmarks.loader.photos import SIDE, pillow_fitted, pillow_pixels
from benchmarks.peers import Pixels
from discernible import CompressedLoader, decode_dci
from discernible.pipeline.loader.stream import LoaderConfig, ShardStream
from discernible.pipeline.reading.shard_set import ShardSet
from discernible.pipeline.reading.worker_codec import worker_codec

#: A name or a file, which the processes of contenders take over.
WEIGHTS = os.environ.get("LOADER_WEIGHTS", "default")

Decode = Callable[[bytes], Any]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all loaders are told."""

    batch: int
    workers: int
    device: str


Load = Callable[[Path, Options], AbstractContextManager[Iterable[Any]]]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A loader, and the two things that its workers do: read files out of a container, and decode each.

    ``data`` is the format of :func:`~benchmarks.loader.photos.encoded`, ``container`` the folder it reads, which
    ``write`` makes from the tars of that format where it is not those. ``needs`` imports what is installed apart.
    """

    name: str
    data: str
    load: Load
    read: Callable[[Path], Iterable[Sequence[Any]]] | None = None
    """Rows that begin with a file's bytes, as often as they are asked for; None where another's workers do the same."""
    decode: Decode | None = None
    count: Callable[[Any], int] = lambda batch: len(batch[0])
    container: str = ""
    write: Callable[[Path, Path], None] | None = None
    needs: Callable[[], object] | None = None

    @property
    def folder(self) -> str:
        """Its folder below that of all data."""
        return self.container or self.data


class OurFiles:
    """As our workers read: any sample by its number, here in order."""

    def __init__(self, folder: Path) -> None:
        self._shards = ShardSet(tars(folder))

    def __iter__(self) -> Iterator[tuple[bytes]]:
        reader = self._shards.reader()
        for shard, count in enumerate(self._shards.counts):
            for number in range(count):
                yield (reader.read(shard, number).members["dci"],)


def our_latents(data: bytes) -> Any:
    """What our workers send to the device."""
    return worker_codec(WEIGHTS).entropy_decode_compact(data)


def our_loader(folder: Path, options: Options) -> AbstractContextManager[Iterable[Any]]:
    """Workers, synthesis on the device, and batches there."""
    return CompressedLoader(
        tars(folder),
        batch_size=options.batch,
        size=SIDE,
        workers=options.workers,
        device=options.device,
        weights=WEIGHTS,
    )


def our_workers(folder: Path, options: Options) -> AbstractContextManager[Iterable[Any]]:
    """The same without the synthesis: batches of latents in the training process, ready for a device."""
    shards = ShardSet(tars(folder))
    order = shards.order(shuffle="none", window=1, seed=0)
    stream = ShardStream(shards.reader(), order, LoaderConfig(weights=WEIGHTS, batch_size=options.batch))
    return nullcontext(_data_loader(stream, options, None))


def _data_loader(dataset: Any, options: Options, batch: int | None) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=batch, num_workers=options.workers, persistent_workers=options.workers > 0)


def webdataset_loader(extension: str, handler: Callable[[str, bytes], Any]) -> Load:
    """A pipeline that batches in its workers, into shared memory as PyTorch's own collation does."""

    def load(folder: Path, options: Options) -> AbstractContextManager[Iterable[Any]]:
        # One worker may have nothing to read where there are more of them than tars.
        dataset = wds.WebDataset([str(path) for path in tars(folder)], shardshuffle=False, empty_check=False)
        dataset = dataset.decode(handler).to_tuple(extension, "cls")
        return nullcontext(_data_loader(dataset.batched(options.batch, collation_fn=default_collate), options, None))

    return load


def _tensor(decode: Decode, data: bytes) -> torch.Tensor:
    pixels = decode(data)
    return pixels if isinstance(pixels, torch.Tensor) else torch.from_numpy(pixels)


def webdataset_peer(name: str, data: str, decode: Decode, needs: Callable[[], object] | None = None) -> Contender:
    """webdataset with that decoder."""
    extension = "jpg" if data == "original" else data

    def handler(key: str, content: bytes) -> torch.Tensor | None:
        return _tensor(decode, content) if key.endswith(extension) else None

    def read(folder: Path) -> Iterable[Sequence[Any]]:
        urls = [str(path) for path in tars(folder)]
        rows: Iterable[Sequence[Any]] = wds.WebDataset(urls, shardshuffle=False).to_tuple(extension, "cls")
        return rows

    load = webdataset_loader(extension, handler)
    return Contender(name=name, data=data, load=load, read=read, decode=decode, needs=needs)


def simplejpeg_pixels(data: bytes) -> Pixels:
    """uint8 (H, W, 3)."""
    import simplejpeg  # type: ignore[import-not-found]

    pixels: Pixels = simplejpeg.decode_jpeg(data)
    return pixels


def torchvision_pixels(data: bytes) -> torch.Tensor:
    """uint8 (3, H, W)."""
    from torchvision.io import ImageReadMode, decode_jpeg  # type: ignore[import-not-found]

    pixels: torch.Tensor = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    return pixels


def mds_dataset(folder: Path, batch: int, decode: Decode) -> Any:
    """Streaming's dataset of a local folder."""
    streaming = import_streaming()

    class Images(streaming.StreamingDataset):  # type: ignore[misc, name-defined]
        def __getitem__(self, at: int) -> tuple[Any, int]:
            row = super().__getitem__(at)
            return decode(row["image"]), row["label"]

    return Images(local=str(folder), shuffle=False, batch_size=batch)


def mds_loader(folder: Path, options: Options) -> AbstractContextManager[Iterable[Any]]:
    """Streaming with Pillow."""
    dataset = mds_dataset(folder, options.batch, lambda data: _tensor(pillow_pixels, data))
    return nullcontext(_data_loader(dataset, options, options.batch))


def litdata_dataset(folder: Path, decode: Decode) -> Any:
    """LitData's dataset of a local folder."""
    import litdata  # type: ignore[import-not-found]

    return litdata.StreamingDataset(str(folder), transform=lambda row: (decode(row["image"]), row["label"]))


def litdata_loader(folder: Path, options: Options) -> AbstractContextManager[Iterable[Any]]:
    """LitData with Pillow."""
    import litdata

    return nullcontext(
        litdata.StreamingDataLoader(
            litdata_dataset(folder, lambda data: _tensor(pillow_pixels, data)),
            batch_size=options.batch,
            num_workers=options.workers,
            persistent_workers=options.workers > 0,
        )
    )


OURS = "discernible"
OUR_WORKERS = "– its workers alone"
PILLOW_JPEG = "webdataset, Pillow JPEG"
ORIGINALS = "webdataset, Pillow JPEG of the originals, resized"

CONTENDERS = (
    Contender(name=OURS, data="dci", load=our_loader, read=OurFiles, decode=our_latents),
    Contender(name=OUR_WORKERS, data="dci", load=our_workers, count=lambda chunk: len(chunk.samples)),
    Contender(
        name="webdataset, decode_dci",
        data="dci",
        load=webdataset_loader("dci", decode_dci("torchrgb8", weights=WEIGHTS)),
    ),
    webdataset_peer(PILLOW_JPEG, "jpg", pillow_pixels),
    webdataset_peer("webdataset, simplejpeg", "jpg", simplejpeg_pixels, lambda: import_module("simplejpeg")),
    webdataset_peer(
        "webdataset, torchvision decode_jpeg", "jpg", torchvision_pixels, lambda: import_module("torchvision.io")
    ),
    webdataset_peer("webdataset, Pillow WebP", "webp", pillow_pixels),
    webdataset_peer("webdataset, Pillow AVIF", "avif", pillow_pixels),
    Contender(
        name="MosaicML Streaming, Pillow JPEG",
        data="jpg",
        load=mds_loader,
        read=lambda folder: mds_dataset(folder, 1, bytes),
        decode=pillow_pixels,
        container="mds",
        write=write_mds,
        needs=import_streaming,
    ),
    Contender(
        name="LitData, Pillow JPEG",
        data="jpg",
        load=litdata_loader,
        read=lambda folder: litdata_dataset(folder, bytes),
        decode=pillow_pixels,
        container="litdata",
        write=write_litdata,
        needs=lambda: import_module("litdata"),
    ),
    webdataset_peer(ORIGINALS, "original", pillow_fitted),
)

#: Peers that no script can install, and why.
LEFT_OUT = {
    "FFCV": "PyPI has its sources only, which need OpenCV's and libturbojpeg's headers; it decodes as simplejpeg"
}
