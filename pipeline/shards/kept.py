"""Which member of a converted sample is its image, and how the pixels of an image that was kept are read.

A sample whose image became a stream has it as the member ``dci``. Others were kept as they were, with their image or
without one, and their members alone do not say which: a mask that was carried along looks like an image. So receipts
record it (:class:`KeptImages`), and whoever reads a converted sample asks :class:`ImageMembers`, nothing else.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError, ImageMissingError, SampleFormatError, ShardError
from ...stored import FieldError, Fields, as_text
from .samples import STREAM_EXTENSION, Sample, choose_image

if TYPE_CHECKING:
    from ..images.policy import PixelPolicy
    from .receipts import ReceiptHead

__all__ = ["ImageMembers", "KeptImages", "KeptRecorder", "is_stream"]

_RANGES = re.compile(r"[0-9]{1,9}(?:-[0-9]{1,9})?(?:,[0-9]{1,9}(?:-[0-9]{1,9})?)*")
_LONGEST_RANGES = 1 << 20


@dataclass(frozen=True, slots=True)
class KeptImages:
    """The images of the samples of a shard that have no stream.

    ``image`` is the member of all but the ``others``, which are members with the numbers of their samples, counted from
    0 in the tar (``3,7-9``; those with a stream do not count); an empty name stands for no image. ``pixels`` is the
    pixel policy of the conversion, as JSON types.
    """

    image: str
    others: tuple[tuple[str, str], ...] = ()
    pixels: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; :meth:`read` reads it back."""
        return {"image": self.image, "others": dict(self.others), "pixels": dict(self.pixels)}

    @classmethod
    def read(cls, told: Fields) -> KeptImages:
        """What :meth:`to_dict` wrote. Raises FieldError."""
        others = told.group("others").all()
        for member, numbers in others.items():
            if not _RANGES.fullmatch(as_text(numbers, f"the samples of {member[:40]!r}", longest=_LONGEST_RANGES)):
                raise FieldError("the numbers of samples that were kept are no such")
        return cls(told.text("image"), tuple(others.items()), told.group("pixels").all())


class KeptRecorder:
    """Collects what :class:`KeptImages` says while a shard is written."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, str | None]] = []

    def add(self, number: int, image: str | None) -> None:
        """Note the image of a sample without a stream, by its number in the tar; None where nobody knows it."""
        self._kept.append((number, image))

    def result(self, pixels: Mapping[str, Any]) -> KeptImages | None:
        """The record; None where there is nothing to record, or something is not known."""
        names = [name for _, name in self._kept if name is not None]
        if not names or len(names) < len(self._kept):
            return None
        usual = Counter(names).most_common(1)[0][0]
        ranges: dict[str, list[str]] = {}
        # A run goes on over samples with a stream, of which nobody asks.
        for name, group in groupby(self._kept, key=itemgetter(1)):
            numbers = [number for number, _ in group]
            if name is not None and name != usual:
                first, last = numbers[0], numbers[-1]
                ranges.setdefault(name, []).append(str(first) if first == last else f"{first}-{last}")
        return KeptImages(usual, tuple((name, ",".join(spans)) for name, spans in sorted(ranges.items())), pixels)


class ImageMembers:
    """Says of each sample of a tar which of its members is the image.

    Of a tar with a receipt that is the stream, else what the receipt records. Of any other tar it is the stream, else
    the image that a conversion without options would choose.
    """

    def __init__(self, receipt: ReceiptHead | None) -> None:
        self._converted = receipt is not None
        self._kept = receipt.kept_images if receipt is not None else None
        spans = sorted(_spans(self._kept.others if self._kept is not None else ()))
        self._firsts = [first for first, _, _ in spans]
        self._spans = spans

    def stream(self, members: Collection[str]) -> str | None:
        """The member that is the stream, None where there is none.

        Raises SampleFormatError where nothing says which of several it is.
        """
        if STREAM_EXTENSION in members:
            return STREAM_EXTENSION
        streams = [] if self._converted else [name for name in members if is_stream(name)]
        if len(streams) > 1:
            raise SampleFormatError(
                f"several members are streams ({', '.join(streams)}): nothing says which one is the image"
            )
        return streams[0] if streams else None

    def recorded(self, number: int) -> str | None:
        """The image that the receipt records for a sample without a stream, by its number in the tar.

        Empty where it has none, None where nothing is recorded.
        """
        if self._kept is None:
            return None
        at = bisect_right(self._firsts, number) - 1
        return self._spans[at][2] if at >= 0 and number <= self._spans[at][1] else self._kept.image

    def of(self, number: int, members: Collection[str]) -> str:
        """The member that is the image of the sample of that number in the tar.

        Raises:
            ImageMissingError: the sample has none.
            SampleFormatError: nothing says which one it is, or it is not there.
        """
        stream = self.stream(members)
        if stream is not None:
            return stream
        if not self._converted:
            return choose_image(members)
        image = self.recorded(number)
        there = ", ".join(members) or "none at all"
        if image is None:
            raise SampleFormatError(
                f"the sample was kept as it was, and its shard's receipt, of an earlier version, does not say which of "
                f"its members ({there}) is the image: convert the source again"
            )
        if not image:
            raise ImageMissingError(f"the sample was passed through without an image; it has {there}")
        if image not in members:
            raise SampleFormatError(f"the receipt says that {image!r} is the image, but the sample has {there}")
        return image

    def told(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """All samples of the tar, in order, with what is recorded of the image of each."""
        return (replace(sample, image=self.recorded(number)) for number, sample in enumerate(samples))

    def policy(self) -> PixelPolicy:
        """How the pixels of images that were kept are read: as the conversion would have done. Raises ShardError."""
        from ..images.policy import PixelPolicy

        try:
            return PixelPolicy.from_dict(self._kept.pixels if self._kept is not None else {})
        except ConfigError as exc:
            raise ShardError(f"not a receipt: {exc.message}") from exc


def is_stream(member: str) -> bool:
    """Whether a member with this extension is a stream."""
    return member.rpartition(".")[2] == STREAM_EXTENSION


def _spans(others: Iterable[tuple[str, str]]) -> Iterator[tuple[int, int, str]]:
    """First and last sample of each range, and the member."""
    for member, numbers in others:
        for span in numbers.split(","):
            first, _, last = span.partition("-")
            yield int(first), int(last or first), member
