"""The data sets of `fit_many`, checked: each has its own X, rows, weights and classes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from sklearn.utils.multiclass import check_classification_targets

from gpusoftmax.interop import receive, to_host
from gpusoftmax.sources import compute_dtype
from gpusoftmax.targets import check_soft_targets, encode_labels


@dataclass(frozen=True)
class OwnClasses:
    """The classes that each problem has, one problem's after another's: n_own of all together.

    classes : (n_own,) int, places among the classes of all problems
    weight : (n_own,) float64, sums of weights
    n_classes, start : (n_problems,) int, how many a problem has, and where its first stands
    """

    classes: np.ndarray
    weight: np.ndarray
    n_classes: np.ndarray

    @cached_property
    def start(self) -> np.ndarray:
        return np.cumsum(self.n_classes) - self.n_classes

    def of_wave(self, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the places (n_problems, n_classes) of some problems' classes here, and which of them there are.

        There are as many columns as the problem with the most classes needs; others have some that stand for none.
        """
        n_classes = self.n_classes[wave, np.newaxis]
        column = np.arange(n_classes.max())
        return self.start[wave, np.newaxis] + np.minimum(column, n_classes - 1), column < n_classes


@dataclass(frozen=True)
class ManyData:
    """Checked data: lists with one entry per problem.

    targets : places among a problem's own classes (n_rows,) or soft targets (n_rows, n_classes)
    weights : (n_rows,) float64, or None
    total : (n_problems,) float64, sums of weights
    """

    Xs: list
    targets: list[np.ndarray]
    weights: list[np.ndarray] | None
    classes: np.ndarray
    own: OwnClasses
    C: np.ndarray
    n_rows: np.ndarray
    dtype: np.dtype
    is_soft: bool
    total: np.ndarray


def receive_many(Xs, ys, sample_weights, C) -> tuple[ManyData, int | None]:
    """Return checked data, X excepted for values that are not finite, and the CUDA device that Xs are on."""
    Xs, cuda_device = _receive_features(Xs)
    n_rows = np.array([len(X) for X in Xs])
    ys = _per_problem(ys, "ys", len(Xs))
    is_soft = ys[0].ndim == 2
    for p, y in enumerate(ys):
        if len(y) != n_rows[p] or y.shape[1:] != ys[0].shape[1:] or y.ndim > 2:
            raise ValueError(
                f"ys must hold {n_rows[p]} labels, or rows of as many soft targets as problem 0, for problem {p}; "
                f"got an array of shape {y.shape}."
            )
    weights = None
    if sample_weights is not None:
        weights = [w.astype(np.float64) for w in _per_problem(sample_weights, "sample_weights", len(Xs))]
        for p, w in enumerate(weights):
            if w.shape != (n_rows[p],) or not (np.isfinite(w) & (w >= 0)).all() or not w.any():
                raise ValueError(
                    f"sample_weights must hold {n_rows[p]} finite, non-negative weights with a positive sum for "
                    f"problem {p}; got an array of shape {w.shape}."
                )
    problem = np.repeat(np.arange(len(Xs)), n_rows)
    row_weights = None if weights is None else np.concatenate(weights)
    total = np.bincount(problem, row_weights, len(Xs)).astype(np.float64)
    if is_soft:
        targets = [_named(p, check_soft_targets, y) for p, y in enumerate(ys)]
        classes = np.arange(ys[0].shape[1])
        sums = [t.sum(axis=0) if weights is None else weights[p] @ t for p, t in enumerate(targets)]
        # Soft targets name all classes; labels name those that a problem has.
        n_classes = np.full(len(Xs), len(classes))
        own = OwnClasses(np.tile(np.arange(len(classes)), len(Xs)), np.array(sums, np.float64).ravel(), n_classes)
    else:
        labels = np.concatenate(ys)
        if labels.dtype.kind != "O":
            check_classification_targets(labels)
        classes, indices = encode_labels(labels)
        own, indices = _own_classes(problem, indices, len(classes), row_weights)
        targets = np.split(indices, np.cumsum(n_rows)[:-1])
        for p in np.flatnonzero(own.n_classes < 2).tolist():
            raise ValueError(f"Every problem must have at least 2 classes with weight; problem {p} has 1.")
    C = np.asarray(C, np.float64)
    if C.shape not in ((), (len(Xs),)) or not (C > 0).all():
        raise ValueError(f"C must be a positive number, or {len(Xs)} of them, one a problem; got {C}.")
    data = ManyData(
        *(Xs, targets, weights, classes, own, np.broadcast_to(C, len(Xs))),
        n_rows=n_rows,
        dtype=compute_dtype(np.result_type(*{X.dtype for X in Xs})),
        is_soft=is_soft,
        total=total,
    )
    return data, cuda_device


def _own_classes(
    problem: np.ndarray, indices: np.ndarray, n_classes: int, weights: np.ndarray | None
) -> tuple[OwnClasses, np.ndarray]:
    """Return the classes with weight of each problem, and each row's place among its problem's.

    A row of no weight whose class is none of its problem's gets any place. Nothing here has n_problems x n_classes
    numbers: problems may have no class in common.
    """
    n_problems, codes = problem[-1] + 1, problem * n_classes + indices
    pairs = np.unique(codes)
    place = codes if len(pairs) == n_problems * n_classes else np.searchsorted(pairs, codes)
    weight = np.bincount(place, weights, len(pairs)).astype(np.float64)
    if not weight.all():
        place = (np.cumsum(weight > 0) - 1)[place]
        pairs, weight = pairs[weight > 0], weight[weight > 0]
    own = OwnClasses(pairs % n_classes, weight, np.bincount(pairs // n_classes, minlength=n_problems))
    return own, np.maximum(place - own.start[problem], 0).astype(indices.dtype)


def _receive_features(Xs) -> tuple[list, int | None]:
    """Return every problem's X, and the CUDA device that they are on."""
    if not isinstance(Xs, list | tuple):
        stack, home = receive(Xs, "Xs")
        homes = {home.cuda_device}
        Xs = list(stack)
    else:
        received = [receive(X, f"Xs[{p}]") for p, X in enumerate(Xs)]
        homes = {home.cuda_device for _, home in received}
        Xs = [X if home.is_cuda else np.asarray(X) for X, home in received]
    if not Xs or len(homes) > 1:
        raise ValueError(f"Xs must hold at least one problem, all on one device; got {len(Xs)} on {len(homes)}.")
    for p, X in enumerate(Xs):
        if X.ndim != 2 or X.shape[1:] != Xs[0].shape[1:] or not X.size:
            raise ValueError(
                f"Xs must hold an array of shape (n_samples, n_features) for each problem, with as many features in "
                f"all; Xs[{p}] has shape {X.shape}, Xs[0] has {Xs[0].shape}."
            )
        if X.dtype.kind not in "biuf":
            raise TypeError(f"Xs must hold real numbers, got dtype {X.dtype} for problem {p}.")
    return Xs, homes.pop()


def _per_problem(arrays, name: str, n_problems: int) -> list[np.ndarray]:
    """Return what goes with each problem's X, on the host."""
    if not isinstance(arrays, list | tuple):
        arrays = to_host(arrays)
    if len(arrays) != n_problems:
        raise ValueError(f"{name} must hold one array for each of the {n_problems} problems, got {len(arrays)}.")
    arrays = [np.asarray(to_host(array)) for array in arrays]
    for p, array in enumerate(arrays):
        if array.ndim == 0:
            raise ValueError(
                f"{name} must hold an array for each problem, got the single value {array} for problem {p}."
            )
    return arrays


def _named(p: int, check: Callable, array):
    """Return what a check returns; what it raises names the problem."""
    try:
        return check(array)
    except (TypeError, ValueError) as error:
        raise type(error)(f"Problem {p}: {error}") from error
