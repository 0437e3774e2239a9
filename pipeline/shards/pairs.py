"""Files that belong to an image by their place: ``images:masks`` gives ``images/a/1.jpg`` the file ``masks/a/1.png``.

A pair has two sides. Each is a folder, or a path without extension in which one ``*`` stands for what both have in
common: ``images:masks/*_mask`` is short for ``images/*:masks/*_mask``. Where a side has an extension (``*.png``), only
files of that one belong to it.

In the sample of its image such a file is the member ``masks.png`` or ``masks_mask.png``: the folder's own name, what
follows the ``*``, and the extension. Where two pairs would give an image members of one name, the folder's whole path
takes the place of its name (``a-masks.png``, ``b-masks.png``). Both ways follow from the pairs alone, which is how
``decompress`` puts the file back where it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from ...errors import ConfigError

__all__ = ["Pair", "parse_pairs", "restored_name"]

_UNFIT = re.compile(r"[^A-Za-z0-9_+-]")


@dataclass(frozen=True, kw_only=True)
class _Side:
    """Paths that begin and end so, before the extension; of any extension, where none is named."""

    prefix: str
    suffix: str
    extension: str | None

    def middle(self, path: str) -> str | None:
        """What stands for the ``*``, None when the path is no such one."""
        stem, _, extension = path.rpartition(".")
        if self.extension is not None and extension.lower() != self.extension.lower():
            return None
        return self.middle_of_stem(stem)

    def middle_of_stem(self, stem: str) -> str | None:
        """The same for a path without its extension."""
        fits = len(stem) > len(self.prefix) + len(self.suffix)
        if not fits or not stem.startswith(self.prefix) or not stem.endswith(self.suffix):
            return None
        return stem[len(self.prefix) : len(stem) - len(self.suffix)]

    def stem(self, middle: str) -> str:
        """The path without extension in which ``middle`` stands for the ``*``."""
        return f"{self.prefix}{middle}{self.suffix}"

    def meets(self, other: _Side) -> bool:
        """Whether a path might be of both."""
        longer, shorter = sorted((self.prefix, other.prefix), key=len, reverse=True)
        ends = sorted((self.suffix, other.suffix), key=len, reverse=True)
        return longer.startswith(shorter) and ends[0].endswith(ends[1])


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Images, and files that belong to them. ``text`` is how it was written, ``name`` what their members begin with."""

    text: str
    image: _Side
    file: _Side
    name: str

    def has_file(self, path: str) -> bool:
        """Whether the file at this path is one that would belong to an image."""
        return self.file.middle(path) is not None

    def file_stem(self, image: str) -> str | None:
        """The path, without extension, of the files that belong to the image at a path; None if none can."""
        middle = self.image.middle(image)
        return None if middle is None else self.file.stem(middle)

    def member(self, path: str) -> str:
        """The member that the file at this path becomes."""
        return f"{self.name}.{path.rpartition('.')[2]}"

    def restored(self, stem: str, member: str) -> str | None:
        """The path of a member of the image with this path without extension; None when it is not of this pair."""
        name, dot, extension = member.rpartition(".")
        middle = self.image.middle_of_stem(stem)
        if middle is None or not dot or name != self.name:
            return None
        return f"{self.file.stem(middle)}.{extension}"


def parse_pairs(texts: Iterable[str]) -> tuple[Pair, ...]:
    """Pairs as users write them. Raises ConfigError for one that cannot be understood, or has no name of its own."""
    pairs = [_parsed(text) for text in dict.fromkeys(texts)]
    alike = [
        (one, other)
        for one, other in combinations(range(len(pairs)), 2)
        if pairs[one].name.lower() == pairs[other].name.lower() and pairs[one].image.meets(pairs[other].image)
    ]
    for number in {number for both in alike for number in both}:
        folder = pairs[number].file.prefix.rstrip("/").replace("/", "-")
        pairs[number] = replace(pairs[number], name=_member_name(folder + pairs[number].file.suffix))
    for one, other in combinations(pairs, 2):
        extensions = one.file.extension, other.file.extension
        apart = None not in extensions and extensions[0] != extensions[1]
        if one.name.lower() == other.name.lower() and one.image.meets(other.image) and not apart:
            raise ConfigError(
                f"the pairs {one.text} and {other.text} would give an image two members {one.name!r}; leave one out, "
                "or give each the extension of its files"
            )
    return tuple(pairs)


def restored_name(pairs: Sequence[Pair], stem: str, member: str) -> str:
    """The path of a member of the sample with this path without extension, as it was in the folder."""
    paths = (pair.restored(stem, member) for pair in pairs)
    return next((path for path in paths if path is not None), f"{stem}.{member}")


def _parsed(text: str) -> Pair:
    images, colon, files = text.partition(":")
    if not colon or not images.strip() or not files.strip() or ":" in files:
        raise ConfigError(f"a pair is two folders such as images:masks, not {text!r}")
    image, file = _side(images, text), _side(files, text)
    if image == file:
        raise ConfigError(f"both sides of the pair {text!r} are the same")
    folder = file.prefix.rstrip("/").rpartition("/")[2]
    return Pair(text=text, image=image, file=file, name=_member_name(folder + file.suffix))


def _side(text: str, pair: str) -> _Side:
    path = text.strip().removeprefix("./").rstrip("/")
    if path in ("", "."):
        path = "*"
    if "*" not in path:
        path += "/*"
    prefix, _, rest = path.partition("*")
    suffix, dot, extension = rest.rpartition(".")
    if not dot:
        suffix, extension = rest, ""
    parts = prefix.split("/")
    if "*" in rest or "/" in extension or path.startswith("/") or ".." in parts or "" in parts[:-1] or "\0" in path:
        raise ConfigError(
            f"a side of a pair is a folder of the source, or a path such as 'masks/*_mask.png' with one *; {text!r} in "
            f"{pair!r} is neither"
        )
    if "/" in suffix:
        raise ConfigError(f"the * of a pair must be in the last part of a path, unlike that of {text!r} in {pair!r}")
    return _Side(prefix=prefix, suffix=suffix, extension=extension or None)


def _member_name(text: str) -> str:
    fit = text.strip("_-. ")
    return _UNFIT.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "replace")), fit)
