"""scikit-learn: a loop of `LogisticRegression` with warm starts, and `LogisticRegressionCV`."""

from dataclasses import dataclass
from typing import Any

from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from threadpoolctl import threadpool_limits

from bench.libraries.base import UnavailableError, n_threads

MAX_ITER = 20_000
CV_OPTIONS: dict[str, Any] = {
    "tol": 1e-4,
    "max_iter": MAX_ITER,
    "l1_ratios": (0,),
    "scoring": "neg_log_loss",
    "refit": False,
    "use_legacy_attributes": False,
}


@dataclass(frozen=True)
class ScikitLearnLoop:
    """Each set's fits from the strongest penalty to the weakest, each from where the one before ended."""

    name: str = "scikit-learn loop"
    limit: int | None = None
    tol: float = 1e-4
    follows: str = ""

    @property
    def settings(self) -> str:
        return f"tol={self.tol:g}, max_iter={MAX_ITER}, warm_start=True" + f", {self.limit} thread" * bool(self.limit)

    def sweep(self, grid):
        models = [LogisticRegression(warm_start=True, tol=self.tol, max_iter=MAX_ITER) for _ in grid.sets]
        with threadpool_limits(self.limit):
            for p in range(len(grid)):
                X, y, C = grid.problem(p)
                model = models[p % len(models)].set_params(C=C).fit(X, y)
                yield [(model.coef_, model.intercept_)]


@dataclass(frozen=True)
class ScikitLearnCV:
    """`LogisticRegressionCV`, a process for each CPU, each of which takes folds."""

    name: str = "LogisticRegressionCV"
    settings: str = f"tol=1e-4, max_iter={MAX_ITER}, n_jobs=number of CPUs, scoring=neg_log_loss, refit=False"
    follows: str = "scikit-learn loop"

    def sweep(self, grid):
        if not grid.splits:
            raise UnavailableError("needs folds: LogisticRegressionCV cross-validates")
        model = LogisticRegressionCV(Cs=grid.Cs, cv=grid.splits, n_jobs=n_threads(), **CV_OPTIONS)
        model.fit(grid.X, grid.y)
        paths = model.coefs_paths_[:, 0].swapaxes(0, 1)  # (n_strengths, n_folds, n_classes, n_features + 1)
        yield [(rows[:, :-1], rows[:, -1]) for of_strength in paths for rows in of_strength]
