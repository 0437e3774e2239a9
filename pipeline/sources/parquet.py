"""Parquet files with an image column as a source, read row group by row group.

The image is a column of bytes (plain or in a dictionary; of a fixed length where there is no other), or of structs
``{bytes, path}`` as Hugging Face ``datasets`` writes them. A row's key is the file's base name and the row's number,
``train-00000-of-00004/00000012``. The other columns are carried along, each as a member that WebDataset's usual
decoders understand:

============================  =======================  =========================================
column                        member                   content
============================  =======================  =========================================
whole number                  ``COLUMN.cls``           its digits
text                          ``COLUMN.txt``           UTF-8
bytes                         ``COLUMN.bin``           as they are
another image struct          ``COLUMN.jpg`` …         the image file
anything else                 ``COLUMN.json``          JSON
============================  =======================  =========================================

An empty value (null) has no member. What JSON lacks is text, as :mod:`.parquet_values` says, and bytes in base64; NaN
and the infinities are null there: no standard reader takes them. Pages whose checksums do not fit are damage. Columns
whose names differ in case alone cannot be told apart as members, so :func:`check_columns` refuses them.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO

from ...errors import SampleFormatError, ShardError, SourceError
from ...stored import dump_json
from ..shards.parquet_footer import column_chunks
from ..shards.samples import Sample, escape_key, is_image_extension
from .parquet_values import column_values, stored_type

if TYPE_CHECKING:
    import pyarrow.parquet as pq

__all__ = ["check_columns", "image_column", "iter_parquet_samples", "open_parquet", "row_key", "stored_bytes"]

_BATCH = 64
_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")
_UNFIT = re.compile(r"[^A-Za-z0-9_+-]")
_MAGIC = (
    (b"\xff\xd8", "jpg"),
    (b"\x89PNG", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
    (b"\0\0\0\x0cjP  ", "jp2"),
)


def open_parquet(stream: BinaryIO, *, source: str, unit: str | None = None) -> pq.ParquetFile:
    """A Parquet file; only its footer is read. Timestamps of 96 bits are in nanoseconds, or in ``unit``.

    Raises ShardError when it is none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without the buffer a row group is read page by page as it is needed, not all at once.
        return pq.ParquetFile(
            stream, pre_buffer=False, page_checksum_verification=True, coerce_int96_timestamp_unit=unit
        )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as exc:
        # The last one for names of columns.
        raise ShardError(f"not a readable Parquet file: {_first_line(exc)}", shard=source) from exc


def image_column(file: pq.ParquetFile, wanted: str | None, *, source: str) -> str:
    """The name of the image column: ``wanted``, or the only one that can be, or the one with a usual name.

    Raises SourceError when there is none, or when it takes the user to tell.
    """
    import pyarrow as pa

    schema = file.schema_arrow
    fitting: list[str] = [
        field.name for field in schema if _is_bytes(pa, field.type) or _is_image_struct(pa, field.type)
    ]
    # Bytes of one length are digests far more often than images.
    if wanted is not None or not fitting:
        fitting += [field.name for field in schema if pa.types.is_fixed_size_binary(_plain_type(pa, field.type))]
    if wanted is not None:
        if wanted in fitting:
            return wanted
        raise SourceError(
            f"{source} has no column {wanted!r} of bytes or of {{bytes, path}}; it has {', '.join(schema.names)}"
        )
    if len(fitting) == 1:
        return fitting[0]
    usual = next((name for name in _NAMES if name in fitting), None)
    if usual is not None:
        return usual
    if not fitting:
        raise SourceError(f"{source} has no column of bytes or of {{bytes, path}}; it has {', '.join(schema.names)}")
    raise SourceError(f"{source} has several columns of bytes: {', '.join(fitting)}; name one with --image-column")


def check_columns(file: pq.ParquetFile, image: str, *, source: str) -> None:
    """Refuse columns that cannot all become members of one sample, by the schema alone.

    Raises SourceError when two columns, or two fields of a struct, have one name, or columns become members whose names
    differ in case alone.
    """
    import pyarrow as pa

    names: set[str] = set()
    members: dict[str, str] = {}
    for field in file.schema_arrow:
        if field.name in names:
            raise SourceError(f"{source} has two columns {field.name!r}, of which readers see one; rename or drop one")
        names.add(field.name)
        if _has_twins(pa, field.type):
            raise SourceError(
                f"in the column {field.name!r} of {source} two fields of a struct have one name; rename one"
            )
        if field.name == image:
            continue
        for extension in _extensions(pa, field.type):
            member = f"{_member_stem(field.name)}.{extension}"
            other = members.setdefault(member.lower(), field.name)
            if other != field.name:
                raise SourceError(
                    f"the columns {other!r} and {field.name!r} of {source} would become members whose names differ in "
                    f"case alone ({member!r}), which readers take for one; rename or drop one"
                )


def stored_bytes(stream: BinaryIO, *, source: str) -> list[int]:
    """Bytes of each row group in a Parquet file. Raises ShardError when its footer does not tell."""
    try:
        return [sum(column.stored for column in columns) for columns in column_chunks(stream)]
    except ValueError as exc:
        raise ShardError(f"not a readable Parquet file: {exc}", shard=source) from exc


def _has_twins(pa: Any, kind: Any) -> bool:
    fields = [kind.field(number) for number in range(kind.num_fields)]
    twins = pa.types.is_struct(kind) and len({field.name for field in fields}) < len(fields)
    return twins or any(_has_twins(pa, field.type) for field in fields)


def _extensions(pa: Any, kind: Any) -> tuple[str, ...]:
    """What the values of a column may become, mostly the last; any image format is ``an image``."""
    kind = stored_type(kind)
    if _is_image_struct(pa, kind) and {field.name for field in kind} <= {"bytes", "path"}:
        return ("an image", "json")
    if _is_bytes(pa, kind) or pa.types.is_fixed_size_binary(kind):
        return ("bin",)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return ("txt",)
    return ("cls",) if pa.types.is_integer(kind) else ("json",)


def _member_stem(column: str) -> str:
    return _UNFIT.sub(_percent, column)


def row_key(stem: str, row: int) -> str:
    """The key of a row (counted from 0) of a file of that base name."""
    return f"{escape_key(stem)}/{row:08d}"


def iter_parquet_samples(
    stream: BinaryIO, *, source: str, stem: str, column: str, groups: range, limit: int | None = None
) -> Iterator[Sample]:
    """The rows of some row groups of a file as samples. Raises ShardError when it is none, or damaged."""
    import pyarrow as pa

    file = open_parquet(stream, source=source)
    micros = _Micros(stream, file, groups, source) if _has_int96(file) else None
    row = sum(file.metadata.row_group(number).num_rows for number in range(groups.start))
    stop = None if limit is None else row + limit
    try:
        extensions = {field.name: _extensions(pa, field.type)[-1] for field in file.schema_arrow}
        for batch in file.iter_batches(_BATCH, row_groups=list(groups)):
            told = {} if micros is None else micros.take(batch.num_rows)
            columns = [_read_column(pa, batch[name], told.get(name), name, source) for name in extensions]
            for values in zip(*columns, strict=True):
                if row == stop:
                    return
                yield _sample(row_key(stem, row), dict(zip(extensions, values, strict=True)), column, extensions)
                row += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as exc:
        raise ShardError(f"the Parquet file is damaged: {_first_line(exc)}", shard=source) from exc


def _has_int96(file: pq.ParquetFile) -> bool:
    return any(file.schema.column(number).physical_type == "INT96" for number in range(len(file.schema)))


class _Micros:
    """The columns with timestamps of 96 bits, which fit into microseconds where nanoseconds overflow."""

    def __init__(self, stream: BinaryIO, file: pq.ParquetFile, groups: range, source: str) -> None:
        other = open_parquet(stream, source=source, unit="us")
        own = file.schema_arrow
        self._names = [field.name for field in other.schema_arrow if field.type != own.field(field.name).type]
        batches = other.iter_batches(_BATCH, row_groups=list(groups), columns=self._names)
        # Batches of one file may end elsewhere when other columns are read.
        self._rows = (row for batch in batches for row in zip(*map(batch.column, self._names), strict=True))

    def take(self, count: int) -> dict[str, tuple[Any, ...]]:
        """The values of the next so many rows, by column."""
        return dict(zip(self._names, zip(*islice(self._rows, count), strict=True), strict=True))


def _read_column(pa: Any, array: Any, micros: Iterable[Any] | None, name: str, source: str) -> list[Any]:
    try:
        return column_values(array, micros)
    except (pa.ArrowException, ValueError, OverflowError) as exc:
        raise ShardError(
            f"the column {name!r} has a value that cannot be read: {_first_line(exc)}", shard=source
        ) from exc


def _sample(key: str, values: Mapping[str, Any], column: str, extensions: Mapping[str, str]) -> Sample:
    members: dict[str, bytes] = {}
    image = values[column]
    content, path = (image.get("bytes"), image.get("path")) if isinstance(image, Mapping) else (image, None)
    fault = None
    if content is None:
        reason = "is empty" if not path else f"only names the file {path!r}, which is not in the Parquet file"
        fault = SampleFormatError(f"the column {column!r} {reason}", key=key)
    else:
        members[_extension(content, path)] = content
    for name, value in values.items():
        if name != column and value is not None:
            extension, data = _carried(value, extensions[name])
            members[f"{_member_stem(name)}.{extension}"] = data
    return Sample(key, members, key, fault)


def _carried(value: Any, extension: str) -> tuple[str, bytes]:
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes) and value.keys() <= {"bytes", "path"}:
        return _extension(value["bytes"], value.get("path")), value["bytes"]
    if extension == "bin":
        return extension, value
    if extension == "json":
        return extension, dump_json(value, default=_base64, ensure_ascii=False).encode()
    return extension, str(value).encode()


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _extension(content: bytes, path: object) -> str:
    """An image extension, by the first bytes of the file, else by its name; what is unknown is tried as JPEG."""
    for magic, extension in _MAGIC:
        if content.startswith(magic):
            return extension
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    if content[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif"
    named = path.rpartition(".")[2].lower() if isinstance(path, str) else ""
    return named if is_image_extension(named) else "jpg"


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode())


def _plain_type(pa: Any, kind: Any) -> Any:
    """The type of the values, where a column holds them as indices into a dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_bytes(pa: Any, kind: Any) -> bool:
    kind = _plain_type(pa, kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_image_struct(pa: Any, kind: Any) -> bool:
    return bool(pa.types.is_struct(kind) and any(field.name == "bytes" and _is_bytes(pa, field.type) for field in kind))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
