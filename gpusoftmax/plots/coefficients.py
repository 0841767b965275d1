"""Which features speak for which class."""

from typing import NamedTuple

import numpy as np
from sklearn.utils.validation import check_is_fitted

from gpusoftmax.estimator import SoftmaxRegression
from gpusoftmax.held_out import places_of
from gpusoftmax.interop import to_host
from gpusoftmax.plots.style import COLOURS, new_axes, text_colour, written

MOST_CLASSES = 10
N_FEATURES = {True: 10, False: 5}  # of two classes, which have one row of coefficients; of each of more


class Top(NamedTuple):
    """The coefficients of one class that are largest in absolute value, largest first.

    Of two classes there is one row: positive coefficients speak for the second.
    """

    name: object
    features: list[str]
    coefficients: np.ndarray


def largest_coefficients(
    model: SoftmaxRegression, n_features: int, classes: np.ndarray, scale: np.ndarray | None = None
) -> list[Top]:
    """Return what is largest for each of these classes; see `top_features`."""
    known, coef = to_host(model.classes_), to_host(model.coef_)
    rows = [0] if len(coef) == 1 else places_of(classes, known)
    names = getattr(model, "feature_names_in_", None)
    tops = []
    for row in rows:
        values = coef[row].astype(np.float64)
        if scale is not None:
            values = values * scale
        largest = np.argsort(-abs(values), kind="stable")[:n_features]
        shown = [f"x{i}" if names is None else str(names[i]) for i in largest]
        tops.append(Top(known[1 if len(coef) == 1 else row], shown, values[largest]))
    return tops


def top_features(model: SoftmaxRegression, ax=None, *, n_features=None, classes=None, scale=None):
    """Draw the coefficients of each class that are largest in absolute value.

    Coefficients can be compared with each other where features are in the same unit: standardise them before the fit,
    or give `scale`.

    Parameters
    ----------
    model : SoftmaxRegression
        Fitted.
    ax : matplotlib.axes.Axes, default=None
        Where to draw; None makes a figure as high as it needs.
    n_features : int, default=None
        Bars of each class; None is five, or ten if there are two classes: these have one row of coefficients.
    classes : array-like of labels, default=None
        Whose coefficients are drawn; None for all, or the first ten of more.
    scale : array-like of shape (n_features,), default=None
        Multiplies coefficients, for instance ``X.std(axis=0)``.

    Returns
    -------
    ax : matplotlib.axes.Axes

    Raises
    ------
    NotFittedError
        The model has not been fitted.
    ValueError
        `classes` or `scale` do not belong to the model.
    ImportError
        There is no matplotlib.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from gpusoftmax import SoftmaxRegression, plots
    >>> X, y = load_iris(return_X_y=True)
    >>> ax = plots.top_features(SoftmaxRegression().fit(X, y), scale=X.std(axis=0))  # doctest: +SKIP
    """
    check_is_fitted(model)
    known = to_host(model.classes_)
    if n_features is None:
        n_features = N_FEATURES[len(known) == 2]
    if scale is not None:
        scale = np.asarray(to_host(scale), np.float64)
        if scale.shape != (model.n_features_in_,):
            raise ValueError(f"scale must have shape (n_features,) = ({model.n_features_in_},), got {scale.shape}.")
    chosen = known[:MOST_CLASSES] if classes is None else np.asarray(classes)
    tops = largest_coefficients(model, n_features, chosen, scale)
    n_bars = sum(len(top.features) for top in tops)
    has_headings = len(known) > 2
    if ax is None:
        ax = new_axes("top_features", 7, 1 + 0.2 * (n_bars + has_headings * 1.5 * len(tops)))
    _draw(ax, tops, has_headings=has_headings)
    of_unit = "coefficient" if scale is None else "coefficient × scale"
    if not has_headings:
        first, second = (written(name) for name in known)
        ax.set_xlabel(f"← {first}     {of_unit}     {second} →")
        return ax
    ax.set_xlabel(of_unit)
    if classes is None and len(known) > MOST_CLASSES:
        ax.set_title(f"the first {MOST_CLASSES} of {len(known)} classes", fontsize="medium")
    return ax


def _draw(ax, tops: list[Top], *, has_headings: bool) -> None:
    """Draw bars from the top down, each class under its name."""
    places: list[float] = []
    labels: list[str] = []
    headings = []
    place = 0.0
    for top in tops:
        if has_headings:
            headings.append(len(labels))
            places.append(place)
            labels.append(written(top.name))
            place += 1
        bars = place + np.arange(len(top.features))
        ax.barh(bars, top.coefficients, 0.75, color=[COLOURS[int(value < 0)] for value in top.coefficients])
        places.extend(bars)
        labels.extend(written(name) for name in top.features)
        place += len(top.features) + 0.5
    ax.set_yticks(places, labels)
    for heading in headings:
        ax.get_yticklabels()[heading].set_fontweight("bold")
    ax.set_ylim(place - 0.8, -0.8)
    ax.axvline(0, color=text_colour(ax), linewidth=0.8)
    ax.tick_params(axis="y", length=0, labelsize=8)
    ax.grid(visible=False, axis="y")
