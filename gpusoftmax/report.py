"""A model on one page: what it is, how its fit ended, how well it does on held-out rows, and what that does not say.

This file gathers the facts; `report.html` beside it is the page. Everything on it is bounded, however many classes and
features there are, and of what is left out the page says so.
"""

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import _safe_indexing, gen_batches

from gpusoftmax.estimator import SoftmaxRegression
from gpusoftmax.evaluation import Evaluation, evaluate
from gpusoftmax.interop import to_host
from gpusoftmax.plots.coefficients import largest_coefficients
from gpusoftmax.plots.confusion import MOST_WITH_COUNTS, draw_confusion
from gpusoftmax.plots.histories import convergence
from gpusoftmax.plots.inline import inline_svg
from gpusoftmax.plots.regularization import regularization_path
from gpusoftmax.plots.reliability import draw_reliability
from gpusoftmax.plots.style import shortened
from gpusoftmax.solvers.base import Status
from gpusoftmax.sweep_result import SweepResult

MOST_IN_TABLE = 50  # classes
MOST_IN_MATRIX = 40
MOST_WITH_FEATURES = 12
MOST_MISTAKES = 10
MOST_NAMES = 20
N_FEATURES = 6  # of each class
LONGEST_NAME = 60
FEW_ROWS = 30  # of a class
FEW_FOR_CALIBRATION = 1000
NUMBERS_OF_X = 1 << 20  # that are looked at together: 8 MB
PACKAGES = ("gpusoftmax", "numpy", "scipy", "scikit-learn")


@dataclass(frozen=True)
class Figure:
    """A picture on the page: `svg` is trusted, for it was drawn here; `is_wide` wants the whole width."""

    title: str
    caption: str
    svg: str
    is_wide: bool = False


def write_report(
    path,
    model: SoftmaxRegression,
    X,
    y,
    *,
    sample_weight=None,
    result: SweepResult | None = None,
    title: str | None = None,
    source: str | None = None,
) -> None:
    """Write one HTML page about a fitted model and how well it does on held-out rows.

    The page needs nothing else: no script, no network, figures inside. It is light or dark as its reader's browser
    is, and can be printed. The same model, data and versions give the same bytes.

    Parameters
    ----------
    path : str or path-like
        Of the file to write, over what was there.
    model : SoftmaxRegression
        Fitted, calibrated or not.
    X : array-like of shape (n_samples, n_features)
        Rows that neither the fit nor the choice of C nor calibration has seen.
    y : array-like of shape (n_samples,)
        Labels among ``model.classes_``.
    sample_weight : array-like of shape (n_samples,), default=None
        Non-negative; None for ones.
    result : SweepResult, default=None
        That of the sweep by which C was chosen, with rows held out: its path is drawn.
    title : str, default=None
        None is "Softmax regression".
    source : str, default=None
        A name for the data.

    Raises
    ------
    NotFittedError
        The model has not been fitted.
    TypeError, ValueError
        Rows, labels or weights are unusable, or the sweep held no rows out; no file is written.
    ImportError
        matplotlib or jinja2 is missing.
    OSError
        The file cannot be written.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from gpusoftmax import SoftmaxRegression, write_report
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = SoftmaxRegression().fit(X[::2], y[::2])
    >>> write_report("iris.html", clf, X[1::2], y[1::2], source="iris, every other row")  # doctest: +SKIP
    """
    template = page_template()
    evaluation = evaluate(model, X, y, sample_weight)
    page = template.render(
        title=title or "Softmax regression",
        source=source,
        is_weighted=sample_weight is not None,
        n_rows=len(evaluation.targets),
        headline=_headline(evaluation),
        facts=_facts(model),
        fit=_fit(model),
        has_converged=getattr(model, "status_", None) in (Status.CONVERGED, None),
        parameters={name: repr(value) for name, value in model.get_params(deep=False).items()},
        classes=_classes(evaluation),
        n_classes=len(evaluation.classes),
        mistakes=_mistakes(evaluation),
        figures=list(_figures(model, evaluation, result)),
        features=_features(model, evaluation, X),
        n_features=model.n_features_in_,
        sweep=None if result is None else _sweep(result),
        limits=_limits(evaluation),
        versions={"Python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    )
    Path(path).write_text(page, encoding="utf-8", errors="replace", newline="\n")


def page_template():
    """Return the page to fill in, of jinja2.

    Raises
    ------
    ImportError
        What pages are drawn and written with is not installed.
    """
    try:
        import matplotlib as mpl  # noqa: F401  # it is missed before the work, not after it
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ImportError("write_report needs matplotlib and jinja2: pip install 'gpusoftmax[plots]'") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["short"] = lambda name: shortened(name, LONGEST_NAME)
    return environment.from_string(files("gpusoftmax").joinpath("report.html").read_text("utf-8"))


def _headline(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """Return name, value and what to compare it with."""
    accuracy = evaluation.accuracy
    low, high = evaluation.accuracy_interval
    most = evaluation.frequencies.max()
    recall = evaluation.recall[evaluation.support > 0]
    chance, error = evaluation.chance_log_loss, evaluation.expected_calibration_error
    return [
        (
            "accuracy",
            f"{accuracy:.1%}",
            f"95 % interval {low:.1%} to {high:.1%}; the most frequent class is {most:.1%}",
        ),
        ("mean recall", f"{recall.mean():.1%}", f"each of {_count(len(recall), 'class', 'classes')} counts as much"),
        ("log loss", f"{evaluation.log_loss:.4g}", f"{chance:.4g} for one that knows class frequencies only"),
        ("calibration error", f"{error:.3f}", "expected calibration error of 15 bins; 0 is best"),
    ]


def _facts(model: SoftmaxRegression) -> dict[str, str]:
    classes, n_features = to_host(model.classes_).tolist(), model.n_features_in_
    n_rows = len(to_host(model.coef_))
    facts = {"estimator": type(model).__name__, "classes": f"{len(classes):,}: {_listed(classes)}"}
    names = getattr(model, "feature_names_in_", None)
    facts["features"] = f"{n_features:,}" + ("" if names is None else f": {_listed(names.tolist())}")
    intercepts = _count(n_rows, "intercept", "intercepts")
    facts["coefficients"] = f"{n_rows:,} × {n_features:,} {to_host(model.coef_).dtype}, and {intercepts}"
    facts["C"] = f"{getattr(model, 'C_', getattr(model, 'C', None)):.6g}"
    temperature = model.temperature_
    facts["temperature"] = (
        "1: not calibrated" if temperature == 1 else f"{temperature:.4g}: calibrated on held-out rows"
    )
    return facts


def _fit(model: SoftmaxRegression) -> dict[str, str]:
    """Return how the fit ended, as far as the model knows."""
    names = ("status_", "objective_", "gradient_norm_", "n_passes_")
    status, objective, gradient, n_passes = (getattr(model, name, None) for name in names)
    fit = {"ended": "not recorded" if status is None else f"The fit {status.sentence}."}
    if objective is not None:
        fit["objective"] = f"{objective:.8g}"
    if gradient is not None:
        fit["largest gradient entry"] = f"{gradient:.2e} (tol = {model.tol:.2e})"
    if n_passes is not None:
        fit["passes over the rows"] = f"{n_passes:.0f}"
    return fit


def _classes(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return a row of the table for each class, or for those of the most weight, in the order of the classes."""
    precision, recall, f1, support = evaluation.precision, evaluation.recall, evaluation.f1, evaluation.support
    largest = np.sort(np.argsort(-support, kind="stable")[:MOST_IN_TABLE])
    return [
        {
            "name": evaluation.classes[i],
            "support": _weight(support[i]),
            "precision": _share(precision[i]),
            "recall": _share(recall[i]),
            "f1": _share(f1[i]),
        }
        for i in largest
    ]


def _mistakes(evaluation: Evaluation) -> list[dict[str, Any]]:
    return [
        {
            "true": evaluation.classes[true],
            "predicted": evaluation.classes[predicted],
            "weight": _weight(weight),
            "share": _share(weight / evaluation.support[true]),
        }
        for true, predicted, weight in evaluation.mistakes(MOST_MISTAKES)
    ]


def _figures(model: SoftmaxRegression, evaluation: Evaluation, result: SweepResult | None) -> Iterator[Figure]:
    history = getattr(model, "history_", None)
    if history is not None and len(history.objectives) > 1:
        svg = inline_svg(
            lambda ax: convergence(history, ax), "convergence", "Gap to the optimum against passes", 5, 3.2
        )
        yield Figure("Convergence", "How the fit came to its end: gap to its lowest objective, by passes over X.", svg)
    if result is not None:
        title = "Held-out loss against C, with the best choice"
        svg = inline_svg(lambda ax: regularization_path(result, ax), "path", title, 5, 4)
        yield Figure("Regularisation path", "Models of every strength of the sweep, on the rows it held out.", svg)
    bins = evaluation.reliability()
    title = "Accuracy against confidence, with the diagonal"
    svg = inline_svg(lambda ax: draw_reliability({"": bins}, ax), "reliability", title, 4.6, 4.8)
    caption = (
        "How often predictions of each confidence are right; bars are 95 % intervals, areas the share of the rows."
    )
    yield Figure("Reliability", caption, svg)
    n_drawn = min(len(evaluation.classes), MOST_IN_MATRIX)
    n_others = len(evaluation.classes) - n_drawn
    is_wide = n_drawn > MOST_WITH_COUNTS
    width, height = (8.5, 7.2) if is_wide else (4.6, 4.6)
    title = f"Rows of each true class by predicted class, {n_drawn} classes"

    def draw(ax):
        draw_confusion(
            evaluation.targets, evaluation.predictions, evaluation.classes, evaluation.weights, MOST_IN_MATRIX, ax
        )

    caption = "Rows of each true class by what was predicted. Colours are shares of the true class."
    if n_others:
        caption += f" The {n_drawn} classes of the most rows have their own; {n_others:,} others are one."
    yield Figure("Confusion", caption, inline_svg(draw, "confusion", title, width, height), is_wide)


def _features(model: SoftmaxRegression, evaluation: Evaluation, X) -> list[dict[str, Any]]:
    """Return, for some classes, what speaks most for and against them."""
    n_classes = len(evaluation.classes)
    frequent = np.sort(np.argsort(-evaluation.support, kind="stable")[:MOST_WITH_FEATURES])
    tops = largest_coefficients(model, N_FEATURES, evaluation.classes[frequent], _spread(X))
    widest = max((abs(top.coefficients).max() for top in tops), default=0.0) or 1.0
    cards = []
    for top in tops:
        name = shortened(top.name, LONGEST_NAME)
        rows = [
            {
                "name": feature,
                "value": f"{value:+.3g}",
                "width": f"{100 * abs(value) / widest:.1f}",
                "is_for": value > 0,
            }
            for feature, value in zip(top.features, top.coefficients, strict=True)
        ]
        against = f" rather than {shortened(evaluation.classes[0], LONGEST_NAME)}" if n_classes == 2 else ""
        cards.append({"name": name + against, "rows": rows})
    return cards


def _spread(X) -> np.ndarray:
    """Return the standard deviation of every feature, from a few rows at a time."""
    from sklearn.preprocessing import StandardScaler  # an import of this package need not take its time

    scaler = StandardScaler()
    n_rows, n_features = X.shape if hasattr(X, "shape") else np.shape(X)
    for rows in gen_batches(n_rows, max(1, NUMBERS_OF_X // n_features)):
        scaler.partial_fit(np.asarray(to_host(_safe_indexing(X, rows)), np.float64))
    return np.sqrt(scaler.var_)


def _sweep(result: SweepResult) -> str:
    """Return in a sentence what the sweep found."""
    best = result.best()
    n_settings, n_problems = len(result) // result.n_folds, len(result)
    return (
        f"{_count(n_settings, 'setting', 'settings')} on {_count(result.n_folds, 'fold', 'folds')}, "
        f"{_count(n_problems, 'fit', 'fits')}; the lowest mean held-out loss is at C = {best.C:.4g}"
        + (f", class_weight = {best.class_weight!r}" if len(result.class_weights) > 1 else "")
        + (f", label_smoothing = {best.label_smoothing:g}" if best.label_smoothing else "")
        + "."
    )


def _limits(evaluation: Evaluation) -> list[str]:
    """Say what the figures do not say."""
    weights, n_rows = evaluation.weights, len(evaluation.targets)
    per_class = np.bincount(evaluation.targets, weights > 0, len(evaluation.classes))
    n_absent, n_rare = int((per_class == 0).sum()), int(((per_class > 0) & (per_class < FEW_ROWS)).sum())
    limits = [
        f"Every figure is of these {_count(n_rows, 'row', 'rows')}. They are honest only if neither the fit nor the "
        "choice of C nor calibration has seen these rows, and say nothing of data that come about in another way."
    ]
    if n_rows < FEW_FOR_CALIBRATION:
        limits.append(
            "The calibration error of few rows is too large by chance alone: compare it among models on the same rows."
        )
    if n_rare:
        limits.append(
            f"{_count(n_rare, 'class has', 'classes have')} fewer than {FEW_ROWS} held-out rows: their precision "
            "and recall are to a large part chance."
        )
    if n_absent:
        limits.append(
            f"{_count(n_absent, 'class has', 'classes have')} no held-out row: nothing is known of how well it is "
            "recognised."
        )
    if evaluation.n_effective < 0.9 * n_rows:
        limits.append(f"Weighted as they are, they tell as much as {evaluation.n_effective:,.0f} rows of equal weight.")
    limits.append(
        "Coefficients say what the model uses, not what causes what; features that go together share theirs in a way "
        "that another sample may change."
    )
    return limits


def _count(n: int, one: str, more: str) -> str:
    return f"{n:,} {one if n == 1 else more}"


def _listed(names: list) -> str:
    """Name some, and say how many more there are."""
    shown = ", ".join(shortened(name, LONGEST_NAME) for name in names[:MOST_NAMES])
    n_more = len(names) - MOST_NAMES
    return shown if n_more <= 0 else f"{shown} and {n_more:,} more"


def _share(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.1%}"


def _weight(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() and value < 2**53 else f"{value:,.4g}"
