"""`gpusoftmax fit` and `gpusoftmax sweep`: from a data file to a model on disk, or to the best C."""

import csv
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpusoftmax.calibration import calibrate
from gpusoftmax.cli.judging import check_report, judge, say_scores, write_report
from gpusoftmax.cli.outputs import check_output, written_whole
from gpusoftmax.cli.request import Request, Split, check_classes
from gpusoftmax.cli.terminal import Terminal
from gpusoftmax.estimator import SoftmaxRegression
from gpusoftmax.exceptions import DataError
from gpusoftmax.persistence import save_model
from gpusoftmax.scaling import Scaling
from gpusoftmax.solvers.base import Status
from gpusoftmax.sweep_result import SweepResult
from gpusoftmax.sweeps import sweep as run_sweep
from gpusoftmax.tables import Table, read_table


@dataclass(frozen=True)
class Prepared:
    """A table that is ready to be fitted: labels, features to fit, their scaling, and which rows are held out."""

    table: Table
    y: np.ndarray
    X: np.ndarray
    scaling: Scaling | None
    split: Split

    @property
    def judged(self) -> np.ndarray:
        """The rows that a model is judged by: those held out, or else those fitted."""
        return self.split.test if len(self.split.test) else self.split.fitted


def fit(
    terminal: Terminal,
    request: Request,
    *,
    one_standard_error: bool,
    calibration_size: float,
    model_path: Path | None,
    report_path: Path | None,
) -> None:
    """Fit one model, its C chosen by cross-validation where folds are given; judge it, save it, report on it."""
    check_output(model_path, [".safetensors"], request.data)
    check_report(report_path, request.data)
    data = _prepare(terminal, request, calibration_size)
    start = time.perf_counter()
    result = _sweep(terminal, request, data) if request.n_folds else None
    C = request.Cs[0] if result is None else result.best(one_standard_error=one_standard_error).C
    model = _fit_model(terminal, request, data, C)
    seconds = time.perf_counter() - start
    is_calibrated = len(data.split.calibration) > 0
    is_converged = model.status_ != Status.ITERATION_LIMIT and model.gradient_norm_ <= model.tol
    chosen = f", chosen of {len(result.settings)} by {result.n_folds} folds" if result else ""
    temperature = f"temperature {model.temperature_:.4g}; " if is_calibrated else ""
    terminal.say(f"C = {C:.4g}{chosen}; {temperature}{model.n_passes_:.0f} passes, {seconds:.2f} s.")
    terminal.say(f"The fit {model.status_.sentence}.")
    if result:
        _warn_of_edge(terminal, result, C)
    is_held_out = len(data.split.test) > 0
    scores = judge(model, data.table, data.y, data.judged)
    say_scores(terminal, scores, "rows held out" if is_held_out else "rows fitted", with_classes=False)
    if not is_held_out:
        terminal.say("No rows were held out: --test-size 0.2 would tell how well it does on new ones.")
    if model_path is None:
        terminal.say("The model was not saved: --output model.safetensors keeps it.")
    else:
        save_model(model, model_path)
        terminal.say(f"Model: {model_path}")
    if report_path is not None:
        write_report(model, data.table, data.y, data.judged, report_path, result)
        terminal.say(f"Report: {report_path}")
    terminal.answer(
        _summary(request, data)
        | {
            "classes": model.classes_,
            "C": C,
            "status": model.status_.name,
            "converged": is_converged,
            "objective": model.objective_,
            "gradient_norm": model.gradient_norm_,
            "n_iter": int(model.n_iter_[0]),
            "n_passes": model.n_passes_,
            "seconds": seconds,
            "temperature": model.temperature_ if is_calibrated else None,
            "held_out" if is_held_out else "train": scores.as_dict(),
            "model": model_path,
            "report": report_path,
        }
    )


def sweep(terminal: Terminal, request: Request, *, one_standard_error: bool, output: Path | None) -> None:
    """Fit every C on every fold and show which does best on the rows held out."""
    check_output(output, [".csv"], request.data)
    data = _prepare(terminal, request, 0.0)
    start = time.perf_counter()
    result = _sweep(terminal, request, data)
    seconds = time.perf_counter() - start
    best = result.best_setting()
    strongest = result.best_setting(one_standard_error=True)
    columns: dict[str, list] = {
        "C": [f"{setting.C:.4g}" for setting in result.settings],
        "held-out loss": result.by_fold("held_out_loss").mean(axis=1).tolist(),
        "accuracy": result.by_fold("held_out_accuracy").mean(axis=1).tolist(),
        "training loss": result.by_fold("train_loss").mean(axis=1).tolist(),
        "": [_mark(i, best, strongest) for i in range(len(result.settings))],
    }
    terminal.say_table(columns, left=[""])
    C = result.settings[strongest if one_standard_error else best].C
    n_passes = result.n_passes.sum()
    terminal.say(f"{len(result)} models, {n_passes:,.0f} passes, {seconds:.2f} s. The best for fit: --C {C:.6g}")
    _warn_of_edge(terminal, result, C)
    problems = _problems(result)
    if output is not None:
        with written_whole(output) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(problems)
            writer.writerows(zip(*problems.values(), strict=True))
        terminal.say(f"Every C and fold: {output}")
    terminal.answer(
        _summary(request, data)
        | {
            "best_C": result.settings[best].C,
            "best_C_within_one_standard_error": result.settings[strongest].C,
            "seconds": seconds,
            "problems": [dict(zip(problems, row, strict=True)) for row in zip(*problems.values(), strict=True)],
            "output": output,
        }
    )


def _prepare(terminal: Terminal, request: Request, calibration_size: float) -> Prepared:
    """Read the data, tell what they are, and draw the rows to hold out."""
    table = read_table(request.data, request.selection)
    y = check_classes(table)
    n_rows, n_features = table.X.shape
    terminal.say(f"{table.path}: {n_rows:,} rows, {n_features:,} features, {len(np.unique(y)):,} classes")
    for reason in dict.fromkeys(table.left_out.values()):
        names = [name for name, why in table.left_out.items() if why == reason]
        terminal.say(
            f"Left out, as no features ({reason}): {', '.join(name or 'one without a name' for name in names)}"
        )
    split = Split.draw(y, request.test_size, calibration_size, request.seed, table.path)
    if not request.is_standardized:
        return Prepared(table, y, table.X, None, split)
    scaling = Scaling.of(table.X, split.training_weights(table.weights))
    return Prepared(table, y, scaling.apply(table.X), scaling, split)


def _fit_model(terminal: Terminal, request: Request, data: Prepared, C: float) -> SoftmaxRegression:
    """Return a model of the features as they are in the file, calibrated if rows are kept for it."""
    table, rows = data.table, data.split.calibration
    model = SoftmaxRegression(C=C, verbose=terminal.shows_progress, **request.estimator)
    model.fit(data.X, data.y, sample_weight=data.split.training_weights(table.weights)).set_params(verbose=0)
    if table.feature_names is not None:
        model.feature_names_in_ = np.array(table.feature_names, object)
    if data.scaling is not None:
        data.scaling.unfold(model)
    if not len(rows):
        return model
    weights = None if table.weights is None else table.weights[rows]
    return calibrate(model, table.X[rows], data.y[rows], sample_weight=weights)


def _sweep(terminal: Terminal, request: Request, data: Prepared) -> SweepResult:
    """Fit every C on every fold of the rows that are not held out."""
    from sklearn.model_selection import StratifiedKFold

    rows = data.split.fitted
    n_most = np.unique(data.y[rows], return_counts=True)[1].max()
    if request.n_folds > n_most:
        raise DataError(
            f"{request.data} has too few rows for {request.n_folds} folds, at most {n_most} of a class: give more rows "
            "or a smaller --cv."
        )
    folds = StratifiedKFold(request.n_folds, shuffle=True, random_state=request.seed)
    return run_sweep(
        data.X,
        data.y,
        Cs=request.Cs,
        cv=[(rows[train], rows[test]) for train, test in folds.split(rows, data.y[rows])],
        sample_weight=data.table.weights,
        verbose=terminal.shows_progress,
        **request.estimator,
    )


def _warn_of_edge(terminal: Terminal, result: SweepResult, C: float) -> None:
    Cs = result.problems.C
    if np.isfinite(C) and C in (Cs.min(), Cs.max()) and Cs.min() < Cs.max():
        terminal.warn(
            f"C = {C:.4g} is the {'smallest' if Cs.min() == C else 'largest'} tried: a wider --C may do better."
        )


def _summary(request: Request, data: Prepared) -> dict[str, Any]:
    table, split = data.table, data.split
    return {
        "data": table.path,
        "n_rows": len(table.X),
        "n_fitted": len(split.fitted),
        "n_held_out": len(split.test),
        "n_calibration": len(split.calibration),
        "n_features": table.X.shape[1],
        "features": table.feature_names,
        "left_out": table.left_out,
        "n_folds": request.n_folds,
        "seed": request.seed,
        "standardized": request.is_standardized,
    }


def _mark(i: int, best: int, strongest: int) -> str:
    if i == best:
        return "best"
    return "within one standard error" if i == strongest else ""


def _problems(result: SweepResult) -> dict[str, list]:
    """Return what became of every C and fold, by name."""
    names = ("n_iter", "n_passes", "objective", "gradient_norm")
    scores = ("train_loss", "train_accuracy", "held_out_loss", "held_out_accuracy")
    return {
        "C": result.problems.C.tolist(),
        "fold": result.problems.fold.tolist(),
        "status": [status.name for status in result.status],
        **{name: getattr(result, name).tolist() for name in (*names, *scores)},
    }
