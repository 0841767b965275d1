"""optimum: objective reached and passes needed, ours beside scikit-learn's LogisticRegression at equal `tol`.

For every data set, raw and standardised, in float64 and float32 and for C in 1e-2, 1 and 1e2, both libraries fit with
tol=1e-4, and the judge evaluates both. scikit-learn's `max_iter` is raised so that it ends by its own criterion where
it can; ours keeps its default.
"""

import time
from collections.abc import Iterator

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from bench import cases, judge
from bench.cases import Case
from bench.options import Options
from bench.results import Results, Row, error_of
from gpusoftmax import SoftmaxRegression

SETS = (*cases.BUNDLED, "vowel", "spam", "letters", "mnist10k")
SMOKE_SETS = ("iris", "no_such_set")
STRENGTHS = (1e-2, 1.0, 1e2)
MAX_ITER = 10_000  # scikit-learn's


def measure(options: Options, results: Results) -> None:
    """Add a row for every data set, scaling, dtype and C to the table "optimum"."""
    sets = (Case(name, dtype="float64") for name in (SMOKE_SETS if options.is_smoke else SETS))
    for case in options.choose_cases(sets, sets):
        try:
            data = cases.make(case, options.data, is_fetched=options.is_fetched)
        except OSError as error:
            results.add("optimum", {"data": case.source, **error_of(error)})
            continue
        for row in compare(data.X, data.targets):
            results.add("optimum", {"data": case.source, **row})


def compare(X: np.ndarray, y: np.ndarray) -> Iterator[Row]:
    """Yield a row for every scaling, dtype and C."""
    for scaling, scaled in (("raw", X), ("standardised", StandardScaler().fit_transform(X))):
        for dtype in ("float64", "float32"):
            for C in STRENGTHS:
                row = fit_both(np.ascontiguousarray(scaled, dtype), y, C)
                yield {"scaling": scaling, "dtype": dtype, "C": C, **row}


def fit_both(X: np.ndarray, y: np.ndarray, C: float) -> Row:
    """Return what both libraries reach."""
    ours, ours_row = _fit("ours", SoftmaxRegression(C=C), X, y)
    _, theirs_row = _fit("sklearn", LogisticRegression(C=C, max_iter=MAX_ITER), X, y)
    difference = ours_row["ours_objective"] / theirs_row["sklearn_objective"] - 1
    return {
        **ours_row,
        "ours_passes": round(ours.n_passes_, 1),
        "ours_status": ours.status_.name,
        "ours_gradient_norm": ours.gradient_norm_,
        **theirs_row,
        "sklearn_max_iter": MAX_ITER,
        "relative_difference": difference,
        "holds": difference <= 1e-6,
    }


def _fit(key: str, model, X: np.ndarray, y: np.ndarray) -> tuple:
    """Fit, and return the model and its part of the row."""
    start = time.perf_counter()
    model.fit(X, y)
    seconds = time.perf_counter() - start
    reached = judge.objective(X, y, model.coef_, model.intercept_, model.C)
    return model, {
        f"{key}_seconds": round(seconds, 3),
        f"{key}_objective": reached,
        f"{key}_n_iter": int(model.n_iter_[0]),
    }
