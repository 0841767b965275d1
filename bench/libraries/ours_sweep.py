"""gpusoftmax: `sweep` and `fit_many` for all problems at once, and single fits one by one."""

from dataclasses import dataclass

import gpusoftmax


@dataclass(frozen=True)
class OursTogether:
    """All problems in one call with its defaults."""

    name: str = "gpusoftmax"
    settings: str = "sweep or fit_many, defaults"
    follows: str = ""

    def sweep(self, grid):
        if grid.X.ndim > 2:
            fits = gpusoftmax.fit_many(grid.X, grid.y, C=float(grid.Cs[0]))
        else:
            fits = gpusoftmax.sweep(grid.X, grid.y, Cs=grid.Cs, cv=grid.splits or None)
        yield list(zip(fits.coef, fits.intercept, strict=True))


@dataclass(frozen=True)
class OursOneByOne:
    """`SoftmaxRegression` with its defaults, each fit from nothing."""

    name: str = "SoftmaxRegression, one by one"
    settings: str = "defaults"
    follows: str = ""

    def sweep(self, grid):
        for p in range(len(grid)):
            X, y, C = grid.problem(p)
            model = gpusoftmax.SoftmaxRegression(C=C).fit(X, y)
            yield [(model.coef_, model.intercept_)]
