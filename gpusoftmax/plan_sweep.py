"""How the problems of a sweep are solved: together, or one from where another ended. Pure arithmetic.

A *path* is the strengths of one fold, weakest model first; each fit starts where those before it point, which takes a
fourth to a tenth of the passes of a start from nothing. Folds give paths that share every pass. Where passes are so
short that calls take the time, the strengths of a fold are cut into several paths.
"""

from dataclasses import dataclass

import numpy as np

from gpusoftmax.exceptions import WorkspaceError
from gpusoftmax.plan import Facts, least_fit_bytes

SWEEP_BYTES = 1 << 30  # of the solver's vectors, unless a budget says otherwise
SHORTEST_PATH = 8  # strengths: from the fourth on, a path guesses its next solution well


@dataclass(frozen=True)
class SweepPlan:
    """Which problems follow which, and how many paths run at once.

    paths : array of shape (n_paths, n_stages), int
        Places of the problems of a grid of (n_strengths, n_folds), flattened, or -1 after the end of a path.
    n_at_once : int
        Paths of a wave.
    pass_budget : int or None
        Bytes that are left for a wave's passes.
    """

    paths: np.ndarray
    n_at_once: int
    pass_budget: int | None

    def waves(self) -> list[np.ndarray]:
        """Return the paths of each wave."""
        return [self.paths[start : start + self.n_at_once] for start in range(0, len(self.paths), self.n_at_once)]


def plan_sweep(
    n_rows: int,
    n_features: int,
    n_folds: int,
    Cs: np.ndarray,
    n_classes: int,
    dtype: np.dtype,
    facts: Facts,
    *,
    vectors: int,
    is_soft: bool = False,
    is_direct: bool = True,
    budget_bytes: int | None = None,
) -> SweepPlan:
    """Choose paths and waves.

    Parameters
    ----------
    n_rows, n_features, n_folds, n_classes : int
    Cs : array of shape (n_strengths,), any order
    dtype, facts, is_soft, is_direct : see `plan_pass`
    vectors : arrays of the size of one problem's params that a solver holds for it
    budget_bytes : most bytes of workspace and of the solver's vectors together; None for what runs best

    Raises
    ------
    WorkspaceError
        One problem does not fit; the message names a budget that does.
    """
    options = {"is_soft": is_soft, "is_direct": is_direct}
    flops = 4 * n_rows * n_features * n_classes
    n_wanted = -(-facts.busy_flops(dtype) // (flops * n_folds))
    n_cuts = int(min(max(1, n_wanted), max(1, len(Cs) // SHORTEST_PATH)))
    order = np.argsort(Cs, kind="stable")
    n_stages = -(-len(Cs) // n_cuts)
    by_cut = np.full((n_cuts, n_folds, n_stages), -1)
    for cut, part in enumerate(np.array_split(order, n_cuts)):
        by_cut[cut, :, : len(part)] = part * n_folds + np.arange(n_folds)[:, np.newaxis]
    paths = by_cut.reshape(-1, n_stages)

    path_bytes = vectors * (n_features + 1) * n_classes * dtype.itemsize
    if budget_bytes is None:
        return SweepPlan(paths, max(1, min(len(paths), SWEEP_BYTES // path_bytes)), None)
    n_at_once = max(1, min(len(paths), budget_bytes // (2 * path_bytes)))
    while True:
        least = least_fit_bytes(n_rows, n_features, n_at_once, n_classes, dtype, facts, **options)
        left = budget_bytes - n_at_once * path_bytes
        if least <= left:
            return SweepPlan(paths, n_at_once, left)
        if n_at_once == 1:
            raise WorkspaceError(
                f"memory_budget={budget_bytes} bytes is too small for one problem of {n_features} features and "
                f"{n_classes} classes and what its solver remembers: give at least "
                f"memory_budget={path_bytes + least}."
            )
        n_at_once = max(1, n_at_once // 2)
