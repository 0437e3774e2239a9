"""Looking for label maps in a source before anything is converted: at a few of its images, some of each kind.

Images are of a kind where they have one folder, one extension and one telling word in their names
(:func:`.images.label_maps.map_word`). Of each kind the first, second, fourth, eighth … are looked at, unless name and
extension say that they are photographs; of tars and Parquet files a few are opened. What is missed here is quarantined
when it is converted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import groupby, islice

from ...errors import PipelineError, SourceError
from ..images.label_maps import map_word, may_be_map, why_map
from ..images.policy import PixelPolicy
from ..shards.groups import is_meta
from ..shards.samples import choose_image, split_member_name
from ..sources.shard import SourceShard
from ..sources.source import SampleStream, Source
from ..sources.tars import open_tar
from ..storage.base import is_remote
from ..storage.opening import open_storage
from ..storage.patterns import path_matches
from ..storage.prefetch import map_ahead
from ..storage.s3_client import S3Options

__all__ = ["refuse_maps"]

_MOST_KINDS = 1 << 14
_MOST_LOOKED_AT = 192
_MOST_FILES = 8
_FIRST_SAMPLES = 32
_READERS = 16
# Of images whose names say nothing, so many are label maps before the whole source is refused for it.
_SHARE = 1 / 4

_Read = Callable[[], bytes]


@dataclass(slots=True)
class _Kind:
    folder: str
    extension: str
    word: str | None
    count: int = 0
    chosen: list[tuple[str, _Read]] = field(default_factory=list)
    looked_at: int = 0
    maps: list[tuple[str, str]] = field(default_factory=list)


def refuse_maps(
    source: Source,
    policy: PixelPolicy,
    *,
    image_member: str | None = None,
    carry: Sequence[str] = (),
    s3: S3Options | None = None,
) -> None:
    """Refuse a source in which images are label maps or depth.

    Args:
        source: as it was opened; what is carried along of it is not looked at.
        policy: which images can be opened.
        image_member: which member of a tar is the image.
        carry: shell patterns of members of tars that are none.
        s3: how S3 is reached.

    Raises:
        SourceError: there are some. The message says where, why, and which options take them along or leave them out.
        StorageError: a folder cannot be read.
    """
    kinds: dict[tuple[str, str, str | None], _Kind] = {}
    for path, read in _candidates(source, image_member, carry, s3):
        if not may_be_map(path):
            continue
        key = _kind_of(path)
        kind = kinds.get(key)
        if kind is None:
            if len(kinds) >= _MOST_KINDS:
                continue
            kind = kinds[key] = _Kind(*key)
        kind.count += 1
        if kind.count & (kind.count - 1) == 0:
            kind.chosen.append((path, read))
    _look(list(kinds.values()), policy)
    refused = _refused(list(kinds.values()))
    if refused:
        raise SourceError(_explained(source, refused))


def _refused(kinds: list[_Kind]) -> list[_Kind]:
    unnamed = [kind for kind in kinds if kind.word is None]
    found, looked_at = sum(len(kind.maps) for kind in unnamed), sum(kind.looked_at for kind in unnamed)
    # Of many small folders each has one image that is looked at, and the one that is mistaken condemns none.
    many = found >= _SHARE * looked_at
    return [
        kind for kind in kinds if kind.maps and (kind.word or many or len(kind.maps) >= max(2, _SHARE * kind.looked_at))
    ]


def _kind_of(path: str) -> tuple[str, str, str | None]:
    folder, _, name = path.rpartition("/")
    return folder, name.rpartition(".")[2].lower(), map_word(path)


def _look(kinds: list[_Kind], policy: PixelPolicy) -> None:
    # Those whose names tell first: there may be a folder for each class of photographs.
    kinds.sort(key=lambda kind: kind.word is None)
    each = max(1, _MOST_LOOKED_AT // max(1, len(kinds)))
    chosen = [(kind, *one) for kind in kinds for one in kind.chosen[:each]][:_MOST_LOOKED_AT]

    def judged(one: tuple[_Kind, str, _Read]) -> tuple[_Kind, str, str | None]:
        kind, path, read = one
        try:
            return kind, path, why_map(read(), path, policy)
        except PipelineError:
            # It is quarantined when it is converted.
            return kind, path, None

    for kind, path, why in map_ahead(judged, chosen, threads=_READERS, ahead=_READERS):
        kind.looked_at += 1
        if why is not None:
            kind.maps.append((path, why))


def _candidates(
    source: Source, image_member: str | None, carry: Sequence[str], s3: S3Options | None
) -> Iterator[tuple[str, _Read]]:
    """Images of the source: their paths, and what reads each."""
    if source.kind == "folder":
        root = open_storage(source.location, s3)
        for shard in source.shards:
            for file in shard.files:
                yield file.paths[0], lambda path=file.paths[0]: root.read(path)  # type: ignore[misc]
        return
    count = len(source.shards)
    for number in sorted({at * count // _MOST_FILES for at in range(_MOST_FILES)}):
        shard = source.shards[number]
        images = _tar_images(shard, image_member, carry, s3) if shard.kind == "tar" else _rows(shard, image_member, s3)
        # A shard that cannot be read is told when it is converted, and does not stop the others.
        with suppress(PipelineError):
            yield from images


def _rows(shard: SourceShard, image_member: str | None, s3: S3Options | None) -> Iterator[tuple[str, _Read]]:
    """The first few images of a Parquet file."""
    few = replace(shard, limit=min(shard.limit or _FIRST_SAMPLES, _FIRST_SAMPLES))
    for sample in SampleStream(few, s3):
        if sample.fault is None:
            extension = choose_image(sample.members, image_member)
            yield f"{shard.column}/{sample.key}.{extension}", _given(sample.members[extension])


def _tar_images(
    shard: SourceShard, image_member: str | None, carry: Sequence[str], s3: S3Options | None
) -> Iterator[tuple[str, _Read]]:
    """All images of a tar by its headers, where these can be had without the data; else the first few."""
    with open_tar(shard.location, s3, shard=shard.name) as tar:
        listed = not tar.packed and not is_remote(shard.location)
        files = (
            (*split, member)
            for member in tar.members(data=not listed)
            if member.kind == "file" and not is_meta(member.name) and (split := split_member_name(member.name))
        )
        samples = groupby(files, key=lambda file: file[0])
        most = shard.limit if listed else min(shard.limit or _FIRST_SAMPLES, _FIRST_SAMPLES)
        for key, members in islice(samples, most):
            found = {extension: member for _, extension, member in members}
            carried = {name for name in found if any(path_matches(f"{key}.{name}", pattern) for pattern in carry)}
            try:
                image = found[choose_image(found, image_member, carried)]
            except PipelineError:
                continue
            yield (
                image.name,
                _given(image.data) if image.data is not None else _at(shard, image.data_offset, image.size),
            )


def _given(data: bytes) -> _Read:
    return lambda: data


def _at(shard: SourceShard, offset: int, size: int) -> _Read:
    def read() -> bytes:
        with open_tar(shard.location, None, shard=shard.name) as tar:
            tar.stream.seek(offset)
            return tar.stream.read(size)

    return read


def _explained(source: Source, kinds: Sequence[_Kind]) -> str:
    lines = []
    for kind in kinds[:3]:
        path, why = kind.maps[0]
        among = f"{len(kind.maps)} of {kind.looked_at} looked at among {kind.count}" if kind.count > 1 else "it"
        lines.append(f"{path}: {why} ({among}{f' in {kind.folder}' if kind.folder else ''})")
    if len(kinds) > 3:
        lines.append(f"and {len(kinds) - 3} more kinds")
    return (
        "label maps, masks or depth are among the images, and coding them with losses would change what they say: "
        f"{'; '.join(lines)}. {_remedy(source, kinds)}, or --lossy-maps to code them like photographs"
    )


def _remedy(source: Source, kinds: Sequence[_Kind]) -> str:
    if source.kind == "parquet":
        return "Name another column with --image-column"
    everything = f"{kinds[0].folder}/*" if kinds[0].folder else f"*.{kinds[0].extension}"
    if source.kind == "tar":
        return f"Take them along byte for byte with --carry '{everything}', name the image with --image-member"
    refused = {(each.folder, each.extension, each.word) for each in kinds}
    images = (file.paths[0] for shard in source.shards for file in shard.files)
    maps = [path for kind in kinds for path, _ in kind.maps]
    partners = _partners(maps, (image for image in images if _kind_of(image) not in refused))
    if partners is None:
        return f"Leave them out with --include and the pattern of the images (unlike '{everything}')"
    option, pattern = _pairing(*partners)
    return f"Take them along byte for byte with {option}, leave them out with --include '{pattern}'"


def _partners(maps: Sequence[str], images: Iterable[str]) -> tuple[str, str] | None:
    """An image, and the label map that seems to belong to it: of its name, or with a word behind that."""
    wanted = {stem: path for path in reversed(maps) for stem in reversed(_stems(path))}
    found: dict[str, str] = {}
    for image in images:
        base = image.rpartition("/")[2].rpartition(".")[0]
        if base in wanted:
            found.setdefault(base, image)
    return next(((found[stem], path) for path in maps for stem in _stems(path) if stem in found), None)


def _stems(path: str) -> tuple[str, ...]:
    stem = path.rpartition("/")[2].rpartition(".")[0]
    shorter = re.sub(r"[^A-Za-z0-9]*[A-Za-z]+$", "", stem)
    return (stem, shorter) if shorter and shorter != stem else (stem,)


def _pairing(image: str, path: str) -> tuple[str, str]:
    """The option by which the file at ``path`` belongs to the image, and a pattern of images without such files."""
    here, there = image.rpartition(".")[0].split("/"), path.rpartition(".")[0].split("/")
    suffix = there[-1].removeprefix(here[-1])
    if here == there:
        return f"--carry '*.{path.rpartition('.')[2]}'", f"*.{image.rpartition('.')[2]}"
    here[-1] = there[-1] = ""
    while len(here) > 1 and len(there) > 1 and here[-2] == there[-2]:
        del here[-2], there[-2]
    left, right = ("/".join(parts).rstrip("/") for parts in (here, there))
    images = f"{left}/*" if left else f"*.{image.rpartition('.')[2]}"
    if not suffix and left and right:
        return f"--pair {left}:{right}", images
    return "--pair '{}:{}'".format(f"{left}/*".lstrip("/"), f"{right}/*{suffix}".lstrip("/")), images
