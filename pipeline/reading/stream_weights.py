"""One rule for weights that nobody named: a stream tells the fingerprint, and this finds the file.

It is looked for in the destination that the stream is from (:mod:`.carried_weights`), then among the weights that are
installed, then in the folders of ``DISCERNIBLE_WEIGHTS_PATH``. A file is taken for what it holds, never for what it is
called.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...codec import LONGEST_FILE, WeightsFile, fingerprint_of, list_weights, parse_weights_file, read_weights_file
from ...errors import WeightsFormatError, WeightsNotFoundError
from ..storage.locations import read_if_there, shown, within
from .carried_weights import carried_name

if TYPE_CHECKING:
    from ..storage.s3_client import S3Options
    from .files import ShardFiles

__all__ = ["WEIGHTS_PATH", "weights_of"]

WEIGHTS_PATH = "DISCERNIBLE_WEIGHTS_PATH"
"""The environment variable with folders of weights files, in the way of PATH."""


def weights_of(
    fingerprint: str,
    folder: str | None = None,
    *,
    s3: S3Options | None = None,
    files: ShardFiles | None = None,
    own: Sequence[Path] = (),
) -> WeightsFile:
    """The weights with a fingerprint.

    Args:
        fingerprint: eight hex digits, as a stream or a receipt tells them.
        folder: the folder, prefix or URL path of the shards that the stream is from, where that is known.
        s3: how S3 is reached.
        files: what keeps copies of remote files; None reads them directly.
        own: files that the user named, one of which it may be; they come behind the installed ones.

    Raises:
        WeightsNotFoundError: there is none, with all the places that were looked at.
        WeightsFormatError: a file has the name of this fingerprint and holds something else, or is damaged.
        StorageError: the folder cannot be read.
    """
    name = carried_name(fingerprint)
    looked: list[str] = []
    if folder is not None:
        place = within(folder, name)
        data = read_if_there(place, s3, limit=LONGEST_FILE) if files is None else files.read(place, LONGEST_FILE)
        if data is not None:
            return _claimed(parse_weights_file(data, shown(place)), fingerprint)
        looked.append(shown(place))
    shipped = {entry.name: entry.path for entry in list_weights()}
    for path in shipped.values():
        if fingerprint_of(path) == fingerprint:
            return read_weights_file(path)
    known = ", ".join(f"{name} {fingerprint_of(path)}" for name, path in shipped.items())
    looked.append(f"the installed ones ({known or 'none'})")
    for path in own:
        # One that is no weights file is an error, because the user named it.
        file = read_weights_file(path)
        if file.fingerprint == fingerprint:
            return file
        looked.append(str(path))
    folders = [Path(each) for each in os.environ.get(WEIGHTS_PATH, "").split(os.pathsep) if each]
    for each in folders:
        named = each / Path(name).name
        if named.is_file():
            return _claimed(read_weights_file(named), fingerprint)
        for path in sorted(each.glob("*.safetensors")):
            if fingerprint_of(path) == fingerprint:
                return _claimed(read_weights_file(path), fingerprint)
        looked.append(str(each))
    if not folders:
        looked.append(f"{WEIGHTS_PATH} (which is not set)")
    raise WeightsNotFoundError(
        f"the weights {fingerprint}, without which the stream cannot be decoded, are in none of the places that were "
        f"looked at: {'; '.join(looked)}. A destination carries them as {name}: put that file back there, name the "
        f"folder that holds it in {WEIGHTS_PATH}, or give the file itself as weights"
    )


def _claimed(file: WeightsFile, fingerprint: str) -> WeightsFile:
    if file.fingerprint != fingerprint:
        raise WeightsFormatError(
            f"{file.place} holds the weights {file.fingerprint}, not the {fingerprint} that its name and the streams "
            "tell: it is damaged or forged; remove it, or put the right file in its place"
        )
    return file
