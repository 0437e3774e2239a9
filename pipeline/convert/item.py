"""A sample on its way through a conversion: what is known of it so far, and what it still waits for."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...errors import CodecError, PipelineError
from ..images.pixels import DecodedImage
from ..shards.output import SampleFacts, ShardOutput
from ..shards.samples import Sample

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..images.gpu_jpeg import JpegFile

__all__ = ["Item"]


@dataclass(slots=True)
class Item:
    """A sample that waits first for its pixels, then for its stream, or for nothing when it has a fault.

    ``extension`` is that of its image, ``original`` the image's file where that may be needed again. ``pixels`` is a
    JPEG file where the device is to decode it.
    """

    index: int
    sample: Sample
    facts: SampleFacts
    extension: str = ""
    fault: CodecError | PipelineError | None = None
    passthrough: bool = False
    decoding: Future[DecodedImage | JpegFile] | None = None
    pixels: npt.NDArray[np.uint8] | JpegFile | None = None
    quality: int = 0
    psnr: float | None = None
    coding: Future[bytes] | None = None
    original: bytes | None = None

    def take_pixels(self, *, keep: bool) -> None:
        """Wait for the pixels, and let go of the image file they came from unless it is to be kept."""
        if self.decoding is None:
            return
        decoding, self.decoding = self.decoding, None
        members = self.sample.members
        self.original = members[self.extension] if keep else None
        bytes_in = len(members[self.extension])
        self.sample = replace(self.sample, members={**members, self.extension: b""})
        try:
            image = decoding.result()
        except PipelineError as exc:
            self.facts = replace(self.facts, bytes_in=bytes_in)
            self.fault = exc
            return
        if isinstance(image, DecodedImage):
            self.pixels, name, notes = image.pixels, image.format, image.notes
        else:
            self.pixels, name, notes = image, "JPEG", ()
        _, height, width = self.pixels.shape
        self.facts = replace(self.facts, bytes_in=bytes_in, height=height, width=width, format=name, notes=notes)

    def stream(self) -> bytes | None:
        """Wait for the stream; None when there is none, and the fault says why."""
        if self.coding is None:
            return None
        try:
            return self.coding.result()
        except CodecError as exc:
            self.fault = exc
            return None

    def keep_original(self, why: str) -> None:
        """Pass through after all."""
        members = {**self.sample.members, self.extension: self.original or b""}
        self.sample = replace(self.sample, members=members)
        self.facts = replace(self.facts, notes=(*self.facts.notes, f"kept as it was: {why}"))
        self.passthrough = True

    def write(self, stream: bytes | None, output: ShardOutput, *, smaller: bool) -> None:
        """Put the sample where it belongs; with ``smaller`` it passes through if its stream is no smaller."""
        if smaller and stream is not None and self.fault is None and len(stream) >= (self.facts.bytes_in or 0):
            self.keep_original(f"its stream would have {len(stream)} bytes")
        if self.fault is not None:
            output.leave_out(self.sample, self.facts, self.extension, self.fault)
        elif self.passthrough:
            output.pass_through(self.sample, self.facts, self.extension)
        elif stream is not None:
            output.commit_sample(self.sample, self.facts, self.extension, stream, self.quality, self.psnr)
