"""gpusoftmax: `sweep` up to the objectives that another library ended with, for a comparison of equals."""

from dataclasses import dataclass
from unittest import mock

import numpy as np

import gpusoftmax
from gpusoftmax import training


@dataclass(frozen=True)
class OursToTargets:
    """All problems in one call, each strength up to the objectives that another library ended with."""

    name: str = "gpusoftmax, to the loop's objectives"
    settings: str = "sweep stopped at each strength's objectives, fit_many with tol=1e-2"
    follows: str = "scikit-learn loop"

    def sweep(self, grid):
        if grid.X.ndim > 2:
            fits = gpusoftmax.fit_many(grid.X, grid.y, C=float(grid.Cs[0]), tol=1e-2, device="cpu")
        else:
            with mock.patch.object(training, "climb", stopping_at(grid)):
                fits = gpusoftmax.sweep(grid.X, grid.y, Cs=grid.Cs, cv=grid.splits or None, device="cpu")
        yield list(zip(fits.coef, fits.intercept, strict=True))


def stopping_at(grid):
    """Return the solver, stopped once all problems that it solves together are at most at the grid's targets."""
    climb, targets = training.climb, None if grid.targets is None else grid.targets.reshape(len(grid.Cs), -1)

    def solve(solver, objectives, params, callback, **options):
        objective = objectives[-1]
        n_columns = params.shape[2]
        C = 1 / (objective.penalty.strength * objective.total_weight) * (2 if n_columns == 2 else 1)
        strengths = np.abs(np.log(C[:, np.newaxis] / grid.Cs)).argmin(axis=1)
        columns = objective.fused_pass.source.columns
        folds = np.zeros(len(C), int) if columns is None else columns

        def is_there(progress):
            stops = callback(progress)
            return stops or (targets is not None and bool((progress.values <= targets[strengths, folds]).all()))

        return climb(solver, objectives, params, is_there, **options)

    return solve
