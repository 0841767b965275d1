"""sweep: seconds of every strength on every fold or data set, to objectives that one judge compares."""

import math
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from bench import grids, judge, libraries
from bench.cases import Case
from bench.fit import MAX_RUNS, SECONDS
from bench.grids import Grid, Sweep
from bench.libraries.base import Coefficients, SweepLibrary
from bench.one_pass import PAUSE_SECONDS
from bench.options import Options
from bench.results import Results, error_of

TINY = Case("teacher", 200, 8, 3)  # of a first sweep that is not timed: it starts threads, processes and late imports


def measure(options: Options, results: Results) -> None:
    """Add a row for every case and library to the table "sweep"."""
    chosen = options.choose_libraries(libraries.SWEEP)
    for case in options.choose_cases(grids.SWEEPS, grids.SMOKE):
        results.say(f"making {case.name}")
        try:
            grid = grids.make(case, options.data, is_fetched=options.is_fetched)
        except OSError as error:
            results.add("sweep", {"case": case.name, **error_of(error)})
            continue
        runs = run_all(case, [Runs(library, grid) for library in chosen], options, results)
        report(case, grid, runs, results)


@dataclass
class Runs:
    """A library's sweeps of one case; of the best, the problems that were done.

    fits : of every problem scikit-learn's coef_ and intercept_
    ends : seconds after which each was done
    """

    library: SweepLibrary
    grid: Grid
    fits: list[Coefficients] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    spent_seconds: float = 0.0
    n_runs: int = 0

    def run(self, limit_seconds: float = math.inf) -> None:
        """Sweep once, up to the first problem that ends after the limit."""
        ends: list[float] = []
        fits: list[Coefficients] = []
        start = time.perf_counter()
        with closing(self.library.sweep(self.grid)) as batches:
            for batch in batches:
                fits += batch
                ends += [time.perf_counter() - start] * len(batch)
                if ends[-1] > limit_seconds:
                    break
        self.spent_seconds += ends[-1]
        self.n_runs += 1
        n_done = self.grid.n_comparable(len(fits))
        if not n_done:
            raise TimeoutError(f"stopped after {ends[-1]:.0f} s, before every fold was done with one strength")
        if n_done > len(self.fits) or (n_done == len(self.fits) and ends[n_done - 1] < self.seconds):
            self.fits, self.ends = fits[:n_done], ends[:n_done]

    @property
    def seconds(self) -> float:
        return self.ends[-1]

    @property
    def is_enough(self) -> bool:
        return self.n_runs >= MAX_RUNS or self.spent_seconds > SECONDS

    def follow(self, leader: "Runs", seconds: float) -> None:
        """Take on the problems that another had done by then, at least the first strength."""
        n_done = self.grid.n_comparable(sum(end <= seconds for end in leader.ends))
        self.grid = self.grid.head(max(n_done, len(self.grid.sets) if len(self.grid.Cs) > 1 else 1))

    def objectives(self) -> np.ndarray:
        """Return the judge's objective of every problem that was done."""
        problems = (self.grid.problem(p) for p in range(len(self.fits)))
        return np.array([judge.objective(X, y, *fit, C) for (X, y, C), fit in zip(problems, self.fits, strict=True)])


def run_all(case: Sweep, runs: list[Runs], options: Options, results: Results) -> list[Runs]:
    """Let every library sweep, in turn and again while sweeps are short; those that fail become rows."""
    left = list(runs)
    for i in range(1 if options.is_smoke else MAX_RUNS):
        for one in [run for run in left if not run.is_enough]:
            results.say(f"{case.name}: {one.library.name}, sweep {i + 1}")
            try:
                if i == 0:
                    warm_up(case, one.library)
                    for leader in (run for run in left if run.library.name == one.library.follows):
                        one.follow(leader, options.limit_seconds / 2)
                        one.grid = replace(one.grid, targets=leader.objectives()[: len(one.grid)])
                time.sleep(0 if options.is_smoke else PAUSE_SECONDS)
                one.run(options.limit_seconds)
            except Exception as error:  # whatever a library raises is its row
                results.add("sweep", {"case": case.name, "library": one.library.name, **error_of(error)})
                left.remove(one)
    return left


def warm_up(case: Sweep, library: SweepLibrary) -> None:
    """Run a sweep of the same kind that takes no time."""
    tiny = replace(case, rows=TINY, n_strengths=min(case.n_strengths, 2), n_sets=min(case.n_sets, 2))
    Runs(library, grids.make(tiny, Path())).run()


def report(case: Sweep, grid: Grid, runs: list[Runs], results: Results) -> None:
    """Judge what was fitted and add a row for every library, beside ours on the problems that it had done."""
    objectives = {}
    least = np.full(len(grid), np.inf)
    for one in runs:
        results.say(f"{case.name}: judging {one.library.name}")
        objectives[one.library.name] = values = one.objectives()
        least[: len(values)] = np.minimum(least[: len(values)], values)
    *_, n_rows, n_features = grid.X.shape
    shape = {"n_rows": n_rows, "n_features": n_features, "n_classes": int(grid.y.max()) + 1, "dtype": case.rows.dtype}
    counts = {"n_strengths": case.n_strengths, "n_folds": case.n_folds, "n_sets": case.n_sets, "n_problems": len(grid)}
    ours = next((one for one in runs if one.library.name == libraries.TOGETHER.name), None)
    for one in runs:
        values = objectives[one.library.name]
        about = {"library": one.library.name, "settings": one.library.settings, "n_runs": one.n_runs}
        figures = {"n_compared": len(values), "seconds": one.seconds, "worst_excess": worst_excess(values, least)}
        if ours is not None:
            results.say(f"{case.name}: ours on the {len(values)} problems of {one.library.name}")
            same = on_the_first(len(values), ours)
            figures |= {
                "ours_seconds": same.seconds,
                "times_ours": one.seconds / same.seconds,
                "ours_worst_excess": worst_excess(same.objectives(), values),
            }
        results.add("sweep", {"case": case.name, **shape, **counts, **about, **figures})


def on_the_first(n_problems: int, ours: Runs) -> Runs:
    """Return what ours takes for the first problems alone, in as many runs."""
    if n_problems == len(ours.fits):
        return ours
    some = Runs(ours.library, ours.grid.head(n_problems))
    for _ in range(ours.n_runs):
        time.sleep(PAUSE_SECONDS)
        some.run()
    return some


def worst_excess(values: np.ndarray, others: np.ndarray) -> float:
    """Return the largest relative excess of some objectives over others' of the same problems."""
    return float((values / others[: len(values)] - 1).max())
