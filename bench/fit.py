"""fit: objective against time and passes over X, every library judged by one float64 objective."""

import math
import time
import warnings
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from bench import cases, judge, libraries
from bench.cases import Case, Data
from bench.libraries.base import FitLibrary, Params
from bench.one_pass import PAUSE_SECONDS
from bench.options import Options
from bench.recording import Counter, Point, Recorder, TimeIsUpError
from bench.results import Results, Row, error_of
from gpusoftmax import SoftmaxRegression

GAPS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # relative, above the optimum
CONVERGED = "scikit-learn converged"  # the target that is scikit-learn's own end
WARM_ROWS = 2000  # of a first fit that is not timed: it starts threads and imports what is imported late
SECONDS = 10.0  # a library fits again and again until it has spent these, or has had `MAX_RUNS`
MAX_RUNS = 9
CURVE_POINTS = 48


def measure(options: Options, results: Results) -> None:
    """Add every library's way to each target to the table "fit", and its curve to "curves"."""
    for case in options.choose_cases(cases.FIT, cases.SMOKE_FIT):
        results.say(f"making {case.name}")
        try:
            data = cases.make(case, options.data, is_fetched=options.is_fetched)
            report(case, data, run_all(case, data, options, results), results)
        except Exception as error:  # a set that is not there, memory that does not suffice
            results.add("fit", {"case": case.name, **error_of(error)})


@dataclass
class Fits:
    """A library's fits of one case; of the fastest, all points that it evaluated and where it ended."""

    library: FitLibrary
    data: Data
    best: Recorder = field(default_factory=lambda: Recorder(0))
    end: Params | None = None
    note: str = ""
    spent_seconds: float = 0.0
    n_runs: int = 0

    def run(self, limit_seconds: float) -> None:
        """Fit once."""
        recorder, end = Recorder(limit_seconds), None
        try:
            end = self.library.fit(self.data, recorder)
        except TimeIsUpError as error:
            self.note = str(error)
        recorder.total_seconds = recorder.seconds
        self.spent_seconds += recorder.total_seconds
        self.n_runs += 1
        if recorder.total_seconds < self.best.total_seconds:
            self.best, self.end = recorder, end

    @property
    def is_enough(self) -> bool:
        return self.n_runs >= MAX_RUNS or self.spent_seconds > SECONDS

    @cached_property
    def values(self) -> "Values":
        return Values(self.data, self.best.points)


@dataclass
class Values:
    """The objective at a fit's points, each judged when it is first asked for."""

    data: Data
    points: list[Point]
    _known: dict[int, float] = field(default_factory=dict)

    def __getitem__(self, i: int) -> float:
        if i not in self._known:
            self._known[i] = objective(self.data, self.points[i].W, self.points[i].b)
        return self._known[i]

    @cached_property
    def sampled(self) -> list[int]:
        """Return points for a curve, evenly along the logarithm, and the last three."""
        n_points = len(self.points)
        spread = np.unique(np.geomspace(1, n_points, CURVE_POINTS).astype(int)) - 1
        return sorted({*spread.tolist(), *range(max(0, n_points - 3), n_points)})

    def first_below(self, target: float) -> Point | None:
        """Return the first point whose objective is at most `target`, found by bisection.

        Objectives fall all the way but for rejected trial steps; only up to the lowest sampled one is searched.
        """
        lowest = min(self.sampled, key=self.__getitem__)
        if self[lowest] > target:
            return None
        return self.points[bisect_left(range(lowest), True, key=lambda i: self[i] <= target)]


def objective(data: Data, W: np.ndarray, b: np.ndarray) -> float:
    """Return the judge's objective at W (n_features, n_classes) and b."""
    return judge.objective(data.X, data.targets, W.T, b, data.C)


def run_all(case: Case, data: Data, options: Options, results: Results) -> list[Fits]:
    """Let every library fit, in turn and again while fits are short; those that fail become rows."""
    fits = [Fits(library, data) for library in options.choose_libraries(libraries.FIT)]
    for i in range(1 if options.is_smoke else MAX_RUNS):
        for one in list(fits):
            if one.is_enough:
                continue
            results.say(f"{case.name}: {one.library.name}, fit {i + 1}")
            try:
                if i == 0:
                    one.library.fit(data.head(WARM_ROWS), Counter())
                time.sleep(0 if options.is_smoke else PAUSE_SECONDS)
                one.run(options.limit_seconds)
            except Exception as error:  # whatever a library raises is its row
                results.add("fit", {"case": case.name, "library": one.library.name, **error_of(error)})
                fits.remove(one)
    return fits


def report(case: Case, data: Data, fits: list[Fits], results: Results) -> None:
    """Judge the fits and add their rows."""
    results.say(f"{case.name}: looking for the optimum")
    optimum = min([find_optimum(data), *(one.values[i] for one in fits for i in one.values.sampled)])
    targets = {f"gap {gap:g}": optimum * (1 + gap) for gap in GAPS}
    for one in fits:
        if one.library.name == libraries.SCIKIT_LEARN.name and one.end is not None:
            targets = {CONVERGED: objective(data, *one.end)} | targets
    ours = next((one for one in fits if one.library.name == libraries.OURS.name), None)
    n_rows, n_features = data.X.shape
    shape = {"n_rows": n_rows, "n_features": n_features, "n_classes": data.n_classes}
    about = {"case": case.name, **shape, "dtype": case.dtype, "C": case.C, "optimum": optimum}
    for one in fits:
        results.say(f"{case.name}: judging {one.library.name}")
        who = about | {"library": one.library.name, "settings": one.library.settings, "n_runs": one.n_runs}
        for target, value in targets.items():
            point, reference = one.values.first_below(value), ours and ours.values.first_below(value)
            results.add("fit", who | {"target": target, "objective": value} | _way(point, reference))
        results.add("fit", who | {"target": "end", **_end(one, data)})
        for i in one.values.sampled:
            point, gap = one.values.points[i], one.values[i] / optimum - 1
            way = {"n_passes": point.n_passes, "seconds": point.seconds, "gap": gap}
            results.add("curves", {"case": case.name, "library": one.library.name, **way}, is_logged=False)


def find_optimum(data: Data) -> float:
    """Return the objective of a fit in float64 to a tolerance far below everyone's."""
    precise = replace(data, X=data.X.astype(np.float64))
    model = SoftmaxRegression(C=data.C, tol=1e-8, max_iter=10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at the limit of float64 it is low enough
        model.fit(precise.X, precise.targets)
    return judge.objective(precise.X, precise.targets, model.coef_, model.intercept_, data.C)


def _way(point: Point | None, ours: Point | None) -> Row:
    """Return when a target was reached, and that over ours; nothing if it was not."""
    if point is None:
        return {}
    return {
        "n_passes": point.n_passes,
        "seconds": point.seconds,
        "times_ours": point.seconds / ours.seconds if ours else math.nan,
    }


def _end(one: Fits, data: Data) -> Row:
    """Return what the fastest fit took in all, and the objective where it ended."""
    end = {"n_passes": one.best.n_passes, "seconds": one.best.total_seconds, "note": one.note}
    return end if one.end is None else end | {"objective": objective(data, *one.end)}
