"""Tables: CSV, TSV, JSON lines and Parquet as rows with a name each, so that a message can say where.

The standard library's `csv` and `json` read them and not pandas: they know on which line of the file a row begins, and a
row that is broken costs that row alone.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from headstart.data.report import SetAside, listing
from headstart.errors import DataError, missing_dependency
from headstart.words import counted

#: The tables that can be read, by how their names end.
TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".parquet", ".pq")

# A text may be a book: the module's own limit is 131,072 characters a field. What is beyond ours is set aside when the
# row is whole, so that the rows after it are read as what they are.
_FIELD_LIMIT = 2**31 - 1
MAX_CELL = 10_000_000  # characters

# A Parquet file packs equal values into next to nothing. One that unpacks to more than this is refused.
_MAX_UNPACKED = (50, 1_000_000_000)  # times its own size, plus bytes


@dataclass
class Table:
    """The rows of a table.

    Attributes:
        columns: Names, in their order.
        rows: The place of each row in the file (`"line 7"`, `"row 7"`), and its values in the order of `columns`.
        set_aside: Rows that could not be read.
        notes: What else the user should know.
    """

    columns: list[str]
    rows: list[tuple[str, list[Any]]]
    set_aside: list[SetAside] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_table(path: str | Path) -> Table:
    r"""Give the rows of a table, and those that cannot be read.

    CSV may be separated by commas, semicolons or tabs. Text is UTF-8 (a byte-order mark is understood, UTF-16's too);
    lines that are not are read as Windows-1252, counted and named in `notes`. `line N` counts lines of the file from 1,
    as editors do; `row N` of a Parquet file counts rows from 1.

    Args:
        path: The file; the end of its name says what it is.

    Raises:
        DataError: If the file is missing or no table.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "reviews.csv")
        >>> _ = path.write_text('text,label\n"good, very good",1\nbad,0\n')
        >>> read_table(path).rows
        [('line 2', ['good, very good', '1']), ('line 3', ['bad', '0'])]
    """
    path = Path(path).expanduser()
    suffix = path.suffix.casefold()
    if suffix not in TABLE_SUFFIXES:
        raise DataError(f"{path} is not a table that can be read: expected {', '.join(TABLE_SUFFIXES)}.")
    if not path.is_file():
        raise DataError(f"There is no file {str(path)!r}.")
    if suffix in {".parquet", ".pq"}:
        table = _read_parquet(path)
    else:
        lines, notes = _decoded_lines(path)
        table = _read_json_lines(path, lines) if suffix in {".jsonl", ".ndjson"} else _read_csv(lines, suffix)
        table.notes += notes
    _set_long_cells_aside(table)
    if not table.columns:
        raise DataError(f"{path} is empty.")
    if doubled := sorted({name for name in table.columns if name and table.columns.count(name) > 1}):
        raise DataError(
            f"{path} has more than one column named {', '.join(map(repr, doubled))}. Rename them."
        )
    if not table.rows and not table.set_aside:
        raise DataError(f"{path} has the columns {', '.join(map(repr, table.columns))} and no rows.")
    return table


def _set_long_cells_aside(table: Table) -> None:
    kept = []
    for place, values in table.rows:
        longest = max((len(value) for value in values if isinstance(value, str)), default=0)
        if longest > MAX_CELL:
            reason = f"a text of {longest:,} characters; up to {MAX_CELL:,} are read"
            table.set_aside.append(SetAside(place, reason))
        else:
            kept.append((place, values))
    table.rows = kept


# ---- text


def _decoded_lines(path: Path) -> tuple[list[str], list[str]]:
    """Give the lines of a text file with their ends, and what there is to say about their encoding."""
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        data = data.decode("utf-16", errors="replace").encode("utf-8", errors="replace")
    if b"\0" in data:
        raise DataError(f"{path} is not a text file (it holds zero bytes). Save a spreadsheet as CSV first.")
    lines: list[str] = []
    other: list[int] = []
    # Of bytes, `splitlines` knows the three line ends alone; of text, also characters that occur within texts.
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True), start=1):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            other.append(number)
            lines.append(_decode_windows(line))
    if not other:
        return lines, []
    how = "is not UTF-8 and was" if len(other) == 1 else "are not UTF-8 and were"
    places = ", ".join(listing(other))
    return lines, [f"{counted(len(other), 'line')} {how} read as Windows-1252: line {places}."]


def _decode_windows(line: bytes) -> str:
    try:
        return line.decode("cp1252")
    except UnicodeDecodeError:
        return line.decode("latin-1")  # knows every byte


# ---- CSV


def _read_csv(lines: list[str], suffix: str) -> Table:
    header = next((line for line in lines if line.strip()), "")
    if suffix == ".csv":
        return _parse_csv(lines, delimiter=max(",;\t", key=header.count), quoting=csv.QUOTE_MINIMAL)
    # In many TSV files a quotation mark is a character like any other: so where quoting breaks rows.
    quoted = _parse_csv(lines, delimiter="\t", quoting=csv.QUOTE_MINIMAL)
    if not quoted.set_aside:
        return quoted
    plain = _parse_csv(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    return min(plain, quoted, key=lambda table: len(table.set_aside))


def _parse_csv(lines: list[str], *, delimiter: str, quoting: Literal[0, 3]) -> Table:
    table = Table([], [])
    for first, last, fields in _records(lines, delimiter=delimiter, quoting=quoting):
        if isinstance(fields, str):
            # Every line that a broken quotation swallowed is a line lost.
            table.set_aside += [SetAside(f"line {number}", fields) for number in range(first, last + 1)]
        elif not any(field.strip() for field in fields):
            continue
        elif not table.columns:
            table.columns = [field.strip() for field in fields]
        elif len(fields) != len(table.columns):
            reason = f"{counted(len(fields), 'field')} instead of {len(table.columns)}"
            if len(fields) > len(table.columns):
                reason += f" (a text with {delimiter!r} in it must stand in quotation marks)"
            table.set_aside.append(SetAside(f"line {first}", reason))
        else:
            table.rows.append((f"line {first}", list(fields)))
    return table


def _records(
    lines: list[str], *, delimiter: str, quoting: Literal[0, 3]
) -> Iterator[tuple[int, int, list[str] | str]]:
    """Give the first and the last line of each record, and its fields, or what is wrong with it."""
    limit_before = csv.field_size_limit(_FIELD_LIMIT)
    try:
        reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
        while True:
            first = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                unclosed = "unexpected end of data" in str(error)
                reason = (
                    "a quotation mark opens and never closes" if unclosed else f"broken quotation ({error})"
                )
                yield first, reader.line_num, reason
            else:
                yield first, reader.line_num, fields
    finally:
        csv.field_size_limit(limit_before)


# ---- JSON lines and Parquet


def _read_json_lines(path: Path, lines: list[str]) -> Table:
    columns: dict[str, None] = {}
    records: list[tuple[str, dict[str, Any]]] = []
    set_aside: list[SetAside] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            set_aside.append(SetAside(f"line {number}", f"not JSON ({error})"))
            continue
        if not isinstance(record, dict):
            set_aside.append(SetAside(f"line {number}", "not a JSON object: expected one {...} a line"))
            continue
        columns.update(dict.fromkeys(record))
        records.append((f"line {number}", record))
    if not records and set_aside:
        raise DataError(f"{path}: no line is a JSON object ({set_aside[0]}). Expected one {{...}} a line.")
    rows = [(place, [record.get(name) for name in columns]) for place, record in records]
    return Table(list(columns), rows, set_aside)


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise missing_dependency("pyarrow", needed_for="Parquet tables", extra="tables") from error

    try:
        with parquet.ParquetFile(path) as file:
            # Lists and bytes (embeddings, images) are neither texts nor labels, and may be large.
            kept = [
                column
                for column in file.schema_arrow
                if not (pa.types.is_nested(column.type) or pa.types.is_binary(column.type))
            ]
        columns = [column.name for column in kept]
        texts = [column.name for column in kept if pa.types.is_string(column.type)]
        # Each different text is unpacked once, and measured before it is repeated.
        with parquet.ParquetFile(path, read_dictionary=texts) as file:
            values = _unpacked(path, file.iter_batches(columns=columns), columns)
    except DataError:
        raise
    except Exception as error:  # a damaged file can raise anything in a decoder
        if isinstance(error, ImportError):
            raise
        raise DataError(f"{path} cannot be read as Parquet: {str(error) or type(error).__name__}") from error
    rows = zip(*(values[name] for name in columns), strict=True)
    return Table(columns, [(f"row {number}", list(row)) for number, row in enumerate(rows, start=1)])


def _unpacked(path: Path, batches: Iterator[Any], columns: list[str]) -> dict[str, list[Any]]:
    """Give the values of each column, and refuse a file that unpacks to many times its size."""
    from pyarrow import compute, types

    factor, rest = _MAX_UNPACKED
    room = factor * path.stat().st_size + rest
    values: dict[str, list[Any]] = {name: [] for name in columns}
    for batch in batches:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            size = 8 * len(column)
            if types.is_dictionary(column.type):
                size += (
                    compute.sum(compute.binary_length(column.dictionary).take(column.indices)).as_py() or 0
                )
            room -= size
            if room < 0:
                raise DataError(
                    f"{path} has {path.stat().st_size:,} bytes, and unpacks to more than {factor} times as much and "
                    f"{rest:,} bytes. If it is meant to, save it as CSV."
                )
            values[name] += column.to_pylist()
    return values
