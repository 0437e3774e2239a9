"""How the files of a source were chosen, so that it can be listed once more and compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ...settings import check_settings, parse_bytes, setting, settings_from_json, settings_to_json
from ...stored import FieldError, Fields
from ..shards.pairs import parse_pairs

if TYPE_CHECKING:
    pass

__all__ = ["Listing"]


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What decides which shards a location gives, whoever asks.

    ``shard_size`` is samples a shard for a folder of images, and about that for Parquet files; tars stay as they are.
    ``shard_bytes`` is how many bytes the source files of a shard may have in all, but for a single larger sample; a
    shard is full by whichever comes first.
    ``limit`` takes only the first so many samples. ``include`` are shell patterns; of a folder the relative paths that
    match one are taken, of tars and Parquet files the base names. ``image_column`` names the images in Parquet files.
    ``labels`` says which labels of a folder are taken along (:func:`.labels.folder.find_labels`); tars and Parquet
    files have theirs. ``carry`` are shell patterns of files that are taken along with the sample of their stem, images
    too; of a folder they are matched when it is listed, of tars when they are converted. ``pairs`` says which files of
    a folder belong to images elsewhere in it (:mod:`.shards.pairs`).

    Raises ConfigError for values that are none.
    """

    shard_size: int = setting(1000, "Samples a shard, for sources that are not tars.", least=1, most=10_000_000)
    shard_bytes: int | None = setting(
        None,
        "Bytes of a shard's source files, for sources that are not tars: 500MB, 2GiB. Whichever of both comes first.",
        least=1,
        metavar="SIZE",
        read=parse_bytes,
        write=str,
    )
    limit: int | None = setting(None, "Take only the first so many samples.", least=1)
    include: tuple[str, ...] = setting((), "Take only files that match this pattern. Repeatable.")
    image_column: str | None = setting(None, "Which column of Parquet files is the image.", metavar="NAME")
    labels: str = setting(
        "auto",
        "Labels of a folder: auto (what is unambiguous), none, folder (a class each), yolo, coco, voc, or a .csv, "
        ".jsonl or COCO .json, also a pattern.",
        metavar="KIND|FILE",
    )
    carry: tuple[str, ...] = setting(
        (),
        "Take matching files along byte for byte with the image of their name. Repeatable.",
        metavar="PATTERN",
    )
    pairs: tuple[str, ...] = setting(
        (),
        "Take files of one folder along byte for byte with the images of another: images:masks. Repeatable.",
        flag="--pair",
        metavar="IMAGES:FILES",
    )

    def __post_init__(self) -> None:
        check_settings(self)
        parse_pairs(self.pairs)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; :meth:`from_fields` reads it back."""
        return settings_to_json(self)

    @classmethod
    def from_fields(cls, told: Fields) -> Listing:
        """What :meth:`to_dict` wrote. Raises FieldError."""
        try:
            # What was written before there were labels had none.
            return cls(**{"labels": "none", **settings_from_json(cls, told)})
        except ConfigError as exc:
            raise FieldError(str(exc)) from exc
