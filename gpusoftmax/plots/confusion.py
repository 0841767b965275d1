"""Which classes are taken for which."""

import numpy as np

from gpusoftmax.held_out import places_of
from gpusoftmax.interop import to_host
from gpusoftmax.plots.style import new_axes, text_colour, written
from gpusoftmax.targets import encode_labels

MOST_WITH_COUNTS = 16  # classes: more leave no room for numbers
ROOM_FOR_NAMES = 40  # letters side by side
BLUE = (0.09, 0.41, 0.68)
GAMMA = 0.5  # of colours: a few per cent are seen
LEAST_BLUE_UNDER_WHITE = 0.75


def confusion_matrix(y, predictions, ax=None, *, classes=None, sample_weight=None, max_classes=50):
    """Draw which classes are taken for which: a row for each true class, a column for each predicted one.

    Colours are shares of the rows of the true class, so that rare classes are seen too; numbers, where there is room,
    are rows or their weights.

    Parameters
    ----------
    y, predictions : array-like of shape (n_samples,)
        Labels of held-out rows, and what was predicted.
    ax : matplotlib.axes.Axes, default=None
        Where to draw; None makes a figure.
    classes : array-like of shape (n_classes,), default=None
        Labels in the order in which they are drawn; None for those that there are, ascending.
    sample_weight : array-like of shape (n_samples,), default=None
    max_classes : int, default=50
        More classes than that are drawn as those of the most weight in y, and one of all others.

    Returns
    -------
    ax : matplotlib.axes.Axes

    Raises
    ------
    ValueError
        Lengths disagree, or labels are not in `classes`.
    ImportError
        There is no matplotlib.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from gpusoftmax import SoftmaxRegression, plots
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = SoftmaxRegression().fit(X[::2], y[::2])
    >>> ax = plots.confusion_matrix(y[1::2], clf.predict(X[1::2]))  # doctest: +SKIP
    """
    y, predictions = np.asarray(to_host(y)), np.asarray(to_host(predictions))
    if classes is None:
        classes, _ = encode_labels(np.concatenate([y, predictions]))
    classes = np.asarray(to_host(classes))
    weights = None if sample_weight is None else np.asarray(to_host(sample_weight), np.float64)
    return draw_confusion(places_of(y, classes), places_of(predictions, classes), classes, weights, max_classes, ax)


def draw_confusion(targets, predictions, classes: np.ndarray, weights, max_classes: int, ax=None):
    """Draw places in `classes`; see `confusion_matrix`."""
    from sklearn import metrics  # 0.2 s that an import of this package need not take

    names = [written(name) for name in classes.tolist()]
    if len(classes) > max_classes:
        largest = np.sort(np.argsort(-np.bincount(targets, weights, len(classes)), kind="stable")[:max_classes])
        merged = np.full(len(classes), max_classes)
        merged[largest] = np.arange(max_classes)
        targets, predictions = merged[targets], merged[predictions]
        names = [*(names[i] for i in largest), f"{len(classes) - max_classes} others"]
    n_classes = len(names)
    counts = metrics.confusion_matrix(targets, predictions, labels=np.arange(n_classes), sample_weight=weights)
    of_class = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, of_class, out=np.zeros(counts.shape), where=of_class > 0)
    if ax is None:
        side = min(9.0, 3 + 0.3 * n_classes)
        ax = new_axes("confusion_matrix", side, side)
    _draw(ax, shares, names, has_bar=n_classes > MOST_WITH_COUNTS)
    if n_classes <= MOST_WITH_COUNTS:
        _write_counts(ax, counts, shares)
    return ax


def _draw(ax, shares: np.ndarray, names: list[str], *, has_bar: bool) -> None:
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from sklearn.metrics import ConfusionMatrixDisplay

    # From nothing, whatever the page's colour, to blue.
    colours = LinearSegmentedColormap.from_list("shares", [(*BLUE, 0.0), (*BLUE, 1.0)])
    is_upright = max(len(name) for name in names) > ROOM_FOR_NAMES / len(names)
    display = ConfusionMatrixDisplay(shares, display_labels=names).plot(
        ax=ax,
        include_values=False,
        colorbar=False,
        cmap=colours,
        im_kw={"norm": PowerNorm(GAMMA, 0, 1)},
        xticks_rotation="vertical" if is_upright else "horizontal",
    )
    if has_bar:
        bar = ax.figure.colorbar(display.im_, ax=ax, shrink=0.6, aspect=30, label="share of the true class")
        bar.outline.set_visible(False)
    ax.grid(visible=False)
    ax.tick_params(length=0, labelsize=min(9, 300 / len(names)))
    ax.set(xlabel="predicted", ylabel="true")


def _write_counts(ax, counts: np.ndarray, shares: np.ndarray) -> None:
    """Write what is not zero."""
    size = min(9, 110 / len(counts))
    for (row, column), count in np.ndenumerate(counts):
        if count:
            is_dark = shares[row, column] ** GAMMA > LEAST_BLUE_UNDER_WHITE
            colour = "white" if is_dark else text_colour(ax)
            ax.text(column, row, _number(count), ha="center", va="center", color=colour, fontsize=size)


def _number(count: float) -> str:
    """Write a number in some five characters."""
    from matplotlib.ticker import EngFormatter

    if not 5e-3 <= count < 1e27:
        return f"{count:.0e}".replace("e+", "e")
    if count >= 1e4:
        return EngFormatter(places=0, sep="")(count)
    return f"{count:.0f}" if float(count).is_integer() else f"{count:.2f}" if count < 100 else f"{count:.0f}"
