"""From a data file to features, labels and weights, for the command line: its messages name the options that help.

It knows the formats, which columns are features, and what in them is no number; it knows nothing of models.
"""

import difflib
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gpusoftmax.columns import EMPTY, NUMBER, TEXT, Column, is_number, read_columns
from gpusoftmax.exceptions import DataError

TABLES = (".csv", ".tsv", ".parquet", ".pq", ".arrow", ".feather", ".ipc")  # formats whose columns have names
SVMLIGHT = (".svm", ".svmlight", ".libsvm")
FORMATS = (*TABLES, ".npy", ".npz", *SVMLIGHT)
BLOCK_NUMBERS = 1 << 20  # that are looked at, or filled in, together
N_TRIED = 1000  # rows of a column of text that tell whether it was meant to hold numbers


@dataclass(frozen=True)
class Selection:
    """What a user says of the columns.

    target, weights : str or None
        Name of a column; for .npy its number or a file; for .npz the name of an array, by default "y" and none.
    features, drop : sequences of str
        Names or patterns such as ``pixel*``, several in one string separated by commas. No features are all columns of
        numbers that are left.
    is_zero_based : bool
        Of svmlight: indices count from 0, not from 1.
    """

    target: str | None = None
    features: Sequence[str] = ()
    drop: Sequence[str] = ()
    weights: str | None = None
    is_zero_based: bool = False


@dataclass(frozen=True)
class Table:
    """What a file holds.

    path : Path
    X : array of shape (n_rows, n_features)
        float32 or float64, or an array of the file's own dtype that is mapped into memory.
    feature_names : list of str, or None where the format has none
    y : array of shape (n_rows,), or None
        Labels: numbers or str.
    weights : array of shape (n_rows,), float64, or None
    left_out : dict
        Column: why it is no feature.
    """

    path: Path
    X: np.ndarray
    feature_names: list[str] | None = None
    y: np.ndarray | None = None
    weights: np.ndarray | None = None
    left_out: dict[str, str] = field(default_factory=dict)


def read_table(
    path, selection: Selection, *, feature_names: Sequence[str] | None = None, n_features: int | None = None
) -> Table:
    """Read a data file, whose suffix says its format; ``.gz`` may follow that of text.

    Parameters
    ----------
    path : str or Path
        CSV, Parquet, Arrow/Feather, .npy (mapped into memory, not read), .npz or svmlight.
    selection : Selection
    feature_names : sequence of str, or None
        Columns that are the features, in this order, whatever the selection says; unused where columns have no names.
    n_features : int or None
        Of svmlight, where the last features may be zero in all rows.

    Raises
    ------
    DataError
        The file, a column or a value is not what it must be; the message says which and what to do.
    OSError
        The file cannot be opened.
    ImportError
        The format needs pyarrow.
    """
    path = Path(path)
    suffix = suffix_of(path)
    if suffix not in FORMATS:
        raise DataError(f"{path} has no suffix that says its format: give one of {', '.join(FORMATS)}.")
    if suffix in TABLES and str(path).encode(errors="replace").decode() != str(path):
        raise DataError(f"{path} has a name that is not UTF-8, which pyarrow cannot open: give it another.")
    _refuse_pipe(path)
    with path.open("rb"):  # readers have words of their own for a file that is not there
        pass
    if selection.is_zero_based and suffix not in SVMLIGHT:
        raise DataError(f"{path} is no svmlight file, whose indices may start at 0: leave --zero-based out.")
    if suffix in TABLES:
        table = _from_columns(path, selection, read_columns(path, suffix, selection.target), feature_names)
    else:
        _refuse_names(path, selection)
        if suffix == ".npy":
            table = _from_npy(path, selection)
        elif suffix == ".npz":
            table = _from_npz(path, selection)
        else:
            table = _from_svmlight(path, selection.is_zero_based, n_features)
    return _checked(table)


def _refuse_pipe(path: Path) -> None:
    if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would be waited for
        raise DataError(f"{path} is no ordinary file: save what it holds in one.")


def suffix_of(path) -> str:
    """Return the suffix that says a format, in lower case; that of text may be followed by ``.gz``."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes[-2:]]
    if len(suffixes) == 2 and suffixes[1] == ".gz" and suffixes[0] in (".csv", ".tsv", *SVMLIGHT):
        return suffixes[0]
    return suffixes[-1] if suffixes else ""


def names_its_target(path) -> bool:
    """Whether a file's format says where its labels are."""
    return suffix_of(path) in (".npz", *SVMLIGHT)


def _from_columns(
    path: Path, selection: Selection, columns: dict[str, Column], feature_names: Sequence[str] | None
) -> Table:
    names = list(columns)
    special = [name for name in (selection.target, selection.weights) if name is not None]
    for name in (*special, *(feature_names or ())):
        if name not in columns:
            raise _unknown(path, name, names)
    if feature_names is None:
        chosen, drop = _matching(path, selection.features, names), _matching(path, selection.drop, names)
    else:
        chosen, drop = list(feature_names), []
    for name in chosen:
        if name in special:
            raise DataError(
                f"Column {name!r} is a feature and the target or the weights as well: it can be one of them."
            )
    dropped = {*drop, *special}
    offered = [name for name in chosen or names if name not in dropped]
    reasons = {name: _no_feature(path, name, columns[name], is_chosen=bool(chosen)) for name in offered}
    features = [name for name in offered if not reasons[name]]
    if not features:
        raise DataError(f"{path} has no column of numbers left to be a feature: its columns are {_listed(names)}.")
    return Table(
        path,
        _matrix(columns, features),
        features,
        None if selection.target is None else _labels(path, selection.target, columns),
        None if selection.weights is None else _weights_of(path, selection.weights, columns),
        {name: reason for name, reason in reasons.items() if reason},
    )


def _matching(path: Path, patterns: Sequence[str], names: list[str]) -> list[str]:
    """Return the columns that names and patterns mean, in the order of the patterns."""
    known = set(names)
    found: dict[str, None] = {}
    for pattern in patterns:
        for part in [pattern] if pattern in known else pattern.split(","):
            matches = [part] if part in known else [name for name in names if fnmatchcase(name, part)]
            if not matches:
                raise _unknown(path, part, names)
            found.update(dict.fromkeys(matches))
    return list(found)


def _unknown(path: Path, name: str, names: list[str]) -> DataError:
    close = difflib.get_close_matches(name, names, n=1)
    advice = f"its columns are {_listed(names)}." + (f" Did you mean {close[0]!r}?" if close else "")
    if sum(is_number(each) for each in names) > len(names) / 2:
        advice = f"its first line, {_listed(names)}, must hold the names."
    return DataError(f"Column {name!r} is not in {path}: {advice}")


def _listed(names: Sequence[str], n_most: int = 12) -> str:
    more = f" and {len(names) - n_most} more" if len(names) > n_most else ""
    return ", ".join(map(str, names[:n_most])) + more


def _no_feature(path: Path, name: str, column: Column, *, is_chosen: bool) -> str:
    """Return why a column is no feature, "" if it can be one; raise where it was meant to be one."""
    if not is_chosen and _is_index(name, column):
        return "an index of the rows"
    if column.kind == NUMBER:
        return ""
    if column.kind == TEXT:
        values = column.load()
        tried = [value for value in values[:N_TRIED] if value is not None]
        if is_chosen or sum(map(is_number, tried)) > len(tried) / 2:
            rows = (i for i, value in enumerate(values) if value is not None and not is_number(value))
            row = next(rows, None)
            what = "numbers as text" if row is None else f"{values[row]!r} in row {row + 1}"
            raise DataError(
                f"Column {name!r} of {path} holds {what}, where a feature must be a number: mend the file, or leave "
                f"the column out with --drop {name!r}."
            )
    elif is_chosen:
        raise DataError(f"Column {name!r} of {path} holds {column.kind}, and features are numbers: leave it out.")
    return column.kind


def _is_index(name: str, column: Column) -> bool:
    """Whether a column is pandas's index, or has no name and whole numbers, no two alike, as an index in CSV has."""
    if re.fullmatch(r"__index_level_\d+__", name):
        return True
    if column.kind != NUMBER or not re.fullmatch(r"(Unnamed: [\d.]+)?", name):
        return False
    values = column.load()
    return len(np.unique(values)) == len(values) and bool((values == np.trunc(values)).all())


def _matrix(columns: dict[str, Column], names: list[str]) -> np.ndarray:
    """Return columns side by side: float32 if all are of half or single precision, else float64."""
    values = [columns[name].load() for name in names]
    is_single = all(column.dtype in (np.float16, np.float32) for column in values)
    X = np.empty((len(values[0]), len(names)), np.float32 if is_single else np.float64)
    for rows in _blocks(X):  # those of X stay in the cache while column after column is written to them
        for j, column in enumerate(values):
            X[rows, j] = column[rows]
    return X


def _labels(path: Path, name: str, columns: dict[str, Column]) -> np.ndarray:
    column = columns[name]
    if column.kind not in (NUMBER, TEXT, EMPTY):
        raise DataError(f"Column {name!r} of {path} holds {column.kind}: labels are text or numbers.")
    return _check_labels(column.load(), f"Column {name!r} of {path}")


def _check_labels(values: np.ndarray, where: str) -> np.ndarray:
    """Return labels as numbers or str, or raise if some are missing or are no labels."""
    values = np.asarray(values)
    if values.dtype.kind not in "OUbiuf":
        raise DataError(f"{where} holds {values.dtype}: labels are text or numbers.")
    is_text = values.dtype.kind in "OU"
    is_missing = np.array([value is None for value in values], bool) if is_text else ~np.isfinite(values)
    if is_missing.any():
        raise DataError(
            f"{where} has no label in {_counted(is_missing)}: leave such rows out, or give them a label of their own."
        )
    if values.dtype.kind == "f":
        is_broken = (values != np.trunc(values)) | (np.abs(values) >= 2**53)  # there, not every whole number is a float
        if is_broken.any():
            raise DataError(
                f"{where} holds {values[is_broken][0]:g}: labels name classes, and this looks like a quantity. Take "
                "another target, or sort its values into classes first."
            )
    return values.astype(str) if is_text else values


def _weights_of(path: Path, name: str, columns: dict[str, Column]) -> np.ndarray:
    if columns[name].kind != NUMBER:
        raise DataError(f"Column {name!r} of {path} holds {columns[name].kind}: weights are numbers.")
    return _check_weights(columns[name].load(), f"Column {name!r} of {path}")


def _check_weights(values: np.ndarray, where: str) -> np.ndarray:
    if np.asarray(values).dtype.kind not in "biuf":
        raise DataError(f"{where} holds {np.asarray(values).dtype}: weights are numbers.")
    weights = np.asarray(values, np.float64)
    is_bad = ~(np.isfinite(weights) & (weights >= 0))
    if is_bad.any():
        raise DataError(f"{where} holds no weight in {_counted(is_bad)}: weights are numbers of at least 0.")
    return weights


def _counted(is_bad: np.ndarray) -> str:
    rows = np.flatnonzero(is_bad)
    return f"row {rows[0] + 1}" if len(rows) == 1 else f"{len(rows):,} rows, the first of them row {rows[0] + 1}"


def _refuse_names(path: Path, selection: Selection) -> None:
    if selection.features or (selection.drop and suffix_of(path) != ".npy"):
        raise DataError(f"{path} has no column names to choose features by: leave --features and --drop out.")


def _from_npy(path: Path, selection: Selection) -> Table:
    array = _load_npy(path, "r")
    if array.ndim != 2:
        raise DataError(f"{path} holds an array of shape {array.shape}: features must be of shape (rows, features).")
    y, of_y = _beside(path, array, selection.target, "target")
    weights, of_weights = _beside(path, array, selection.weights, "weights")
    out = {of_y, of_weights, *_dropped(path, array, selection.drop)}
    kept = [i for i in range(array.shape[1]) if i not in out]
    if not kept:
        raise DataError(f"{path} has no column left to be a feature: its array has shape {array.shape}.")
    is_slice = all(after == before + 1 for before, after in pairwise(kept))
    X = array[:, kept[0] : kept[-1] + 1] if is_slice else array[:, kept]
    if y is not None:
        y = _check_labels(y, str(selection.target) if of_y is None else f"Column {of_y} of {path}")
        y = y if of_y is None else _whole(y)
    if weights is not None:
        weights = _check_weights(
            weights, str(selection.weights) if of_weights is None else f"Column {of_weights} of {path}"
        )
    return Table(path, X, y=y, weights=weights)


def _beside(path: Path, array: np.ndarray, given: str | None, role: str) -> tuple[np.ndarray | None, int | None]:
    """Return what a column's number or a file's name means, and the column's number if it is one."""
    if given is None:
        return None, None
    column = _column_number(path, given, array.shape[1])
    if column is None:
        return _load_vector(given, len(array), role), None
    return np.array(array[:, column]), column


def _dropped(path: Path, array: np.ndarray, drop: Sequence[str]) -> Iterator[int]:
    for part in ",".join(drop).split(",") if drop else ():
        column = _column_number(path, part, array.shape[1])
        if column is None:
            raise DataError(f"{path} has no column names: give --drop the number of a column, got {part!r}.")
        yield column


def _whole(labels: np.ndarray) -> np.ndarray:
    """Return whole numbers as integers: features beside them made floats of them."""
    return labels.astype(np.int64) if labels.dtype.kind == "f" and (np.abs(labels) < 2**53).all() else labels


def _column_number(path: Path, text: str, n_columns: int) -> int | None:
    """Return the number of a column, counted from 0 or from the end, or None where the text is none."""
    try:
        number = int(text)
    except ValueError:
        return None
    if not -n_columns <= number < n_columns:
        raise DataError(f"{path} has no column {number}: it has {n_columns}, counted from 0, or back from -1.")
    return number % n_columns


def _load_npy(path: Path, mmap_mode=None) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(
            f"{path} cannot be read as an array of NumPy ({str(error).rstrip('.')}): write it with numpy.save, as an "
            "array of numbers."
        ) from error
    return array


def _load_vector(text: str, n_rows: int, role: str) -> np.ndarray:
    path = Path(text)
    if suffix_of(path) != ".npy":
        raise DataError(f"--{role} must be the number of a column or a .npy file, got {text!r}.")
    _refuse_pipe(path)
    vector = _load_npy(path)
    if vector.size != n_rows or vector.ndim > 2:
        raise DataError(f"{path} holds {vector.shape} values for {n_rows:,} rows: it must hold one for each row.")
    return vector.ravel()


def _from_npz(path: Path, selection: Selection) -> Table:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, Any] = {name: file[name] for name in file.files}
    except Exception as error:  # of zipfile, zlib and NumPy
        raise DataError(f"{path} cannot be read as .npz ({error}): write it with numpy.savez.") from error
    if {"indices", "indptr", "data", "shape"} <= set(arrays):
        raise DataError(f"{path} holds a sparse matrix, which is not supported yet: save its toarray().")
    target = selection.target or ("y" if "y" in arrays else None)
    names = [name for name in (target, selection.weights) if name is not None]
    for name in names:
        if name not in arrays:
            raise DataError(f"{path} holds no array {name!r}: its arrays are {_listed(list(arrays))}.")
    matrices = [name for name, array in arrays.items() if array.ndim == 2 and name not in names]
    features = "X" if "X" in matrices else matrices[0] if len(matrices) == 1 else None
    if features is None:
        raise DataError(
            f"{path} holds the arrays {_listed(list(arrays))}: name that of the features, two-dimensional, X."
        )
    X = arrays[features]
    for name in names:
        if arrays[name].shape != (len(X),):
            raise DataError(
                f"{path} holds {name!r} of shape {arrays[name].shape} and {features!r} of {X.shape}: it must hold one "
                "value for each row."
            )
    return Table(
        path,
        X,
        y=None if target is None else _check_labels(arrays[target], f"Array {target!r} of {path}"),
        weights=None
        if selection.weights is None
        else _check_weights(arrays[selection.weights], f"Array {selection.weights!r} of {path}"),
    )


def _from_svmlight(path: Path, is_zero_based: bool, n_features: int | None) -> Table:
    from sklearn.datasets import load_svmlight_file

    try:
        sparse, y = load_svmlight_file(str(path), zero_based=True)
    except (ValueError, OverflowError, OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read as svmlight ({error}): each line is a label and index:value pairs."
        ) from error
    if not is_zero_based:
        if (sparse.indices == 0).any():
            raise DataError(
                f"{path} has the index 0, and those of svmlight start at 1: if yours start at 0, give --zero-based to "
                "every command."
            )
        sparse = sparse[:, 1:]
    sparse.resize(sparse.shape[0], max(sparse.shape[1], n_features or 0))
    n_bytes = 8 * sparse.shape[0] * sparse.shape[1]
    if n_bytes > memory_limit():
        raise DataError(
            f"{path} would take {n_bytes / 1e9:,.1f} GB as a dense array of shape {sparse.shape}, and sparse X is not "
            "supported yet: keep fewer features, or reduce them (sklearn.decomposition.TruncatedSVD)."
        )
    y = _whole(_check_labels(y, f"The first column of {path}"))
    return Table(path, sparse.toarray(), y=y)


def memory_limit() -> int:
    """Return how many bytes a dense array may take: half of the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _checked(table: Table) -> Table:
    """Return a table whose features are finite numbers, or raise; X is read once, block by block."""
    X = table.X
    if not X.size:
        raise DataError(f"{table.path} holds features of shape {X.shape}: it must hold rows and features.")
    if X.dtype.kind not in "biuf":
        raise DataError(f"{table.path} holds {X.dtype} where features must be real numbers: convert them first.")
    if X.dtype.kind == "f":
        for rows in _blocks(X):
            is_bad = ~np.isfinite(X[rows])
            if is_bad.any():
                raise _not_finite(table, int(np.argwhere(is_bad)[0, 1]))
    return table


def _not_finite(table: Table, j: int) -> DataError:
    column = table.X[:, j]
    is_nan = np.isnan(column)
    what, is_bad = ("no value (NaN)", is_nan) if is_nan.any() else ("an infinite value", np.isinf(column))
    names = table.feature_names
    name = f"Column {names[j]!r}" if names else f"Feature {j}"
    advice = f", or leave the column out with --drop {names[j]!r}" if names else ""
    return DataError(f"{name} of {table.path} has {what} in {_counted(is_bad)}: fill or leave out such rows{advice}.")


def _blocks(X: np.ndarray) -> Iterator[slice]:
    step = max(1, BLOCK_NUMBERS // X.shape[1])
    return (slice(start, start + step) for start in range(0, len(X), step))
