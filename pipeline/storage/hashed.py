"""Reading a file once, and knowing its SHA-256 behind it."""

from __future__ import annotations

import hashlib
from typing import BinaryIO

__all__ = ["HashedStream"]

_CHUNK = 1 << 20


class HashedStream:
    """A stream that is hashed as it is read, from its start to its end; it can be read as a tar is."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        """SHA-256 of what was read, in hex."""
        return self._digest.hexdigest()

    def read(self, size: int) -> bytes:
        """At most so many bytes."""
        data = self._stream.read(size)
        self._digest.update(data)
        self.size += len(data)
        return data

    def seek(self, offset: int, _whence: int) -> None:
        """Go forward, which is all that the reader of a tar does."""
        while offset and (piece := self.read(min(offset, _CHUNK))):
            offset -= len(piece)

    def skip_rest(self) -> None:
        """Read to the end."""
        while self.read(_CHUNK):
            pass
