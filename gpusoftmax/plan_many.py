"""How many problems that share no rows are fitted at once: pure arithmetic, as in `plan`."""

from dataclasses import dataclass

import numpy as np

from gpusoftmax.exceptions import WorkspaceError
from gpusoftmax.plan import MAX_METRIC_FEATURES

WAVE_BYTES = {"cpu": 96 << 20, "cuda": 1 << 30}  # below, a wave has too little to do for its Python
UNBOUNDED = 1 << 62
N_PAIRS = 6  # more saved small problems few passes, and each costs three vectors
N_VECTORS = 16  # of a solver beside its pairs: points, gradients, directions, and what it computes them from
N_LOGITS = 4  # arrays of the logits' size while their softmax is taken
N_FACTORS = 8  # arrays of a factor's size, in float64, while one is made
FACTOR_BYTES = 16 << 20  # of those made together
WIDE = 2.0  # features a row from which on the span of the rows is worth finding
N_SPANS = 5  # arrays of (n_rows, n_rows) numbers, in float64, while the span of the rows is found
N_LIFTED = 6  # of the size of the params of X: those, their gradient, and what it takes to compute it


@dataclass(frozen=True)
class WavePlan:
    """Waves of problems; in each all have as many rows as its first, and columns as one with the most classes.

    waves : list of arrays of int
    n_threads : waves that run at once
    n_factored : problems whose factors of a full metric are made together; zero for diagonal metrics only
    """

    waves: list[np.ndarray]
    n_threads: int
    n_factored: int


def plan_waves(
    n_rows: np.ndarray,
    n_features: int,
    n_classes: int | np.ndarray,
    dtype: np.dtype,
    device: str,
    n_threads: int,
    *,
    is_soft: bool,
    budget_bytes: int | None = None,
) -> WavePlan:
    """Cut problems into waves that have room in a cache, or in a budget.

    No wave has a problem with twice as many classes as another, which would have to be as wide, or one that is fitted
    in the span of its rows beside one that is not.

    Parameters
    ----------
    n_rows : array of int, shape (n_problems,)
    n_features : int
    n_classes : int or array of int, shape (n_problems,)
    dtype : compute dtype
    device : {"cpu", "cuda"}
    n_threads : threads that can run waves
    is_soft : whether targets are made (rows, n_classes)
    budget_bytes : most bytes of all waves that run at once, with X, targets and the solver's vectors; None for no bound

    Raises
    ------
    WorkspaceError
        The largest problem alone does not fit; the message names a budget that does.
    """
    n_classes = np.broadcast_to(n_classes, n_rows.shape)
    each = _problem_bytes(n_rows, n_features, n_classes, dtype.itemsize, is_soft)
    largest = int(each.argmax())
    least = int(each[largest])
    budget = UNBOUNDED if budget_bytes is None else budget_bytes
    if least > budget:
        raise WorkspaceError(
            f"memory_budget={budget_bytes} bytes is too small for one problem of {n_rows[largest]} rows, {n_features} "
            f"features and {n_classes[largest]} classes: give at least memory_budget={least}."
        )
    n_threads = min(n_threads, len(n_rows), budget // least)
    room = min(max(WAVE_BYTES[device], least), budget // n_threads)
    n_directions = int(np.where(is_wide(n_rows, n_features), n_rows, n_features).max())
    factor = 8 * N_FACTORS * (n_directions + 1) ** 2
    spare = min(FACTOR_BYTES, (room - least) // 2)  # a metric's temporaries come beside what else a wave holds
    n_factored = spare // factor if n_directions < MAX_METRIC_FEATURES else 0
    room -= n_factored * factor
    kinds = 2 * np.floor(np.log2(n_classes.max() / n_classes)) + is_wide(n_rows, n_features)
    waves = []
    for kind in np.unique(kinds):
        alike = np.flatnonzero(kinds == kind)
        n_turns = -(-int(each[alike].sum()) // (n_threads * room))
        fewest = -(-len(alike) // (n_turns * n_threads))  # what leaves no thread idle in the last turn
        order = alike[np.lexsort((-n_classes[alike], -n_rows[alike]))]
        while len(order):
            some = order[:fewest]
            widest = np.maximum.accumulate(n_classes[some])
            need = _problem_bytes(n_rows[some[0]], n_features, widest, dtype.itemsize, is_soft)
            stop = max(1, int((need * np.arange(1, len(some) + 1) <= room).sum()))
            waves.append(order[:stop])
            order = order[stop:]
    return WavePlan(waves, min(n_threads, len(waves)), n_factored)


def is_wide(n_rows, n_features: int):
    """Say which problems are fitted in the span of their rows, of so many rows in their wave."""
    return WIDE * n_rows <= n_features


def _problem_bytes(n_rows, n_features: int, n_classes, size: int, is_soft: bool):
    """Return the bytes of one problem in a wave: rows and factor twice, since a wave that shrinks is copied.

    One in the span of its rows has X and a few params of it beside.
    """
    wide = is_wide(n_rows, n_features)
    order = np.where(wide, n_rows, n_features) + 1
    rows = n_rows * (2 * order * size + (N_LOGITS + 2 * is_soft) * n_classes * size + 8 * 8)
    slots = N_PAIRS + 1
    solver = (3 * slots + N_VECTORS) * order * n_classes * size + 8 * 6 * slots**2
    factors = np.where(order <= MAX_METRIC_FEATURES, 2 * size * order**2, 0)
    beside = n_rows * (n_features + 1) * size + N_SPANS * 8 * n_rows**2 + N_LIFTED * size * (n_features + 1) * n_classes
    return rows + solver + factors + np.where(wide, beside, 0) + 4096
