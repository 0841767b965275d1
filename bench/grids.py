"""Sweeps as data: strengths on folds, or on data sets of their own, and the rows they stand for. Knows no library."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from sklearn.model_selection import StratifiedKFold

from bench import cases
from bench.cases import Case

POWERS = -4, 4  # of ten: from the strongest penalty to the weakest


@dataclass(frozen=True)
class Sweep:
    """Problems: every strength on every set of rows.

    Parameters
    ----------
    rows : Case
        Its own strength is that of a sweep of one strength.
    n_strengths : int
        Spread evenly over the logarithm.
    n_folds : int
        Sets of rows are those that stratified folds leave; 0 for all rows.
    n_sets : int
        Data sets of their own, each drawn with its seed.
    """

    rows: Case
    n_strengths: int = 1
    n_folds: int = 0
    n_sets: int = 1

    @property
    def name(self) -> str:
        counts = {"C": self.n_strengths, "folds": self.n_folds, "sets": self.n_sets}
        return "-".join([self.rows.name, *(f"{count}{what}" for what, count in counts.items() if count > 1)])

    @property
    def strengths(self) -> np.ndarray:
        return np.logspace(*POWERS, self.n_strengths) if self.n_strengths > 1 else np.array([self.rows.C])


@dataclass(frozen=True)
class Grid:
    """The problems of a sweep, strength by strength; of each strength, set by set.

    Cs : array of shape (n_strengths,), ascending
    X, y : (n_rows, n_features) and (n_rows,), or with one dimension more, of as many data sets
    splits : (train, test) rows of each fold
    sets : X and y of the rows that each set's problems are fitted to
    targets : objective of each problem at which a library that can may stop, or None
    """

    Cs: np.ndarray
    X: np.ndarray
    y: np.ndarray
    splits: list[tuple[np.ndarray, np.ndarray]]
    sets: list[tuple[np.ndarray, np.ndarray]]
    targets: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.Cs) * len(self.sets)

    def problem(self, p: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Return X, y and C of a problem."""
        strength, place = divmod(p, len(self.sets))
        return *self.sets[place], float(self.Cs[strength])

    def n_comparable(self, n_done: int) -> int:
        """Return how many of the first problems are a sweep again: whole strengths, or of one strength any number."""
        return n_done - n_done % len(self.sets) if len(self.Cs) > 1 else n_done

    def head(self, n_problems: int) -> Self:
        """Return the first problems, as many as `n_comparable` says."""
        if len(self.Cs) > 1:
            return replace(self, Cs=self.Cs[: n_problems // len(self.sets)])
        some = slice(n_problems)
        first = replace(self, splits=self.splits[some], sets=self.sets[some])
        return replace(first, X=self.X[some], y=self.y[some]) if self.X.ndim > 2 else first


def make(sweep: Sweep, folder: Path, *, is_fetched: bool = False) -> Grid:
    """Return the problems of a sweep; see `cases.load` for the errors."""
    drawn = (replace(sweep.rows, seed=sweep.rows.seed + i) for i in range(sweep.n_sets))
    made = [cases.make(case, folder, is_fetched=is_fetched) for case in drawn]
    sets = [(data.X, data.targets) for data in made]
    if sweep.n_sets > 1:
        X, y = map(np.stack, zip(*sets, strict=True))
        return Grid(sweep.strengths, X, y, [], list(zip(X, y, strict=True)))
    X, y = sets[0]
    splits = list(StratifiedKFold(sweep.n_folds).split(X, y)) if sweep.n_folds else []
    return Grid(sweep.strengths, X, y, splits, [(X[train], y[train]) for train, _ in splits] or sets)


SWEEPS = (
    Sweep(Case("digits"), n_strengths=10, n_folds=5),
    Sweep(Case("mnist10k"), n_strengths=20, n_folds=5),
    Sweep(Case("teacher", 20_000, 384, 50), n_strengths=45),
    Sweep(Case("teacher", 200_000, 784, 10), n_strengths=16),
    Sweep(Case("teacher", 100, 64, 5), n_sets=1000),
)
SMOKE = (
    Sweep(Case("teacher", 300, 8, 3), n_strengths=3, n_folds=2),
    Sweep(Case("teacher", 300, 8, 3), n_strengths=2),
    Sweep(Case("teacher", 60, 5, 3), n_sets=4),
    Sweep(Case("teacher", 20, 60, 3), n_sets=4),
    Sweep(Case("no_such_set"), n_strengths=2),
)
