"""Fit two data sets with gpusoftmax and with scikit-learn's LogisticRegression, and print both side by side.

Both get the same rows in the same order and dtype, C = 1, tol = 1e-4, at most 1000 iterations, as many threads as BLAS
would use and no warm-up; all else is each library's default. Every fit is one run in a process of its own. Measured:

* accuracy on rows held out of the fit, by the library's own `score`;
* objective and largest absolute gradient entry at the coefficients found, by the float64 judge of `bench`;
* passes over X: gpusoftmax says `n_passes_`, those for its metric included; scikit-learn's evaluations of loss and
  gradient are counted by wrapping the one method that makes them;
* seconds of `fit`, and the most memory that it held beyond what the process, data included, had before.

The synthetic features have unequal scales, as raw data have: scikit-learn needs fewer passes where they are equal.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_info

from bench import fresh, judge, libraries
from bench.cases import Data, teacher
from bench.figures import draw_gaps
from bench.fit import Values, find_optimum
from bench.memory import can_reset_peak, watch
from bench.recording import Counter, Recorder, recorded_scikit_learn
from gpusoftmax import SoftmaxRegression

C, TOL, MAX_ITER, SEED = 1.0, 1e-4, 1000, 0
TIMEOUT_SECONDS = 900
LIBRARIES = {"gpusoftmax": SoftmaxRegression, "scikit-learn": LogisticRegression}
DATA_SETS = {
    "digits": "1,347 x 64 float64, 10 classes, pixels 0 to 16; 450 rows held out",
    "synthetic": f"200,000 x 784 float32, 10 classes, seed {SEED}; 20,000 rows held out",
}


@dataclass
class Row:
    """What one fit gave."""

    accuracy: float
    objective: float
    gradient: float
    passes: float
    seconds: float
    memory_bytes: int
    warned: list[str]


Rows = dict[str, Row | str]  # by library; a string says why a fit failed


# ---------------------------------------------------------------- in a process of its own


def load(data_set: str):
    """Return X, y, X_test, y_test: images of handwritten digits, or what `bench.cases.teacher` draws."""
    if data_set == "synthetic":
        return teacher(seed=SEED)
    X, X_test, y, y_test = train_test_split(*load_digits(return_X_y=True), random_state=SEED)
    return X, y, X_test, y_test


def measure(library: str, data_set: str) -> Row:
    """Fit once and judge the result."""
    X, y, X_test, y_test = load(data_set)
    model = LIBRARIES[library](C=C, tol=TOL, max_iter=MAX_ITER)
    counter = Counter()  # stays at zero where gpusoftmax fits
    with recorded_scikit_learn(counter, 10), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        extra_bytes = watch()
        start = time.perf_counter()
        model.fit(X, y)
        seconds = time.perf_counter() - start
        memory_bytes = extra_bytes()
    found = (X, y, model.coef_, model.intercept_, C)
    return Row(
        accuracy=model.score(X_test, y_test),
        objective=judge.objective(*found),
        gradient=judge.largest_gradient(*found),
        passes=counter.n_passes or model.n_passes_,
        seconds=seconds,
        memory_bytes=memory_bytes,
        warned=[f"{w.category.__name__}: {str(w.message).splitlines()[0]}" for w in caught],
    )


def gaps(data_set: str) -> dict[str, list[tuple[float, float]]]:
    """Return each library's passes and relative gaps to the optimum, for points all along its fit."""
    X, y, *_ = load(data_set)
    data = Data(X, y, 10, C)
    curves = {}
    for library in (libraries.OURS, libraries.SCIKIT_LEARN):
        recorder = Recorder(TIMEOUT_SECONDS)
        library.fit(data, recorder)
        values = Values(data, recorder.points)
        curves[library.name] = [(values.points[i].n_passes, values[i]) for i in values.sampled]
    optimum = min([find_optimum(data), *(value for curve in curves.values() for _, value in curve)])
    return {
        library: [(n_passes, value / optimum - 1) for n_passes, value in curve] for library, curve in curves.items()
    }


# ---------------------------------------------------------------- all fits, and the tables


def ask(function, *args: str, log: Console):
    """Return the answer of a fresh process, or an error message."""
    start, what = time.perf_counter(), " ".join(args)
    try:
        with log.status(f"{what} ..."):
            return fresh.call(function, *args, limit_seconds=TIMEOUT_SECONDS)
    except RuntimeError as error:
        return str(error)
    finally:
        log.print(f"{what}: {time.perf_counter() - start:.1f} s, data and judge included")


def settings() -> str:
    """Say what runs, and how, in lines of at most 80 characters."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in (*LIBRARIES, "numpy"))
    n_threads = max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)
    memory = "VmHWM - VmRSS" if can_reset_peak() else "getrusage"
    return (
        f"{versions}\nPython {platform.python_version()}, {os.cpu_count()} CPUs, {n_threads} BLAS threads\n"
        f"Both: C = {C:g}, tol = {TOL:g}, max_iter = {MAX_ITER} (scikit-learn's default is 100), all else\n"
        "default; one run each, in a fresh process, without warm-up. Objective and\n"
        "gradient: one float64 judge. Extra MB: peak during fit beyond what was held\n"
        f"before ({memory}).\n"
    )


def table(data_set: str, rows: Rows) -> Table:
    """Lay out one data set's rows, failures and warnings included."""
    result = Table("library", title=f"{data_set}: {DATA_SETS[data_set]}", title_justify="left", box=SIMPLE_HEAD)
    for name in ("held-out\naccuracy", "objective", "max\n|gradient|", "passes\nover X", "seconds", "extra\nMB"):
        result.add_column(name, justify="right")
    notes = []
    for library, row in rows.items():
        if isinstance(row, str):
            result.add_row(library, "FAILED")
            notes.append(f"{library} failed: {row}")
            continue
        figures = f"{row.accuracy:.4f} {row.objective:#.6g} {row.gradient:.1e} {row.passes:.1f} {row.seconds:.2f}"
        result.add_row(library, *figures.split(), f"{row.memory_bytes / 1e6:.1f}")
        notes += [f"{library} warned: {warning}" for warning in row.warned]
    result.caption = "\n".join(notes) or None
    return result


def in_words(rows: Rows, load: float) -> str:
    """Say how gpusoftmax compares with scikit-learn, whichever is better.

    `load` is the machine's before the first fit: fits that share their CPUs can take several times their seconds.
    """
    ours, theirs = (rows[library] for library in LIBRARIES)
    if isinstance(ours, str) or isinstance(theirs, str):
        return "no comparison, for a fit failed"
    lower = 1 - ours.objective / theirs.objective
    points = 100 * (ours.accuracy - theirs.accuracy)
    n_cpus = os.cpu_count() or 1
    memory = [max(row.memory_bytes, 1e5) for row in (ours, theirs)]  # 0.1 MB is what the table resolves
    words = [
        f"objective {'lower' if lower > 0 else 'higher'} by {100 * abs(lower):.2g} %",
        f"accuracy {'higher' if points > 0 else 'lower'} by {abs(points):.2g} points" if points else "accuracy equal",
        _ratio(theirs.passes / ours.passes, "fewer passes", "more passes", "about as many passes"),
        f"speed not compared since other programs ran (load {load:.1f} on {n_cpus} CPUs)"
        if load > 0.75 * n_cpus
        else _ratio(theirs.seconds / ours.seconds, "faster", "slower", "about as fast"),
        _ratio(memory[1] / memory[0], "less extra memory", "more extra memory", "about as much extra memory"),
    ]
    return ", ".join(words)


def _ratio(gain: float, better: str, worse: str, equal: str) -> str:
    if 1 / 1.05 < gain < 1.05:
        return equal
    return f"{gain:.2g}x {better}" if gain > 1 else f"{1 / gain:.2g}x {worse}"


def main() -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(description="gpusoftmax beside scikit-learn's LogisticRegression.")
    parser.add_argument("--figure", type=Path, metavar="DIR", help="draw convergence-light.svg and -dark.svg there")
    arguments = parser.parse_args()
    if arguments.figure and importlib.util.find_spec("matplotlib") is None:
        command = f"{sys.executable} -m pip install matplotlib"
        parser.error(f"--figure needs matplotlib: pip install gpusoftmax[plots], or in this clone: {command}")
    out, log = Console(highlight=False), Console(stderr=True, highlight=False)
    load_before = os.getloadavg()[0]
    out.print(settings(), soft_wrap=True)
    results = {
        data_set: {library: ask(measure, library, data_set, log=log) for library in LIBRARIES} for data_set in DATA_SETS
    }
    for data_set, rows in results.items():
        out.print(table(data_set, rows))
    for data_set, rows in results.items():
        out.print(f"{data_set}: {in_words(rows, load_before)}.", soft_wrap=True)
    failed = any(isinstance(row, str) for rows in results.values() for row in rows.values())
    if arguments.figure and not failed:
        arguments.figure.mkdir(parents=True, exist_ok=True)
        panels = {
            f"{data_set}: {DATA_SETS[data_set]}".split(" float")[0]: ask(gaps, data_set, log=log)
            for data_set in DATA_SETS
        }
        if errors := [panel for panel in panels.values() if isinstance(panel, str)]:
            raise SystemExit(f"scripts/demo: no figure, since a fit failed: {errors[0]}")
        draw_gaps(panels, arguments.figure, "convergence", "passes over X", "linear")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
