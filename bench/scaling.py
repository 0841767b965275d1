"""scaling: seconds of a pass and of a short fit over rows, features, classes and threads, with fitted exponents."""

import itertools
from dataclasses import dataclass

import numpy as np

from bench import cases, fresh, libraries
from bench.cases import Case, Data
from bench.libraries.base import Pass, PassLibrary, n_threads
from bench.one_pass import compare
from bench.options import Options
from bench.results import Results, Row
from gpusoftmax import SoftmaxRegression

ROWS = tuple(Case("random", n_rows, 32, 10) for n_rows in (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000))
FEATURES = tuple(Case("random", 50_000, n_features, 10) for n_features in (16, 32, 64, 128, 256, 512, 1024))
CLASSES = tuple(Case("random", 20_000, 128, n_classes) for n_classes in (4, 16, 64, 256, 1024))
THREADS = tuple(Case("random", *shape) for shape in cases.SHAPES[1:5])
SMOKE = {
    "rows": tuple(Case("random", n_rows, 4, 3) for n_rows in (2000, 20_000)),
    "threads": (Case("random", 2000, 4, 3),),
}


@dataclass(frozen=True)
class ShortFit:
    """A few steps of our solver, metric included."""

    name: str = "gpusoftmax, fit of 5 steps"
    device: str = "cpu"
    settings: str = "max_iter=5, tol=0"

    def lay_out(self, W: np.ndarray, b: np.ndarray) -> None:
        """Have no use for them: a fit starts anew."""

    def prepare_pass(self, data: Data, params: None) -> Pass:
        model = SoftmaxRegression(max_iter=5, tol=0)
        return Pass(lambda: model.fit(data.X, data.targets), None)


LIBRARIES: tuple[PassLibrary, ...] = (libraries.OURS, ShortFit(), libraries.SCIKIT_LEARN, libraries.PYTORCH)


def measure(options: Options, results: Results) -> None:
    """Add a row for every case and library to the table "scaling", and the exponents to "exponents"."""
    axes = SMOKE if options.is_smoke else {"rows": ROWS, "features": FEATURES, "classes": CLASSES, "threads": THREADS}
    chosen = options.choose_libraries(LIBRARIES[: 2 if options.is_smoke else None])
    for axis, over in axes.items():
        rows: list[Row] = []
        counts = range(1, n_threads() + 1) if axis == "threads" else [n_threads()]
        for case, n_cpus in itertools.product(options.choose_cases(over, over), counts):
            results.say(f"{axis}: {case.name}, {n_cpus} threads")
            found = fresh.call(run, case, chosen, options, n_cpus=n_cpus)
            rows += [{"axis": axis, "n_threads": n_cpus, **row} for row in found]
            for row in rows[-len(found) :]:
                results.add("scaling", row)
        for row in exponents(axis, rows) if axis != "threads" else []:
            results.add("exponents", row)


def run(case: Case, chosen: list[PassLibrary], options: Options) -> list[Row]:
    """Return the rows of a case, in this process's threads."""
    return compare(case, cases.make(case, options.data), chosen, options, lambda text: None)


def exponents(axis: str, rows: list[Row]) -> list[Row]:
    """Return each library's exponent of its seconds over the axis."""
    result = []
    for library in dict.fromkeys(row["library"] for row in rows):
        done = [row for row in rows if row["library"] == library and "seconds_min" in row]
        sizes, seconds = ([row[key] for row in done] for key in (f"n_{axis}", "seconds_min"))
        if len(set(sizes)) > 1:
            ends = {"smallest": min(sizes), "largest": max(sizes)}
            result.append({"axis": axis, "library": library, **ends, "exponent": fitted_exponent(sizes, seconds)})
    return result


def fitted_exponent(sizes, seconds) -> float:
    """Return p of the least-squares line log seconds = p · log size + c."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
