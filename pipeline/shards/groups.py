"""Shards as WebDataset tars: writing them the same way every time, and grouping their members into samples.

The writer's bytes depend on nothing but the members: no clock, user, or order of a dictionary other than the one given.
The reader treats a tar from outside as hostile. Names are never used as paths here, but they become keys, and keys
become paths when someone unpacks; so a name that is absolute, climbs out with ``..`` or cannot be printed makes its
sample faulty, as do links, devices, a member that comes twice and a key that comes back after another one. What is
wrong with the tar itself raises ShardError.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import BinaryIO, Protocol

from ...errors import SampleFormatError, ScatteredSampleError, ShardError
from ..storage.names import hidden_part
from .left_out import LeftOutCounter
from .samples import Sample, split_member_name
from .tar import BLOCK_BYTES, MAX_EXTENDED, TarMember, iter_members, members_of, padded

__all__ = [
    "SampleSpan",
    "ShardWriter",
    "TarGroups",
    "check_names",
    "is_meta",
    "iter_tar_samples",
    "sample_of",
]

_RECORD_BYTES = 20 * BLOCK_BYTES
_LONGEST_NAME = MAX_EXTENDED // 2
_UNFIT = re.compile("[\\\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class _Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


@dataclass(frozen=True, slots=True)
class SampleSpan:
    """Where a sample lies in a tar: the byte range of all its members, and that of each member's data.

    ``offset`` and ``size`` cover headers and padding, so that these bytes alone are the members of a tar. ``data`` maps
    the extension to (offset, size) of the data.
    """

    offset: int
    size: int
    data: dict[str, tuple[int, int]]


class ShardWriter:
    """Writes a tar into a sink with ``write(bytes)``; after :meth:`finish`, ``size`` and ``sha256`` are final."""

    def __init__(self, sink: _Sink) -> None:
        self._sink = sink
        self._digest = hashlib.sha256()
        self._keys: set[str] = set()
        self.size = 0

    @property
    def sha256(self) -> str:
        """SHA-256, in hex, of all bytes written so far."""
        return self._digest.hexdigest()

    def add(self, key: str, members: Mapping[str, bytes]) -> SampleSpan:
        """Append a sample, its members in the mapping's order as ``KEY.EXTENSION``.

        Raises SampleFormatError, and writes nothing, for names that :func:`check_names` refuses and a key that the tar
        has already.
        """
        check_names(key, members)
        if key in self._keys:
            raise SampleFormatError("the tar has a sample of that key already", key=key)
        self._keys.add(key)
        start = at = self.size
        data: dict[str, tuple[int, int]] = {}
        pieces = []
        for extension, content in members.items():
            header = tarfile.TarInfo(f"{key}.{extension}")
            header.size = len(content)
            head = header.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")
            pieces += [head, content, bytes(padded(len(content)) - len(content))]
            data[extension] = (at + len(head), len(content))
            at += sum(map(len, pieces[-3:]))
        self._write(b"".join(pieces))
        return SampleSpan(start, self.size - start, data)

    def finish(self) -> None:
        """Write the end mark, padded to a whole record as tar does."""
        end = self.size + 2 * BLOCK_BYTES
        self._write(bytes(-(-end // _RECORD_BYTES) * _RECORD_BYTES - self.size))

    def _write(self, data: bytes) -> None:
        self._sink.write(data)
        self._digest.update(data)
        self.size += len(data)


@dataclass(slots=True)
class _Group:
    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    extensions: set[str] = field(default_factory=set)
    size: int = 0
    fault: SampleFormatError | None = None


@dataclass(slots=True)
class TarGroups:
    """Groups the members of a tar into samples. ``left_out`` counts members that belong to none, such as ``README`` and
    hidden ones.

    A key that comes back behind others is a faulty sample of its own. ``scattered`` counts members that come so and
    that the first sample of their key lacks: it is not whole. With ``strict`` the first of them raises
    ScatteredSampleError.
    """

    shard: str
    left_out: LeftOutCounter = field(default_factory=LeftOutCounter)
    scattered: int = 0
    strict: bool = False
    # Extensions by key; most samples have the same ones, so the sets are shared.
    _seen: dict[str, frozenset[str]] = field(default_factory=dict)
    _sets: dict[frozenset[str], frozenset[str]] = field(default_factory=dict)

    def group(self, members: Iterator[TarMember]) -> Iterator[Sample]:
        """The samples, in order. Members listed without data count as empty."""
        current: _Group | None = None
        for member in members:
            split = split_member_name(member.name)
            if member.kind == "folder":
                continue
            if split is None or is_meta(member.name):
                self.left_out.add(member.name, hidden=hidden_part(member.name) is not None)
                continue
            key, extension = split
            if current is not None and current.key != key:
                yield self._finished(current)
                current = None
            if current is None:
                current = self._start(key)
            self._add(current, extension, member)
        if current is not None:
            yield self._finished(current)

    def _start(self, key: str) -> _Group:
        group = _Group(key)
        if key in self._seen:
            group.fault = SampleFormatError("the key comes again; the members of a sample must be adjacent", key=key)
        return group

    def _finished(self, group: _Group) -> Sample:
        names = self._seen.get(group.key, frozenset()) | group.extensions
        self._seen[group.key] = self._sets.setdefault(names, names)
        return self._sample(group)

    def _add(self, group: _Group, extension: str, member: TarMember) -> None:
        before = self._seen.get(group.key)
        if before is not None and extension.lower() not in before:
            self.scattered += 1
            if self.strict:
                raise ScatteredSampleError(
                    f"the member {member.name!r} comes behind other samples, at byte {member.offset} of the tar; the "
                    "members of a sample must be adjacent, so write the tar again, sorted by name",
                    shard=self.shard,
                    key=_printable(group.key),
                )
        problem = _name_problem(member.name)
        if member.kind != "file":
            problem = f"the member {member.name!r} is a {member.kind}"
        elif extension.lower() in group.extensions:
            problem = f"the member {member.name!r} comes twice"
        group.extensions.add(extension.lower())
        if problem is not None:
            group.fault = group.fault or SampleFormatError(problem, key=_printable(group.key))
            return
        group.members[extension] = member.data or b""
        group.size += member.size

    def _sample(self, group: _Group) -> Sample:
        key = _printable(group.key)
        if group.fault is not None:
            group.fault.shard = self.shard
        return Sample(key=key, members=group.members, source=key, fault=group.fault, size=group.size)


def iter_tar_samples(stream: BinaryIO, *, source: str, limit: int | None = None) -> Iterator[Sample]:
    """The samples, at most ``limit``, of the tar that ``stream`` stands at the start of; errors name ``source``."""
    return islice(TarGroups(source).group(iter_members(stream, shard=source)), limit)


def sample_of(piece: bytes, *, source: str) -> Sample:
    """The sample whose members are all that is in this piece of a tar. Raises ShardError, naming ``source``."""
    samples = list(TarGroups(source).group(iter(members_of(piece, shard=source))))
    if len(samples) != 1:
        raise ShardError(f"{len(samples)} samples lie where there should be one", shard=source)
    return samples[0]


def check_names(key: str, extensions: Iterable[str]) -> None:
    """Refuse what the reader of this module would not give back as this very sample.

    Raises:
        SampleFormatError: a name is unsafe, hidden, or not the key and extension that it was made of, or two extensions
            differ in case alone, which WebDataset's readers take for one.
    """
    taken: dict[str, str] = {}
    for extension in extensions:
        name = f"{key}.{extension}"
        problem = _name_problem(name)
        if problem is None and (is_meta(name) or split_member_name(name) != (key, extension)):
            problem = f"the member name {name!r} would not be read as one of its sample"
        if problem is None and len(name.encode()) > _LONGEST_NAME:
            problem = f"the member name {name[:40]!r}… is too long for a tar"
        if problem is None and extension.lower() in taken:
            problem = f"the members {taken[extension.lower()]!r} and {extension!r} differ in case alone; rename one"
        if problem is not None:
            raise SampleFormatError(problem, key=_printable(key))
        taken[extension.lower()] = extension


def is_meta(name: str) -> bool:
    """Whether a member belongs to no sample by its name.

    WebDataset skips ``__NAME__/…``, so do we; and what is hidden would otherwise come between the members of a sample.
    """
    if hidden_part(name) is not None:
        return True
    first, slash, _ = name.partition("/")
    return bool(slash) and len(first) > 3 and first.startswith("__") and first.endswith("__")


def _name_problem(name: str) -> str | None:
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        return f"the member name {name!r} is unsafe: it points outside of where it is unpacked"
    if _UNFIT.search(name):
        return f"the member name {name!r} has characters that no path should have"
    return None


def _printable(key: str) -> str:
    return key.encode("unicode_escape").decode("ascii") if _UNFIT.search(key) else key
