"""Named columns of a CSV, Parquet or Arrow file, each a NumPy array when it is asked for.

pyarrow reads them all; without it, Python's own csv reads CSV, more slowly and to the same columns. What a column is
good for, a feature or a label, is decided elsewhere.
"""

import contextlib
import csv
import gzip
import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from gpusoftmax.exceptions import DataError

NUMBER, TEXT, EMPTY = "numbers", "text", "empty"  # kinds of columns; any other kind is a name of pyarrow's
MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")  # in CSV
DELIMITERS = ",;\t|"
CODE = re.compile(r"\s*[+-]?(0[\dxX]|\d{19})")  # a label that only looks like a number, as 007 and 0xA do
QUOTED = re.compile(rf'(?<![^{DELIMITERS}])"(?:[^"]|"")*"?')
BLOCK_BYTES = 1 << 24  # of CSV that pyarrow reads at once, each of which must hold a row


@dataclass(frozen=True)
class Column:
    """One column.

    kind : NUMBER, TEXT, EMPTY or what else it holds, in words
    load : callable
        Returns an array (n_rows,): numbers, NaN where they are missing; or objects, each a str or None.
    """

    kind: str
    load: Callable[[], np.ndarray]


def read_columns(path: Path, suffix: str, target: str | None = None) -> dict[str, Column]:
    """Return the columns of a file by name, in its order.

    A column of vectors of one length, such as embeddings, is as many columns: ``name[0]``, ``name[1]``, …

    Parameters
    ----------
    path : Path
    suffix : {".csv", ".tsv", ".parquet", ".pq", ".arrow", ".feather", ".ipc"}
    target : str or None
        The column of labels; in CSV it is text where some would lose their name as numbers, such as 007.

    Raises
    ------
    DataError
        It is not a file of this format, it has no rows, or a name occurs twice.
    ImportError
        There is no pyarrow; the message says how to install it.
    """
    if suffix in (".csv", ".tsv"):
        return _read_csv(path, suffix, target)
    try:
        import pyarrow as pa
        from pyarrow import feather, parquet
    except ImportError as error:
        raise ImportError(f"{path} needs pyarrow to be read: pip install 'gpusoftmax[data]'.") from error
    try:
        # Pandas's index, say, is a column like any other: no metadata is looked at.
        table = parquet.read_table(path) if suffix in (".parquet", ".pq") else feather.read_table(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        what = "Parquet" if suffix in (".parquet", ".pq") else "Arrow"
        raise DataError(
            f"{path} cannot be read as {what} ({_first_line(error)}): write it anew, or give it the suffix of "
            "its format."
        ) from error
    return _of_arrow(table, path)


def _read_csv(path: Path, suffix: str, target: str | None) -> dict[str, Column]:
    header = _header(path)
    delimiter = _delimiter(header, suffix)
    try:
        import pyarrow as pa
        from pyarrow import csv as arrow_csv
    except ImportError:
        return _read_plain_csv(path, delimiter, target)
    block_size = min(max(BLOCK_BYTES, 16 * len(header.encode())), 2**31 - 1)
    try:
        table = arrow_csv.read_csv(
            path,
            # After an error amid many columns, pyarrow's threads would keep the process from its end.
            read_options=arrow_csv.ReadOptions(use_threads=False, block_size=block_size),
            parse_options=arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                null_values=list(MISSING),
                strings_can_be_null=True,
                true_values=[],
                false_values=[],
                column_types={} if target is None else {target: pa.string()},
            ),
        )
    except (pa.ArrowException, OSError) as error:
        why = _first_line(error)
        if "straddling" in why:
            why = f"a row is longer than {block_size:,} bytes: is a quote left open?"
        raise _no_csv(path, why) from error
    columns = _of_arrow(table, path, dates_are_text=True)
    if target in columns:
        columns[target] = _column_of(table.column(target).to_pylist(), _parsed_labels)
    return columns


def _of_arrow(table, path: Path, *, dates_are_text: bool = False) -> dict[str, Column]:
    _check_names(table.column_names, table.num_rows, path)
    columns: list[tuple[str, Column]] = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        width = _vector_width(column)
        if not width:
            columns.append((name, Column(_arrow_kind(column.type, dates_are_text), partial(_arrow_values, column))))
        else:
            vectors = cache(partial(_arrow_vectors, column, width))
            columns += [(f"{name}[{i}]", Column(NUMBER, partial(_component, vectors, i))) for i in range(width)]
    _check_names([name for name, _ in columns], table.num_rows, path)
    return dict(columns)


def _vector_width(column) -> int | None:
    """Return how many numbers each row of a column of lists holds, as embeddings do; None if that is no one number."""
    import pyarrow.compute as pc
    from pyarrow import types

    dtype = column.type
    is_list = types.is_list(dtype) or types.is_large_list(dtype) or types.is_fixed_size_list(dtype)
    if not is_list or not (types.is_floating(dtype.value_type) or types.is_integer(dtype.value_type)):
        return None
    widths = pc.unique(pc.list_value_length(column)).to_pylist()
    return widths[0] if len(widths) == 1 else None


def _arrow_vectors(column, width: int) -> np.ndarray:
    import pyarrow.compute as pc

    return pc.list_flatten(column).to_numpy().reshape(-1, width)


def _component(vectors: Callable[[], np.ndarray], i: int) -> np.ndarray:
    return vectors()[:, i]


def _arrow_kind(dtype, dates_are_text: bool) -> str:
    from pyarrow import types

    if types.is_dictionary(dtype):
        dtype = dtype.value_type
    if types.is_integer(dtype) or types.is_floating(dtype) or types.is_boolean(dtype) or types.is_decimal(dtype):
        return NUMBER
    if types.is_string(dtype) or types.is_large_string(dtype) or types.is_string_view(dtype):
        return TEXT
    if types.is_null(dtype):
        return EMPTY
    return TEXT if dates_are_text and types.is_temporal(dtype) else str(dtype)


def _arrow_values(column) -> np.ndarray:
    import pyarrow as pa
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if types.is_boolean(column.type) and column.null_count:
        column = column.cast(pa.int8())  # to_numpy would make objects of them
    elif types.is_decimal(column.type):
        try:  # as labels, those beyond 2**53 are whole numbers too
            column = column.cast(pa.int64())
        except pa.ArrowInvalid:
            column = column.cast(pa.float64())
    elif types.is_temporal(column.type):
        column = column.cast(pa.string())
    return column.to_numpy()


def _read_plain_csv(path: Path, delimiter: str, target: str | None) -> dict[str, Column]:
    try:
        with _open_text(path) as file:
            rows = [row for row in csv.reader(file, delimiter=delimiter, strict=True) if row]
    except (csv.Error, OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise _no_csv(path, str(error)) from error
    names, rows = rows[0] if rows else [], rows[1:]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise _no_csv(path, f"row {number} has {len(row)} values for {len(names)} columns")
    _check_names(names, len(rows), path)
    return {
        name: _column_of([row[i] for row in rows], _parsed_labels if name == target else _parsed)
        for i, name in enumerate(names)
    }


def _column_of(cells: Iterable[str | None], parse: Callable[[list[str]], np.ndarray | None]) -> Column:
    values = np.array([None if cell in MISSING else cell for cell in cells], object)
    is_present = np.array([value is not None for value in values], bool)
    if not is_present.any():
        return Column(EMPTY, lambda: np.full(len(values), np.nan))
    numbers = parse(values[is_present].tolist())
    if numbers is None:
        return Column(TEXT, lambda: values)
    if is_present.all():
        return Column(NUMBER, lambda: numbers)
    whole = np.full(len(values), np.nan)
    whole[is_present] = numbers
    return Column(NUMBER, lambda: whole)


def _parsed(texts: list[str]) -> np.ndarray | None:
    """Return texts as integers, else as floats, or None if some are no numbers."""
    if any("_" in text or not text.isascii() for text in texts):  # Python reads 1_000 as a number; no table means one
        return None
    for parse, dtype in ((_integer, np.int64), (float, np.float64)):
        with contextlib.suppress(ValueError, OverflowError):
            return np.array([parse(text) for text in texts], dtype)
    return None


def _integer(text: str) -> int:
    return int(text, 16 if text.strip()[:2] in ("0x", "0X") else 10)  # as pyarrow does


def _parsed_labels(texts: list[str]) -> np.ndarray | None:
    """Return texts as numbers, or None if some are no numbers, or codes: 007 is not 7, and floats round."""
    return None if any(map(CODE.match, texts)) else _parsed(texts)


def is_number(text: str) -> bool:
    """Whether a column of such text would be one of numbers."""
    return _parsed([text]) is not None


def _header(path: Path) -> str:
    try:
        with _open_text(path) as file:
            return file.readline()
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _no_csv(path, str(error)) from error


def _delimiter(header: str, suffix: str) -> str:
    """Return what separates the names in the first line: of the usual delimiters, the most frequent outside quotes."""
    if suffix == ".tsv" and "\t" in header:
        return "\t"
    return max(DELIMITERS, key=QUOTED.sub("", header).count)


def _open_text(path: Path):
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline="")


def _check_names(names: list[str], n_rows: int, path: Path) -> None:
    if not names or not n_rows:
        raise DataError(f"{path} has no rows: it must hold a line of column names and a line for each row.")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise DataError(f"{path} has more than one column named {twice[0]!r}: give each a name of its own.")


def _no_csv(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} cannot be read as CSV ({why}): it must be UTF-8 text, a line of column names, then a line for each "
        "row with as many values."
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
