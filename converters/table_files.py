"""Rows of text from .csv, .tsv and .parquet files of unknown origin. Every size is bounded before it is read."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fastcifar.converters.arrow_files import unpacked_bytes
from fastcifar.data.file_kind import HEAD_BYTES, file_kind
from fastcifar.errors import DataError, MissingExtraError, one_line
from fastcifar.io.reading import open_regular

log = logging.getLogger(__name__)
MAX_TABLE_BYTES = 2**29
MAX_ROWS = 5_000_000
MAX_COLUMNS = 2_000
MAX_LINE = 2**20
MAX_VALUE = 4_096
"""Characters of a path or label; longer values are cut after one more."""
HEAD_ROWS = 1_000
DELIMITERS = ",;\t|"
Row = tuple[int, list[str]]
"""Its number, and its values."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of a table."""

    path: Path
    names: tuple[str, ...] | None
    """Of the columns; None if the file does not tell them from values."""
    head: list[list[str]]
    """The first HEAD_ROWS rows."""
    read: Callable[[Sequence[int]], Iterator[Row]]
    """The values in these columns, row after row. Raises DataError."""
    unit: str = "line"
    """What a row number counts: 'line', from 1, or 'row', from 0."""


def read_table(path: Path) -> Table:
    """The table in a file. Raises DataError if it is damaged or too large."""
    try:
        with open_regular(path) as file:
            size = file.seek(0, 2)
        if size > MAX_TABLE_BYTES:
            raise ValueError(f"it has {size:,} bytes; expected at most {MAX_TABLE_BYTES:,}")
        table = _open_parquet(path) if path.suffix.lower() == ".parquet" else _open_csv(path)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    num_columns = len(table.names or (table.head[0] if table.head else ()))
    if num_columns < 2:
        raise DataError(
            f"{path}: has {['no rows', 'one column'][num_columns]}; expected a column of paths and one of labels"
        )
    if num_columns > MAX_COLUMNS:
        raise DataError(f"{path}: has {num_columns:,} columns; expected at most {MAX_COLUMNS:,}")
    return table


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read as a table ({one_line(error, 200)}); expected .csv, .tsv or .parquet")


def _open_csv(path: Path) -> Table:
    encoding = _find_encoding(path)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _find_delimiter(path, encoding)

    def read(columns: Sequence[int]) -> Iterator[Row]:
        try:
            for line, row in _csv_rows(path, encoding, delimiter):
                yield line, [row[column] for column in columns]
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error

    if encoding == "cp1252":
        log.warning("%s: not UTF-8; read as Windows-1252 (Latin-1)", path)
    head = [row for _, row in itertools.islice(_csv_rows(path, encoding, delimiter), HEAD_ROWS)]
    return Table(path=path, names=None, head=head, read=read)


def _csv_rows(path: Path, encoding: str, delimiter: str) -> Iterator[Row]:
    with io.TextIOWrapper(open_regular(path), encoding, newline="") as file:
        reader = csv.reader(_lines(file), delimiter=delimiter, strict=True)
        num_columns = num_rows = 0
        while (row := _next(reader)) is not None:
            if not row:  # an empty line
                continue
            num_columns, num_rows = num_columns or len(row), num_rows + 1
            if len(row) != num_columns:
                raise ValueError(f"line {reader.line_num} has {len(row)} values, the first one {num_columns}")
            if num_rows > MAX_ROWS:
                raise ValueError(f"it has over {MAX_ROWS:,} rows")
            yield reader.line_num, row


def _next(reader: Any) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}; is a quotation mark not closed?") from error


def _lines(file: IO[str]) -> Iterator[str]:
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise ValueError(f"a line has over {MAX_LINE:,} characters")
        yield line


def _find_encoding(path: Path) -> str:
    """UTF-8; UTF-16, as Excel's "Unicode text"; else Windows-1252, whose letters are those of Latin-1."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open_regular(path) as file:
        head = file.read(HEAD_BYTES)
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        file.seek(0)
        is_utf8 = True
        while chunk := file.read(2**20):
            if b"\0" in chunk:
                raise ValueError(f"it is {file_kind(head)}")
            try:
                if is_utf8:
                    decoder.decode(chunk)
            except UnicodeDecodeError:
                is_utf8 = False
        return "utf-8-sig" if is_utf8 else "cp1252"


def _find_delimiter(path: Path, encoding: str) -> str:
    """The one that splits the first lines into the same number of values, the highest."""
    counts = {}
    for delimiter in DELIMITERS:
        try:
            rows = [row for _, row in itertools.islice(_csv_rows(path, encoding, delimiter), 20)]
            counts[delimiter] = len(rows[0]) if rows else 0
        except ValueError:
            continue
    if max(counts.values(), default=0) > 1:
        return max(counts, key=lambda delimiter: counts[delimiter])
    with io.TextIOWrapper(open_regular(path), encoding) as file:
        first = file.readline(MAX_LINE)
    return max(DELIMITERS, key=first.count)


def _open_parquet(path: Path) -> Table:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtraError(f"{path}: reading parquet", "hf", one_line(error)) from error
    try:
        file = parquet.ParquetFile(path)
        facts, schema = file.metadata, file.schema_arrow
        if facts.num_rows > MAX_ROWS:
            raise ValueError(f"it has {facts.num_rows:,} rows; expected at most {MAX_ROWS:,}")
        if len(schema) > MAX_COLUMNS:
            raise ValueError(f"it has {len(schema):,} columns; expected at most {MAX_COLUMNS:,}")
        names = [field.name for field in schema if _is_plain(field.type) and not field.name.startswith("__index_")]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"it has two columns {twice[0]!r}")

        def read(columns: Sequence[int]) -> Iterator[Row]:
            chosen = [names[column] for column in columns]
            try:
                if (num_bytes := sum(_unpacked_bytes(file, chosen))) > MAX_TABLE_BYTES:  # which are held in memory
                    raise ValueError(
                        f"{', '.join(chosen)} have {num_bytes:,} bytes; expected at most {MAX_TABLE_BYTES:,}"
                    )
                yield from enumerate(_parquet_rows(path, chosen))
            except Exception as error:  # pyarrow raises many types for damaged files
                raise _damaged(path, error) from error

        head = list(itertools.islice(_parquet_rows(path, names), HEAD_ROWS))
    except Exception as error:  # pyarrow raises many types for damaged files
        raise ValueError(one_line(error)) from error
    return Table(path=path, names=tuple(names), head=head, read=read, unit="row")


def _is_plain(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    tests = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean)
    return any(test(kind) for test in tests)


def _parquet_rows(path: Path, names: Sequence[str]) -> Iterator[list[str]]:
    """Rows of a parquet file. Text is read as a dictionary: a long value may be repeated millions of times."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    file = parquet.ParquetFile(path, read_dictionary=list(names))
    if (num_bytes := max(_unpacked_bytes(file, names), default=0)) > MAX_TABLE_BYTES:
        raise ValueError(f"a row group has {num_bytes:,} bytes; expected at most {MAX_TABLE_BYTES:,}")
    for batch in _batches(file, names):
        values_of = []
        for name in names:
            column = batch.column(name)
            if isinstance(column, pa.DictionaryArray):
                values = _texts(column.dictionary)
                values_of.append([values[index] if index is not None else "" for index in column.indices.to_pylist()])
            else:
                values_of.append(_texts(column))
        yield from map(list, zip(*values_of, strict=True))


def _unpacked_bytes(file: Any, names: Sequence[str]) -> Iterator[int]:
    """Of these columns in each row group."""
    for group in range(file.num_row_groups):
        yield unpacked_bytes(file.metadata.row_group(group), names)


def _batches(file: Any, names: Sequence[str]) -> Iterator[Any]:
    """Batches of one row group each: a batch of several would hold all their text."""
    for group in range(file.num_row_groups):
        yield from file.iter_batches(batch_size=2**14, row_groups=[group], columns=list(names))


def _texts(column: Any) -> list[str]:
    import pyarrow.compute as compute
    import pyarrow.types as types

    if types.is_string(column.type) or types.is_large_string(column.type):
        column = compute.utf8_slice_codeunits(column, 0, MAX_VALUE + 1)
    return ["" if value is None else str(value) for value in column.to_pylist()]
