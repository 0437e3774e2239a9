"""Putting images of one padded size together into batches, in a way that depends on their order and sizes alone.

A codec's floating-point results may depend on what shares a batch with an image. So that the same input gives the same
bytes however fast the threads were, batches are composed by this rule over the images in source order, never by what is
ready:

- an image joins the open batch of its padded size; a batch is complete when it holds ``batch_pixels`` padded pixels;
- the batch with the oldest image is closed early when that image is ``lookahead`` samples behind, and while all open
  batches together hold more than four times ``batch_pixels``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["BatchComposer"]

_OPEN_BATCHES = 4

T = TypeVar("T")


@dataclass(slots=True)
class _Batch(Generic[T]):
    first: int
    pixels: int = 0
    items: list[T] = field(default_factory=list)


class BatchComposer(Generic[T]):
    """Composes batches. ``block`` is the multiple that the codec pads each side to."""

    def __init__(self, *, block: int, batch_pixels: int, lookahead: int) -> None:
        self._block = block
        self._batch_pixels = batch_pixels
        self._lookahead = lookahead
        # In the order of their oldest image, since a batch enters with it and leaves whole.
        self._open: dict[tuple[int, int], _Batch[T]] = {}

    def add(self, index: int, item: T, height: int, width: int) -> Iterator[list[T]]:
        """Take the image of sample ``index``; yields the batches that this completes. Indices ascend."""
        size = (-(-height // self._block), -(-width // self._block))
        pixels = size[0] * size[1] * self._block**2
        batch = self._open.get(size)
        if batch is not None and batch.pixels + pixels > self._batch_pixels:
            yield self._close(size)
            batch = None
        if batch is None:
            batch = self._open[size] = _Batch(index)
        batch.items.append(item)
        batch.pixels += pixels
        if batch.pixels >= self._batch_pixels:
            yield self._close(size)
        yield from self.skip(index)

    def skip(self, index: int) -> Iterator[list[T]]:
        """Note that sample ``index`` has no image; yields the batches that its place in the order closes."""
        while self._open:
            oldest = next(iter(self._open))
            held = sum(batch.pixels for batch in self._open.values())
            if self._open[oldest].first > index - self._lookahead and held <= _OPEN_BATCHES * self._batch_pixels:
                return
            yield self._close(oldest)

    def finish(self) -> Iterator[list[T]]:
        """The batches still open, oldest first."""
        while self._open:
            yield self._close(next(iter(self._open)))

    def _close(self, size: tuple[int, int]) -> list[T]:
        return self._open.pop(size).items
