"""Parquet and Arrow files of unknown origin, read by pyarrow a few rows at a time, each size bounded.

Not by Hugging Face's `datasets`, which copies a Parquet file into the user's cache before it reads it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fastcifar.converters.images import MAX_IMAGE_BYTES
from fastcifar.data.file_kind import HEAD_BYTES, UNKNOWN, file_kind
from fastcifar.data.image_files import ImageError
from fastcifar.errors import DataError, MissingExtraError, one_line
from fastcifar.io.reading import open_regular

SUFFIXES = (".parquet", ".arrow")
MAX_ROWS = 20_000_000
"""Of all files of a dataset."""
MAX_METADATA_BYTES = 16 * 2**20
MAX_GROUP_BYTES = 2**30
MAX_EXPANSION = 100
"""Image files are compressed already: a row group of over MAX_GROUP_BYTES that was compressed more is refused."""
BATCH_ROWS = 4
"""Rows of images that are read at a time: a dictionary makes many large cells of a few bytes."""
LABEL_ROWS = 65_536
MAX_LABEL_BYTES = 2**28
"""Of the labels of a row group, unpacked: a file of kilobytes may hold gigabytes of text."""
_BUFFER_BYTES = 2**20
_FIELDS = ("bytes", "path")
"""Of an image that is a struct."""
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


class Cell(NamedTuple):
    """An image as a row holds it."""

    content: bytes | None
    path: str | None


class ArrowFile:
    """A Parquet file, or an Arrow stream. Holds its schema; the file is opened for each pass.

    Raises DataError for a file that is damaged, or of another kind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_parquet = path.suffix.lower() == ".parquet"
        pa = import_pyarrow(path)
        with self._reading(), ExitStack() as resources:
            if self._is_parquet:
                file = self._open_parquet(resources)
                self.schema: Any = file.schema_arrow
                self.num_rows: int = file.metadata.num_rows
            else:
                self.schema = self._open_stream(resources).schema
                self.num_rows = self._count_rows(pa)
        if not 0 <= self.num_rows <= MAX_ROWS:
            raise DataError(f"{path}: {self.num_rows:,} rows; expected at most {MAX_ROWS:,}")

    def features(self) -> dict[str, dict[str, Any]]:
        """What `datasets` says about each column, e.g. {'_type': 'ClassLabel', 'names': […]}; empty if nothing."""
        content = (self.schema.metadata or {}).get(b"huggingface", b"{}")
        try:
            if len(content) > MAX_METADATA_BYTES:
                raise ValueError(f"{len(content):,} bytes")
            features = json.loads(content).get("info", {}).get("features", {})
            return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
        except (ValueError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{self.path}: its 'huggingface' metadata cannot be read ({one_line(error, 100)}); write it again"
            ) from error

    def labels(self, column: str) -> Iterator[tuple[list[Any], Any]]:
        """The column, part after part: the distinct values, and the index of each row's value, (N,) int64; -1: null."""
        pa = import_pyarrow(self.path)
        with self._reading(), ExitStack() as resources:
            if self._is_parquet:
                kind = self.schema.field(column).type
                is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
                batches = _label_batches(self._open_parquet(resources, [column] if is_text else None), column)
            else:
                batches = self._stream_batches(resources)
            for batch in batches:
                values = batch.column(batch.schema.get_field_index(column))
                if not pa.types.is_dictionary(values.type):
                    values = values.dictionary_encode()
                yield values.dictionary.to_pylist(), values.indices.cast("int64").fill_null(-1).to_numpy(False)

    def cells(self, column: str, start: int) -> Iterator[Cell | ImageError]:
        """The images from row `start` on. An ImageError for a cell that is too large."""
        with self._reading(), ExitStack() as resources:
            for array, skipped in self._image_arrays(column, start, resources):
                for first in range(skipped, len(array), BATCH_ROWS):
                    part = array.slice(first, BATCH_ROWS)
                    sizes = self._sizes(part)
                    for index, size in enumerate(sizes):
                        if size > MAX_IMAGE_BYTES:
                            yield ImageError(f"has {size / 2**20:,.0f} MiB; expected at most {MAX_IMAGE_BYTES >> 20}")
                        else:
                            yield _to_cell(part[index].as_py())

    def _image_arrays(self, column: str, start: int, resources: ExitStack) -> Iterator[tuple[Any, int]]:
        """Arrays of the column, and how many rows to skip in each."""
        if not self._is_parquet:
            for batch in self._stream_batches(resources):
                if start < batch.num_rows:
                    yield batch.column(batch.schema.get_field_index(column)), start
                start = max(0, start - batch.num_rows)
            return
        file = self._open_parquet(resources)
        kind = self.schema.field(column).type
        names = [column]
        if hasattr(kind, "num_fields") and kind.num_fields:
            names = [f"{column}.{name}" for name in _FIELDS if kind.get_field_index(name) >= 0]
        for group in range(file.metadata.num_row_groups):
            facts = file.metadata.row_group(group)
            if start >= facts.num_rows:
                start -= facts.num_rows
                continue
            if facts.total_byte_size > max(MAX_GROUP_BYTES, MAX_EXPANSION * _compressed_size(facts)):
                raise ValueError(f"row group {group} unpacks to {facts.total_byte_size / 2**30:,.0f} GiB")
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=names, use_threads=False):
                if start < batch.num_rows:
                    yield batch.column(0), start
                start = max(0, start - batch.num_rows)

    def _sizes(self, part: Any) -> list[int]:
        """Bytes of each cell."""
        import pyarrow as pa
        from pyarrow import compute

        fields = [part]
        if pa.types.is_struct(part.type):
            indices = (part.type.get_field_index(name) for name in _FIELDS)
            fields = [part.field(index) for index in indices if index >= 0]
            fields = [field for field in fields if not pa.types.is_null(field.type)]
        lengths = (compute.binary_length(field).to_pylist() for field in fields)
        return [sum(length or 0 for length in row) for row in zip(*lengths, strict=True)]

    def _open_parquet(self, resources: ExitStack, read_dictionary: Sequence[str] | None = None) -> Any:
        from pyarrow import parquet

        file = resources.enter_context(open_regular(self.path))
        return parquet.ParquetFile(
            file,
            read_dictionary=read_dictionary,
            buffer_size=_BUFFER_BYTES,  # else a column of a row group is read at once
            pre_buffer=False,
            thrift_string_size_limit=MAX_METADATA_BYTES,
            thrift_container_size_limit=2**20,
        )

    def _open_stream(self, resources: ExitStack) -> Any:
        import pyarrow as pa

        with open_regular(self.path) as file:
            head = file.read(6)
            file.seek(-min(8, file.seek(0, 2)), 2)
            tail = file.read()
        if head == b"ARROW1":
            raise ValueError("a Feather file; write it with save_to_disk or to_parquet of `datasets`")
        if tail != _END_OF_STREAM:
            raise ValueError("no Arrow stream ends here")
        return pa.ipc.open_stream(resources.enter_context(pa.memory_map(str(self.path))))

    def _stream_batches(self, resources: ExitStack) -> Iterator[Any]:
        for batch in self._open_stream(resources):
            batch.validate(full=True)  # else offsets may point outside the file
            yield batch

    def _count_rows(self, pa: Any) -> int:
        with pa.memory_map(str(self.path)) as file:
            for message in pa.ipc.MessageReader.open_stream(file):
                if _is_compressed(memoryview(message.metadata)):
                    raise ValueError("compressed; write it with save_to_disk or to_parquet of `datasets`")
        with ExitStack() as resources:
            return sum(batch.num_rows for batch in self._open_stream(resources))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """DataError for what pyarrow raises for a damaged file."""
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, OSError, ValueError, LookupError, RuntimeError, EOFError) as error:
            name = "Parquet" if self._is_parquet else "Arrow"
            raise DataError(f"{self.path}: truncated or corrupt {name} file ({self._reason(error)})") from error

    def _reason(self, error: Exception) -> str:
        """The reason of pyarrow, or that the file is of another kind."""
        try:
            with open_regular(self.path) as file:
                kind = file_kind(file.read(HEAD_BYTES))
        except (OSError, ValueError) as unreadable:
            return one_line(getattr(unreadable, "strerror", None) or unreadable)
        return one_line(error, 200) if kind == "a Parquet file" or kind.startswith(UNKNOWN) else f"it is {kind}"


def import_pyarrow(what: object) -> Any:
    """pyarrow. Raises MissingExtraError for `what`."""
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtraError(str(what), "hf", one_line(error)) from error
    return pyarrow


def _label_batches(file: Any, column: str) -> Iterator[Any]:
    for group in range(file.metadata.num_row_groups):
        facts = file.metadata.row_group(group)
        num_bytes = unpacked_bytes(facts, [column])
        if num_bytes > MAX_LABEL_BYTES:
            raise ValueError(
                f"{column!r} of row group {group} unpacks to {num_bytes / 2**20:,.0f} MiB; is it the label?"
            )
        yield from file.iter_batches(LABEL_ROWS, row_groups=[group], columns=[column], use_threads=False)


def unpacked_bytes(group: Any, names: Sequence[str]) -> int:
    """Of the columns `names` of a row group, by its metadata."""
    chunks = (group.column(index) for index in range(group.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in names)


def _to_cell(value: Any) -> Cell:
    if isinstance(value, dict):
        return Cell(value.get("bytes"), value.get("path"))
    return Cell(value, None)


def _compressed_size(group: Any) -> int:
    return sum(group.column(index).total_compressed_size for index in range(group.num_columns))


def _is_compressed(message: memoryview) -> bool:
    """Whether a message has compressed buffers, by its FlatBuffers header, which pyarrow has verified."""
    position = struct.unpack_from("<I", message, 0)[0]
    kind, header = _table_field(message, position, 1), _table_field(message, position, 2)
    if not kind or not header:
        return False
    header += struct.unpack_from("<I", message, header)[0]
    if message[kind] == 2 and (batch := _table_field(message, header, 1)):  # a dictionary: a batch within
        header = batch + struct.unpack_from("<I", message, batch)[0]
    return message[kind] in (2, 3) and _table_field(message, header, 3) != 0


def _table_field(message: memoryview, table: int, index: int) -> int:
    """The position of a field of a FlatBuffers table; 0 if it is absent."""
    entries = table - struct.unpack_from("<i", message, table)[0]
    if 4 + 2 * index >= struct.unpack_from("<H", message, entries)[0]:
        return 0
    offset = struct.unpack_from("<H", message, entries + 4 + 2 * index)[0]
    return table + offset if offset else 0
