"""What a sample is, how its key is written, and which of its members is the image.

A sample is a key and a few members, as in WebDataset: member ``K.jpg`` of a tar belongs to key ``K`` and has the
extension ``jpg``. Keys end at the first dot of the base name, so file names that hold dots are escaped when they become
keys.

The image is chosen by this rule, first match wins:

1. the member named by the ``image_member`` option, whole extension, if that option is given;
2. the member whose *whole* extension is one of :data:`IMAGE_EXTENSIONS` in any case; of several, the one that comes
   first in that tuple (then the first in the sample).

Of a tar's sample without such a member, the one that :func:`.images.contents.member_in_content` finds is the image.
Dotted extensions such as ``mask.png`` are never taken by rule 2. Everything that is not chosen is carried along byte
for byte, so at most one member of a sample is ever compressed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

from ...errors import ImageMissingError, PipelineError, SampleFormatError

__all__ = [
    "IMAGE_EXTENSIONS",
    "STREAM_EXTENSION",
    "Sample",
    "choose_image",
    "escape_key",
    "member_digests",
    "refuse_stream",
    "sample_digest",
    "split_member_name",
    "unescape_key",
]

IMAGE_EXTENSIONS: tuple[str, ...] = (
    "jpg",
    "jpeg",
    "jpe",
    "jfif",
    "mpo",
    "jpg_large",
    "jpeg_large",
    "webp",
    "avif",
    "heic",
    "heif",
    "hif",
    "jp2",
    "j2k",
    "jpx",
    "png",
    "apng",
    "qoi",
    "tif",
    "tiff",
    "bmp",
    "dib",
    "ppm",
    "pgm",
    "pbm",
    "pnm",
    "tga",
    "gif",
)
"""Extensions of image files, in the order in which they are preferred: photographs before what is often a mask."""

STREAM_EXTENSION = "dci"
"""Extension of the member that takes the image's place in a converted sample."""

_RANK = {extension: rank for rank, extension in enumerate(IMAGE_EXTENSIONS)}
_MEMBER = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_ESCAPE = re.compile("[%\\\\\x00-\x1f\x7f-\x9f\udc80-\udcff]")
_ESCAPED = re.compile("(?:%[0-9A-F]{2})+")


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of a source.

    ``members`` maps the extension without its leading dot to the bytes, in the source's order. ``source`` says where it
    was: the path of the image file relative to its folder, or the key inside its tar. ``fault`` is set when the sample
    could not be read properly; it is then quarantined with that error, and ``members`` may be incomplete. ``size`` is
    of the members together where only the headers of a tar were read, and ``members`` are empty. ``image`` is the
    extension of the image where that is known already.
    """

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    source: str = ""
    fault: PipelineError | None = None
    size: int | None = field(default=None, compare=False)
    image: str | None = None


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogateescape"))


def escape_key(path: str) -> str:
    """The sample key for a relative path without its extension; :func:`unescape_key` gives the path back.

    Percent signs, control characters, backslashes and bytes that are not UTF-8 become ``%XX``; so do the dots of the
    last component (WebDataset ends a key at the first one) and a leading ``__`` (WebDataset skips such members).
    """
    folder, slash, base = path.rpartition("/")
    key = _ESCAPE.sub(_percent, folder) + slash + _ESCAPE.sub(_percent, base).replace(".", "%2E")
    return "%5F" + key[1:] if key.startswith("__") else key


def unescape_key(key: str) -> str:
    """The relative path that :func:`escape_key` made this key from."""
    return _ESCAPED.sub(lambda match: bytes.fromhex(match[0].replace("%", "")).decode("utf-8", "surrogateescape"), key)


def split_member_name(name: str) -> tuple[str, str] | None:
    """Key and extension of a tar member by WebDataset's rule; None when the name has no key or no extension."""
    match = _MEMBER.fullmatch(name)
    return (match[1], match[2]) if match and match[2] else None


def sample_digest(members: Mapping[str, bytes]) -> str:
    """SHA-256, in hex, over the members in their order: of each the extension, its number of bytes, the bytes."""
    digest = hashlib.sha256()
    for extension, content in members.items():
        digest.update(f"{extension}\0{len(content)}\0".encode("utf-8", "surrogatepass"))
        digest.update(content)
    return digest.hexdigest()


def member_digests(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """SHA-256 of each member, by its extension."""
    return {name: hashlib.sha256(content).digest() for name, content in members.items()}


def is_image_extension(extension: str) -> bool:
    """Whether a whole extension, in any case and without its dot, is that of an image file."""
    return extension.lower() in _RANK


def choose_image(members: Iterable[str], image_member: str | None = None, carried: Container[str] = ()) -> str:
    """The extension of the member that is the image, by the rule at the top of this module; never one of ``carried``.

    Raises ImageMissingError when there is none, SampleFormatError when the sample already has a ``dci`` member beside
    its image.
    """
    names = list(members)
    if image_member is not None:
        chosen = image_member if image_member in names and image_member not in carried else None
        missing = f"the sample has no member {image_member!r}"
    else:
        images = [name for name in names if is_image_extension(name) and name not in carried]
        chosen = min(images, key=lambda name: _RANK[name.lower()], default=None)
        missing = "the sample has no image member"
    if chosen is None:
        raise ImageMissingError(f"{missing}; it has {', '.join(names) or 'none at all'}")
    refuse_stream(names, chosen)
    return chosen


def refuse_stream(members: Iterable[str], image: str) -> None:
    """Raise SampleFormatError where a member has the name already that the stream of the image would get."""
    if any(name.lower() == STREAM_EXTENSION for name in members):
        raise SampleFormatError(f"the sample has a {STREAM_EXTENSION!r} member beside its image {image!r}")
