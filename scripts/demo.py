"""Fit two data sets with gpusoftmax and with scikit-learn's LogisticRegression, and print both side by side.

Both get the same rows in the same order and dtype, C = 1, tol = 1e-4, at most 1000 iterations, as many threads as BLAS
would use and no warm-up; all else is each library's default. Every fit is one run in a process of its own. Measured:

* accuracy on rows held out of the fit, by the library's own `score`;
* objective and largest absolute gradient entry at the coefficients found, by one judge: plain NumPy in float64;
* passes over X: gpusoftmax says `n_passes_`, those for its metric included; scikit-learn's evaluations of loss and
  gradient are counted by wrapping the one method that makes them;
* seconds of `fit`, and the most memory that it held beyond what the process, data included, had before.

The synthetic features have unequal scales, as raw data have: scikit-learn needs fewer passes where they are equal.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model._linear_loss import LinearModelLoss
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_info

from gpusoftmax import SoftmaxRegression
from gpusoftmax.backends import get_backend
from gpusoftmax.solvers.lbfgs import LBFGS
from gpusoftmax.sources import ArraySource
from gpusoftmax.targets import encode_labels
from gpusoftmax.training import Training, train

C, TOL, MAX_ITER, SEED = 1.0, 1e-4, 1000, 0
BLOCK_ROWS = 2000
TIMEOUT_SECONDS = 900
LIBRARIES = {"gpusoftmax": SoftmaxRegression, "scikit-learn": LogisticRegression}
DATA_SETS = {
    "digits": "1,347 x 64 float64, 10 classes, pixels 0 to 16; 450 rows held out",
    "synthetic": f"200,000 x 784 float32, 10 classes, seed {SEED}; 20,000 rows held out",
}
THEMES = {  # text, grid, and a colour-blind-safe pair (Okabe & Ito)
    "light": ("#1f2328", "#d1d9e0", ("#0072b2", "#d55e00")),
    "dark": ("#e6edf3", "#3d444d", ("#56b4e9", "#e69f00")),
}
LABEL_PLACES = (  # of a curve's label, from its end: ours ends early and low, scikit-learn's late
    {"xytext": (8, 0), "horizontalalignment": "left", "verticalalignment": "bottom"},
    {"xytext": (4, 20), "horizontalalignment": "right", "verticalalignment": "bottom"},
)
LEAST_GAP = 1e-7  # what float32 resolves
CAPTION = (
    "Lowest so far; dots: where fits at tol = 1e-4 end. "
    "Optimum: lowest seen, gpusoftmax at tol = 1e-8 in float64 included."
)
Curve = list[tuple[float, float]]  # passes over X, objective


@dataclass
class Row:
    """What one fit gave; `curve` is scikit-learn's, ours is drawn by `trace`."""

    accuracy: float
    objective: float
    gradient: float
    passes: float
    seconds: float
    memory_bytes: int
    warned: list[str]
    curve: Curve


Rows = dict[str, Row | str]  # by library; a string says why a fit failed


# ---------------------------------------------------------------- data: X, y, X_test, y_test


def digits():
    """Return images of handwritten digits, which scikit-learn ships."""
    X, X_test, y, y_test = train_test_split(*load_digits(return_X_y=True), random_state=SEED)
    return X, y, X_test, y_test


def synthetic(n_rows=200_000, n_test=20_000, n_features=784, n_classes=10, n_factors=32):
    """Return correlated features of unequal scales, labelled at random by a softmax teacher; made block by block.

    x = scale * (noise + factors @ loadings), log scale ~ N(0, 0.4²); the classes overlap, so that no fit is perfect.
    """
    rng = np.random.default_rng(SEED)
    loadings = rng.standard_normal((n_factors, n_features), np.float32) / np.float32(np.sqrt(n_factors))
    scale = np.exp(rng.normal(0, 0.4, n_features)).astype(np.float32)
    teacher = rng.standard_normal((n_features, n_classes), np.float32) * np.float32(5 / np.sqrt(n_features))
    X = np.empty((n_rows + n_test, n_features), np.float32)
    y = np.empty(len(X), np.int64)
    for start in range(0, len(X), BLOCK_ROWS):
        x = X[start : start + BLOCK_ROWS]
        rng.standard_normal(out=x, dtype=np.float32)
        x += rng.standard_normal((len(x), n_factors), np.float32) @ loadings
        logits = x @ teacher
        y[start : start + BLOCK_ROWS] = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
        x *= scale
    return X[:n_rows], y[:n_rows], X[n_rows:], y[n_rows:]


# ---------------------------------------------------------------- one fit, in a process of its own


def measure(library: str, X, y, X_test, y_test) -> Row:
    """Fit once and judge the result."""
    model = LIBRARIES[library](C=C, tol=TOL, max_iter=MAX_ITER)
    curve = watch_scikit_learn()  # stays empty where gpusoftmax fits
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        extra_bytes = watch_memory()
        start = time.perf_counter()
        model.fit(X, y)
        seconds = time.perf_counter() - start
        memory_bytes = extra_bytes()
    objective, gradient = judge(X, y, model.coef_, model.intercept_)
    return Row(
        accuracy=model.score(X_test, y_test),
        objective=objective,
        gradient=gradient,
        passes=len(curve) or model.n_passes_,
        seconds=seconds,
        memory_bytes=memory_bytes,
        warned=[f"{w.category.__name__}: {str(w.message).splitlines()[0]}" for w in caught],
        curve=curve,
    )


def watch_scikit_learn() -> Curve:
    """Return the list to which every evaluation of scikit-learn's loss and gradient will be appended."""
    evaluate, curve = LinearModelLoss.loss_gradient, []

    def counted(self, *args, **kwargs):
        loss, gradient = evaluate(self, *args, **kwargs)
        curve.append((len(curve) + 1, float(loss)))
        return loss, gradient

    LinearModelLoss.loss_gradient = counted
    return curve


def judge(X, y, coef, intercept) -> tuple[float, float]:
    """Return J = mean loss + ‖W‖² / (2 C n_rows) and its largest absolute gradient entry, in float64."""
    W, b = coef.T.astype(np.float64), intercept.astype(np.float64)
    loss, grad_W, grad_b = 0.0, np.zeros_like(W), np.zeros_like(b)
    for start in range(0, len(X), BLOCK_ROWS):
        x, target = X[start : start + BLOCK_ROWS].astype(np.float64), y[start : start + BLOCK_ROWS]
        logits = x @ W + b
        logits -= logits.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(logits).sum(axis=1))
        loss += (log_sum - logits[np.arange(len(x)), target]).sum()
        residual = np.exp(logits - log_sum[:, np.newaxis])
        residual[np.arange(len(x)), target] -= 1
        grad_W += x.T @ residual
        grad_b += residual.sum(axis=0)
    gradient = max(np.abs(grad_W + W / C).max(), np.abs(grad_b).max()) / len(X)
    return float((loss + (W**2).sum() / (2 * C)) / len(X)), float(gradient)


def watch_memory() -> Callable[[], int]:
    """Return what tells the peak of resident bytes since now, beyond those of now."""
    read_peak = _status_peak if can_reset_peak() else _usage_peak
    before = read_peak()
    return lambda: read_peak() - before


def can_reset_peak() -> bool:
    """Set the process's peak of resident memory back to what it holds now, where Linux lets us."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return _status_peak() > 0
    except (OSError, StopIteration):
        return False


def _status_peak() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))


def _usage_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def trace(X, y, tol: float) -> Curve:
    """Fit with gpusoftmax below the estimator, where a callback hears of every evaluation."""
    curve: Curve = []
    classes, targets = encode_labels(y)
    train(
        Training(C=np.array([C]), n_classes=len(classes)),
        ArraySource(X, targets, None, X.dtype),
        LBFGS(tol=tol, max_iter=MAX_ITER),
        get_backend("auto"),
        callback=lambda progress: curve.append((progress.n_passes, float(progress.values[0]))),
    )
    return curve


def work(task: str, data_set: str) -> object:
    """Do what `ask` asks."""
    X, y, X_test, y_test = {"digits": digits, "synthetic": synthetic}[data_set]()
    if task in LIBRARIES:
        return asdict(measure(task, X, y, X_test, y_test))
    return trace(X, y, TOL) if task == "curve" else trace(X.astype(np.float64), y, 1e-8)


# ---------------------------------------------------------------- all fits, and the tables


def ask(task: str, data_set: str, log: Console):
    """Return the answer of a fresh process to `task`, or an error message."""
    command = [sys.executable, __file__, "--worker", task, data_set]
    start = time.perf_counter()
    try:
        with log.status(f"{data_set}: {task} ..."):
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"not done after {TIMEOUT_SECONDS} s"
    log.print(f"{data_set}: {task}: {time.perf_counter() - start:.1f} s, data and judge included")
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    return (done.stderr.strip().splitlines() or [f"ended with exit status {done.returncode}"])[-1]


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


# ---------------------------------------------------------------- the figure


def gaps(data_set: str, rows: Rows, log: Console) -> list[Curve]:
    """Return each library's passes and relative gap of its lowest objective so far to the optimum."""
    ours, precise = ask("curve", data_set, log), ask("optimum", data_set, log)
    if isinstance(ours, str) or isinstance(precise, str):
        raise SystemExit(f"scripts/demo: no figure, since a fit of {data_set} failed: {ours} {precise}")
    curves = [ours, rows["scikit-learn"].curve]
    optimum = min(value for curve in (*curves, precise) for _, value in curve)
    lowest = [np.minimum.accumulate([value for _, value in curve]) for curve in curves]
    return [
        [(passes, max(value / optimum - 1, LEAST_GAP)) for (passes, _), value in zip(curve, values, strict=True)]
        for curve, values in zip(curves, lowest, strict=True)
    ]


def draw(panels: dict[str, list[Curve]], path: Path, theme: str) -> None:
    """Draw the relative gaps against passes, a panel for each data set."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    text, grid, colours = THEMES[theme]
    style = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), text)
    style |= dict.fromkeys(("axes.edgecolor", "grid.color"), grid)
    style |= dict.fromkeys(("axes.spines.top", "axes.spines.right"), False)
    style |= dict.fromkeys(("xtick.major.size", "ytick.major.size", "ytick.minor.size"), 0)
    style |= {"axes.grid": True, "axes.grid.axis": "y", "axes.facecolor": "none", "svg.hashsalt": "gpusoftmax"}
    with mpl.rc_context(style):
        figure = Figure(figsize=(8.4, 3.6), layout="constrained", facecolor="none")
        figure.supxlabel(CAPTION, fontsize=8)
        for axes, (data_set, curves) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
            for library, colour, curve, place in zip(LIBRARIES, colours, curves, LABEL_PLACES, strict=True):
                passes, _ = end = curve[-1]
                axes.semilogy(*zip(*curve, strict=True), color=colour, linewidth=2)
                axes.plot(*end, "o", color=colour)
                label = f"{library}\n{passes:.0f} passes"
                axes.annotate(label, end, textcoords="offset points", color=colour, fontsize=11, **place)
            axes.set(xlabel="passes over X", xlim=(0, None))
            axes.set_yticks((LEAST_GAP, 1e-5, 1e-3, 0.1, 10), ("≤ 1e-7", "1e-5", "0.001", "0.1", "10"))
            axes.minorticks_off()
            axes.locator_params(axis="x", nbins=4)
            axes.set_title(f"{data_set}: {DATA_SETS[data_set].split(' float')[0]}", fontsize=10)
        figure.axes[0].set_ylabel("relative gap to the optimum")
        figure.savefig(path, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))


def main() -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(description="gpusoftmax beside scikit-learn's LogisticRegression.")
    parser.add_argument("--figure", type=Path, metavar="DIR", help="draw convergence-light.svg and -dark.svg there")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        sys.stdout.write(json.dumps(work(*arguments.worker)) + "\n")
        return 0
    if arguments.figure and importlib.util.find_spec("matplotlib") is None:
        command = f"{sys.executable} -m pip install matplotlib"
        parser.error(f"--figure needs matplotlib: pip install gpusoftmax[plots], or in this clone: {command}")
    out, log = Console(highlight=False), Console(stderr=True, highlight=False)
    load = os.getloadavg()[0]
    out.print(settings(), soft_wrap=True)
    results: dict[str, Rows] = {data_set: {} for data_set in DATA_SETS}
    for data_set, rows in results.items():
        for library in LIBRARIES:
            answer = ask(library, data_set, log)
            rows[library] = answer if isinstance(answer, str) else Row(**answer)
    for data_set, rows in results.items():
        out.print(table(data_set, rows))
    for data_set, rows in results.items():
        out.print(f"{data_set}: {in_words(rows, load)}.", soft_wrap=True)
    failed = any(isinstance(row, str) for rows in results.values() for row in rows.values())
    if arguments.figure and not failed:
        arguments.figure.mkdir(parents=True, exist_ok=True)
        panels = {data_set: gaps(data_set, rows, log) for data_set, rows in results.items()}
        for theme in THEMES:
            draw(panels, arguments.figure / f"convergence-{theme}.svg", theme)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
