"""What the commands that fit are asked for, and which rows are fitted and which are held out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from gpusoftmax.exceptions import DataError
from gpusoftmax.tables import Selection, Table


@dataclass(frozen=True)
class Request:
    """Options of `fit` and `sweep`, as they were given."""

    data: Path
    target: str | None
    features: Sequence[str]
    drop: Sequence[str]
    weights: str | None
    is_zero_based: bool
    test_size: float
    seed: int
    Cs: Sequence[float]
    n_folds: int | None  # None: C is not chosen
    is_standardized: bool
    class_weight: str | None
    label_smoothing: float
    tol: float
    max_iter: int
    device: str

    @property
    def selection(self) -> Selection:
        """Which columns are what."""
        return Selection(self.target, self.features, self.drop, self.weights, self.is_zero_based)

    @property
    def estimator(self) -> dict[str, Any]:
        """Parameters that a fit and a sweep share."""
        return {name: getattr(self, name) for name in ("class_weight", "label_smoothing", "tol", "max_iter", "device")}


@dataclass(frozen=True)
class Split:
    """Row numbers, ascending: fitted, held out to calibrate by, held out to judge by."""

    fitted: np.ndarray
    calibration: np.ndarray
    test: np.ndarray

    @classmethod
    def draw(cls, y: np.ndarray, test_size: float, calibration_size: float, seed: int, path: Path) -> Self:
        """Draw shares of all rows, of each class alike; the same seed and test size hold the same rows out.

        Raises
        ------
        DataError
            Some class has too few rows.
        """
        rows = np.arange(len(y))
        rows, test = _draw(y, rows, test_size, seed, path)
        rows, calibration = _draw(y, rows, calibration_size / (1 - test_size), seed, path)
        return cls(rows, calibration, test)

    def training_weights(self, weights: np.ndarray | None) -> np.ndarray | None:
        """Return weights of all rows, 0 for those held out, or None for ones: X is not copied to leave rows out."""
        if weights is None and len(self.calibration) == len(self.test) == 0:
            return None
        n_rows = len(self.fitted) + len(self.calibration) + len(self.test)
        out = np.zeros(n_rows)
        out[self.fitted] = 1 if weights is None else weights[self.fitted]
        return out


def _draw(y: np.ndarray, rows: np.ndarray, share: float, seed: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows kept and the rows drawn, each ascending."""
    from sklearn.model_selection import train_test_split

    if share == 0:
        return rows, rows[:0]
    classes, counts = np.unique(y[rows], return_counts=True)
    n_drawn = int(np.ceil(share * len(rows)))
    if counts.min() < 2:
        raise DataError(
            f"{path} has one row of the class {classes[counts.argmin()].item()!r} to fit and none to hold out: every "
            "class needs two. Leave rare classes out, or hold nothing out (--test-size 0)."
        )
    if min(n_drawn, len(rows) - n_drawn) < len(classes):
        raise DataError(
            f"{path} has too few rows to hold out {n_drawn} of {len(rows)} with all {len(classes)} classes on both "
            "sides: give more rows or another --test-size."
        )
    kept, drawn = train_test_split(rows, test_size=n_drawn, random_state=seed, stratify=y[rows])
    return np.sort(kept), np.sort(drawn)


def check_classes(table: Table) -> np.ndarray:
    """Return the labels of a table.

    Raises
    ------
    DataError
        There are none, fewer than two classes, or about as many as rows.
    """
    y = table.y
    if y is None:
        raise DataError(f"{table.path} holds no labels that are known as such: name their array with --target.")
    n_classes = len(np.unique(y))
    if n_classes < 2:
        raise DataError(f"{table.path} holds one class only, {y[0].item()!r}: a classifier needs rows of at least two.")
    if n_classes > max(10, len(y) // 2):
        raise DataError(
            f"{table.path} holds {n_classes:,} different labels in {len(y):,} rows: each class needs several rows. Is "
            "the target the right column?"
        )
    return y
