"""From what users call y to what kernels call targets: class indices or soft targets, checked block by block."""

import contextlib
from collections.abc import Callable

import numpy as np

BLOCK_ROWS = 1 << 16


def encode_labels(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct labels, ascending, and each row's index among them in the smallest integer dtype.

    Parameters
    ----------
    y : array of shape (n_rows,), any dtype whose values can be ordered

    Raises
    ------
    TypeError
        Some labels cannot be ordered.
    ValueError
        There are none.
    """
    if not len(y):
        raise ValueError("There are no labels: give at least one.")
    blocks = [y[start : start + BLOCK_ROWS] for start in range(0, len(y), BLOCK_ROWS)]
    try:
        classes = np.unique(np.concatenate([np.unique(block) for block in blocks]))
    except TypeError as error:
        kinds = sorted({type(label).__name__ for label in y})
        raise TypeError(
            f"The labels cannot be ordered: y holds values of type {', '.join(kinds)}. Give labels of one type, "
            "for instance y.astype(str)."
        ) from error
    indices = np.empty(len(y), np.min_scalar_type(len(classes)))
    for start, block in zip(range(0, len(y), BLOCK_ROWS), blocks, strict=True):
        indices[start : start + BLOCK_ROWS] = np.searchsorted(classes, block)
    return classes, indices


def check_class_indices(targets: np.ndarray, n_classes: int, to_host: Callable = np.asarray) -> np.ndarray:
    """Return class indices in the smallest dtype, or raise ValueError unless all are integers in [0, n_classes)."""
    if targets.dtype.kind not in "iu":
        raise ValueError(f"Class indices must be integers, got dtype {targets.dtype}.")
    if targets.size:
        lowest, highest = int(to_host(targets.min())), int(to_host(targets.max()))
        if lowest < 0 or highest >= n_classes:
            raise ValueError(f"Class indices must lie in [0, {n_classes}), got values from {lowest} to {highest}.")
    return targets.astype(np.min_scalar_type(n_classes), copy=False)


def check_class_names(classes, n_classes: int) -> np.ndarray:
    """Return the labels of the columns of soft targets, by default 0, 1, …; raise ValueError if two are the same."""
    if classes is None:
        return np.arange(n_classes)
    classes = np.asarray(classes)
    if classes.shape != (n_classes,):
        raise ValueError(
            f"classes must name the {n_classes} columns of y in one dimension, got an array of shape {classes.shape}."
        )
    if len(set(classes.tolist())) < n_classes or any(name != name for name in classes.tolist()):
        raise ValueError(f"classes must be distinct and hold no NaN, got {classes.tolist()}.")
    return classes


def check_soft_targets(
    targets: np.ndarray, to_host: Callable = np.asarray, block_numbers: int = BLOCK_ROWS
) -> np.ndarray:
    """Return the targets as numbers; raise unless every row is a distribution over the classes.

    Sums may differ from one by what rounding in the targets' own dtype explains. `to_host` is called once for every
    `block_numbers` of them.

    Raises
    ------
    TypeError
        The targets are not real numbers.
    ValueError
        Some row is off the simplex.
    """
    if targets.dtype.kind == "O":
        with contextlib.suppress(TypeError, ValueError):  # refused below
            targets = targets.astype(np.float64)
    if targets.dtype.kind not in "biuf":
        raise TypeError(f"Soft targets must be numbers, got dtype {targets.dtype}.")
    floating = targets.dtype if targets.dtype.kind == "f" else np.dtype(np.float64)
    tolerance = max(64 * np.finfo(floating).eps, 1e-6)
    step = max(1, block_numbers // targets.shape[1])
    for start in range(0, len(targets), step):
        block = targets[start : start + step]
        is_wrong = (block.min(axis=1) < 0) | ~(abs(block.sum(axis=1, dtype=np.float64) - 1) <= tolerance)
        if to_host(is_wrong.any()):
            row = int(to_host(is_wrong.argmax()))
            wrong = to_host(block[row])
            raise ValueError(
                f"Soft targets must be non-negative and sum to one in every row: row {start + row} has smallest entry "
                f"{wrong.min():.6g} and sum {wrong.sum(dtype=np.float64):.6g}. "
                "Divide each row by its sum, or give labels as a one-dimensional y."
            )
    return targets
