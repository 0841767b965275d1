"""How well a model does on rows of a table, and `gpusoftmax evaluate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpusoftmax.cli.matching import as_labels_of, read_for
from gpusoftmax.cli.outputs import check_output, written_whole
from gpusoftmax.cli.request import Split
from gpusoftmax.cli.terminal import Terminal
from gpusoftmax.estimator import SoftmaxRegression
from gpusoftmax.evaluation import Evaluation
from gpusoftmax.evaluation import evaluate as evaluate_model
from gpusoftmax.exceptions import DataError
from gpusoftmax.persistence import load_model
from gpusoftmax.report import page_template
from gpusoftmax.report import write_report as write_page
from gpusoftmax.sweep_result import SweepResult
from gpusoftmax.tables import Selection, Table

N_CLASSES_SHOWN = 30  # in the table for people


@dataclass(frozen=True)
class Scores:
    """An evaluation of so many rows."""

    n_rows: int
    evaluation: Evaluation

    def as_dict(self) -> dict[str, Any]:
        """Return the figures by name; NaN where a class has no rows to tell."""
        of = self.evaluation
        per_class = zip(of.classes.tolist(), of.precision, of.recall, of.f1, of.support, strict=True)
        return {
            "n_rows": self.n_rows,
            "accuracy": of.accuracy,
            "accuracy_interval": of.accuracy_interval,
            "log_loss": of.log_loss,
            "chance_log_loss": of.chance_log_loss,
            "expected_calibration_error": of.expected_calibration_error,
            "classes": [
                {"class": name, "precision": precision, "recall": recall, "f1": f1, "support": support}
                for name, precision, recall, f1, support in per_class
            ],
        }


def judge(model: SoftmaxRegression, table: Table, y: np.ndarray, rows: np.ndarray) -> Scores:
    """Evaluate a model on rows of a table."""
    is_all = len(rows) == len(table.X)
    X, y = (table.X, y) if is_all else (table.X[rows], y[rows])
    weights = None if table.weights is None else table.weights[rows]
    return Scores(len(rows), evaluate_model(model, X, y, sample_weight=weights))


def say_scores(terminal: Terminal, scores: Scores, what: str, *, with_classes: bool) -> None:
    """Show figures, and those of each class where asked for."""
    of = scores.evaluation
    low, high = of.accuracy_interval
    terminal.say(f"{scores.n_rows:,} {what}: accuracy {of.accuracy:.4f} (95 % interval {low:.4f} to {high:.4f}).")
    terminal.say(
        f"Log loss {of.log_loss:.4f} (chance {of.chance_log_loss:.4f}), calibration error "
        f"{of.expected_calibration_error:.4f}."
    )
    if not with_classes:
        return
    n_shown = min(len(of.classes), N_CLASSES_SHOWN)
    support = of.support[:n_shown]
    terminal.say_table(
        {
            "class": [str(name) for name in of.classes[:n_shown].tolist()],
            "rows" if np.array_equal(support, support.round()) else "weight": [
                int(value) if value == round(value) else value for value in support.tolist()
            ],
            "precision": of.precision[:n_shown].tolist(),
            "recall": of.recall[:n_shown].tolist(),
            "F1": of.f1[:n_shown].tolist(),
        },
        left=["class"],
    )
    if n_shown < len(of.classes):
        terminal.say(f"… and {len(of.classes) - n_shown:,} more classes: --json lists all.")


def evaluate(
    terminal: Terminal,
    model_path: Path,
    data: Path,
    selection: Selection,
    *,
    test_size: float,
    seed: int,
    device: str,
    report_path: Path | None,
) -> None:
    """Judge a saved model by the rows of a file, or by those that `fit` held out of it."""
    check_report(report_path, data, model_path)
    model = load_model(model_path).set_params(device=device)
    table = read_for(model, data, selection)
    if table.y is None:
        raise DataError(f"{data} holds no labels that are known as such: name their array with --target.")
    y = as_labels_of(model, table.y)
    split = Split.draw(y, test_size, 0.0, seed, data)
    rows = split.test if test_size else split.fitted
    scores = judge(model, table, y, rows)
    say_scores(terminal, scores, f"of {len(y):,} rows" if test_size else "rows", with_classes=True)
    if report_path is not None:
        write_report(model, table, y, rows, report_path)
        terminal.say(f"Report: {report_path}")
    terminal.answer({"data": data, "model": model_path, **scores.as_dict(), "report": report_path})


def check_report(path: Path | None, *inputs: Path) -> None:
    """Raise unless a report can be written, as `check_output` does, or ImportError."""
    check_output(path, [".html"], *inputs)
    if path is not None:
        page_template()


def write_report(
    model: SoftmaxRegression,
    table: Table,
    y: np.ndarray,
    rows: np.ndarray,
    path: Path,
    result: SweepResult | None = None,
) -> None:
    """Write a page on a model and on how well it does on some rows."""
    weights = None if table.weights is None else table.weights[rows]
    with written_whole(path) as temporary:
        write_page(
            temporary, model, table.X[rows], y[rows], sample_weight=weights, result=result, source=table.path.name
        )
