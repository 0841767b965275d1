"""gpusoftmax: `sweep` and `fit_many` for all problems at once, and single fits one by one."""

from dataclasses import dataclass

import gpusoftmax
from bench.libraries.base import backend_on


@dataclass(frozen=True)
class OursTogether:
    """All problems in one call with its defaults, on a device."""

    name: str = "gpusoftmax"
    device: str = "cpu"
    settings: str = "sweep or fit_many, defaults"
    follows: str = ""

    def sweep(self, grid):
        backend_on(self.device)
        if grid.X.ndim > 2:
            fits = gpusoftmax.fit_many(grid.X, grid.y, C=float(grid.Cs[0]), device=self.device)
        else:
            fits = gpusoftmax.sweep(grid.X, grid.y, Cs=grid.Cs, cv=grid.splits or None, device=self.device)
        yield list(zip(fits.coef, fits.intercept, strict=True))


@dataclass(frozen=True)
class OursOneByOne:
    """`SoftmaxRegression` with its defaults, each fit from nothing, on a device."""

    name: str = "SoftmaxRegression, one by one"
    device: str = "cpu"
    settings: str = "defaults"
    follows: str = ""

    def sweep(self, grid):
        backend_on(self.device)
        for p in range(len(grid)):
            X, y, C = grid.problem(p)
            model = gpusoftmax.SoftmaxRegression(C=C, device=self.device).fit(X, y)
            yield [(model.coef_, model.intercept_)]
