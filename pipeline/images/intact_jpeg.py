"""Whether a JPEG file holds all of its picture, as far as that can be told without decoding it.

Libjpeg fills up with grey what is missing before a marker, and does not tell Pillow. So markers, scans and restart
intervals are counted here. And the data of a Huffman-coded scan have to end with its last block: a scan is given to
libjpeg without the marker behind it, so that it is seen to ask for more where it is short, and in parts, so that it is
seen to stop where there is more.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

from ...errors import ImageUnreadableError

__all__ = ["JpegScans", "decode_scans", "jpeg_scans"]

_SOI, _EOI, _SOS, _DRI, _TEM = 0xD8, 0xD9, 0xDA, 0xDD, 0x01
_FRAMES = (0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_PROGRESSIVE_HUFFMAN = 0xC2
_HUFFMAN = (0xC0, 0xC1, _PROGRESSIVE_HUFFMAN)
# Huffman and arithmetic tables, EOI, SOS, quantisation, number of lines, restart interval, applications, comments.
_BETWEEN_SCANS = (0xC4, 0xCC, _EOI, _SOS, 0xDB, 0xDC, _DRI, *range(0xE0, 0xF0), 0xFE)
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
_RESTART = re.compile(rb"\xff+[\xd0-\xd7]")
# What some cameras leave behind the last pixel, in bytes.
_SLACK = 16
# Libjpeg wants 57 bits before it decodes the last one. No code consists of ones.
_PADDING = b"\xff\x00" * 7
# A byte of a scan, or what belongs together; and how many of them in a row libjpeg never takes at once within a scan.
_UNIT = re.compile(rb"\xff+[^\xff]|[^\xff]", re.DOTALL)
_PROBES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """``components``: names, and the blocks of each in a unit, across and down."""

    marker: int
    size: tuple[int, int]
    components: dict[int, tuple[int, int]]

    def units(self, scanned: list[int]) -> int:
        """How many units a scan of these components holds."""
        width, height = self.size
        across, down = (max(each[way] for each in self.components.values()) for way in (0, 1))
        if len(scanned) == 1:
            own = self.components[scanned[0]]
            width, height = -(-width * own[0] // across), -(-height * own[1] // down)
            across = down = 1
        return -(-width // (8 * across)) * -(-height // (8 * down))


@dataclass(frozen=True, slots=True, kw_only=True)
class JpegScans:
    """``spans`` are where the data of scans and restart intervals lie, if their ends can be checked in decoding.

    ``sequential``: they are of one scan, and libjpeg passes on its rows as they come.
    """

    spans: tuple[tuple[int, int], ...]
    sequential: bool


def decode_scans(data: bytes, scans: JpegScans, decode: Callable[[bytes], int]) -> None:
    """Decodes scans and restart intervals, each up to its end.

    Args:
        data: The file.
        scans: What :func:`jpeg_scans` told of it.
        decode: Takes bytes that follow on what it took before, and returns how many it took; below zero when done.

    Raises:
        ImageUnreadableError: One stops too early, or wants more than there is.
    """
    rest, at = b"", 0

    def waits(upto: int, more: bytes = b"") -> bool:
        # Within a scan libjpeg takes nothing until it has some bytes; behind one it skips all but a marker.
        nonlocal rest, at
        given = rest + data[at:upto] + more
        taken, at = decode(given), upto
        if taken < 0:
            raise ImageUnreadableError("the JPEG file is damaged: there are more data than its picture takes")
        rest = given[taken:]
        return bool(rest)

    for number, (start, end) in enumerate(scans.spans):
        last = scans.sequential and number == len(scans.spans) - 1
        if end - start > _SLACK:
            waits(end - _SLACK)
            steps = [] if last else [match.end() for match in islice(_UNIT.finditer(data, at, end), _PROBES)]
            if steps and not any(waits(step) for step in steps):
                raise ImageUnreadableError("the JPEG file is damaged: there are more data than a scan takes")
        if last:
            if decode(rest + data[at:end] + _PADDING) >= 0:
                raise ImageUnreadableError("the JPEG file is damaged: its data end before its picture")
            return
        waits(end, _PADDING)
        if waits(end, b"\0"):
            raise ImageUnreadableError("the JPEG file is damaged: the data of a scan end too early")
    if decode(rest + data[at:]) >= 0:
        raise ImageUnreadableError("the JPEG file is cut short: its data end before its picture")


@dataclass(slots=True)
class _Found:
    frame: _Frame | None = None
    interval: int = 0
    spans: list[tuple[int, int]] = field(default_factory=list)
    scans: int = 0
    scanned: set[int] = field(default_factory=set)


def jpeg_scans(data: bytes) -> JpegScans:
    """The scans of the first picture in the file.

    Raises:
        ImageUnreadableError: There is no end marker, or components, scans or restart intervals are missing.
    """
    found, at = _Found(), 2
    while True:
        place = _MARKER.search(data, at)
        if place is None:
            raise ImageUnreadableError("the JPEG file is cut short: it has no end marker")
        marker, at = data[place.end() - 1], place.end()
        if found.spans and marker not in _BETWEEN_SCANS:
            raise ImageUnreadableError(f"the JPEG file is damaged: marker {marker:02x} among its picture's data")
        if marker == _EOI:
            return _checked(found)
        if marker in (_SOI, _TEM) or 0xD0 <= marker <= 0xD7:
            continue
        end = at + int.from_bytes(data[at : at + 2], "big")
        body, at = data[at + 2 : end], max(end, at + 2)
        if marker in _FRAMES and len(body) >= 6:
            found.frame = _frame(marker, body)
        elif marker == _DRI and len(body) >= 2:
            found.interval = int.from_bytes(body[:2], "big")
        elif marker == _SOS:
            at = _scan(data, at, body, found)


def _frame(marker: int, body: bytes) -> _Frame:
    listed = body[6 : 6 + 3 * body[5]]
    components = {listed[i]: (listed[i + 1] >> 4, listed[i + 1] & 15) for i in range(0, len(listed) - 2, 3)}
    if not components or not all(1 <= each <= 4 for pair in components.values() for each in pair):
        raise ImageUnreadableError("the JPEG file is damaged: its frame header has no components, or odd ones")
    size = int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big")
    return _Frame(marker=marker, size=size, components=components)


def _scan(data: bytes, start: int, body: bytes, found: _Found) -> int:
    """Notes the scan whose data begin at ``start``; returns where they end."""
    stop = _END_OF_SCAN.search(data, start)
    if stop is None:
        raise ImageUnreadableError("the JPEG file is cut short: it has no end marker")
    frame, count = found.frame, body[0] if body else 0
    scanned = list(body[1 : 1 + 2 * count : 2])
    if frame is None or not scanned or not frame.components.keys() >= set(scanned) or len(body) < 1 + 2 * count + 3:
        raise ImageUnreadableError("the JPEG file is damaged: a scan of no components, or of unknown ones")
    # Any number of 0xFF may come before a marker.
    end = start + len(data[start : stop.start()].rstrip(b"\xff"))
    if end == start:
        raise ImageUnreadableError("the JPEG file is damaged: a scan without data")
    spans = [(start, end)]
    if found.interval:
        spans = _intervals(data, start, end, -(-frame.units(scanned) // found.interval) - 1)
    first = body[1 + 2 * count]
    if frame.marker != _PROGRESSIVE_HUFFMAN or first == 0:
        found.scanned |= set(scanned)
    found.spans += spans
    found.scans += 1
    return stop.start()


def _intervals(data: bytes, start: int, end: int, restarts: int) -> list[tuple[int, int]]:
    markers = [match.span() for match in _RESTART.finditer(data, start, end)]
    # Some write one behind the last interval.
    if len(markers) not in (restarts, restarts + 1) or any(
        data[place - 1] - 0xD0 != number % 8 for number, (_, place) in enumerate(markers)
    ):
        raise ImageUnreadableError(
            f"the JPEG file is damaged: {len(markers)} restart markers, or in another order, where {restarts} belong"
        )
    starts, ends = [start, *(place for _, place in markers)], [*(place for place, _ in markers), end]
    spans = list(zip(starts, ends, strict=True))[: restarts + 1]
    if any(first == last for first, last in spans):
        raise ImageUnreadableError("the JPEG file is damaged: a restart interval without data")
    return spans


def _checked(found: _Found) -> JpegScans:
    frame = found.frame
    if frame is None or not found.spans:
        raise ImageUnreadableError("the JPEG file is cut short: it ends before its picture")
    if found.scanned != frame.components.keys():
        raise ImageUnreadableError("the JPEG file is cut short: it has no scan of some of its components")
    sequential = found.scans == 1 and frame.marker != _PROGRESSIVE_HUFFMAN
    return JpegScans(
        spans=tuple(found.spans) if frame.marker in _HUFFMAN else (),
        sequential=sequential,
    )
