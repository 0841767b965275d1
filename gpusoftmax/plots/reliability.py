"""Whether probabilities mean what they say."""

from collections.abc import Mapping

from gpusoftmax.calibration import Reliability, reliability, wilson_interval
from gpusoftmax.plots.style import COLOURS, QUIET, new_axes


def reliability_diagram(y, probabilities, ax=None, *, classes=None, sample_weight=None, n_bins=15):
    """Draw how often predictions of each confidence are right; on the diagonal, probabilities mean what they say.

    Confidence is the probability of the class predicted. A point stands for the rows of one bin, at their mean
    confidence; its bar is where accuracy is with 95 % confidence (Wilson 1927), wide where rows are few. Areas
    at the bottom are the shares of the rows. Bins without rows have no point.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Labels of held-out rows.
    probabilities : array-like of shape (n_samples, n_classes), or dict of them by name
        Of several models, for instance before and after `calibrate`.
    ax : matplotlib.axes.Axes, default=None
        Where to draw; None makes a figure.
    classes, sample_weight, n_bins : see `gpusoftmax.expected_calibration_error`
        The legend tells that error.

    Returns
    -------
    ax : matplotlib.axes.Axes

    Raises
    ------
    ValueError
        As `gpusoftmax.expected_calibration_error` does.
    ImportError
        There is no matplotlib.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from gpusoftmax import SoftmaxRegression, plots
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = SoftmaxRegression().fit(X[::2], y[::2])
    >>> ax = plots.reliability_diagram(y[1::2], clf.predict_proba(X[1::2]))  # doctest: +SKIP
    """
    named = probabilities if isinstance(probabilities, Mapping) else {"": probabilities}
    binned = {
        name: reliability(y, of_model, classes=classes, sample_weight=sample_weight, n_bins=n_bins)
        for name, of_model in named.items()
    }
    return draw_reliability(binned, ax)


def draw_reliability(binned: Mapping[str, Reliability], ax=None):
    """Draw what has been sorted into bins, by name; one without a name is "held-out rows"."""
    if ax is None:
        ax = new_axes("reliability_diagram", 5, 5.4)
    ax.plot([0, 1], [0, 1], color=QUIET, linewidth=1.2, linestyle="--", label="as confident as right")
    for i, (name, bins) in enumerate(binned.items()):
        colour = COLOURS[i % len(COLOURS)]
        ax.stairs(bins.weight / bins.weight.sum(), bins.edges, color=colour, alpha=0.25, fill=True, linewidth=0)
        has_rows = bins.weight > 0
        confidence, accuracy = bins.confidence[has_rows], bins.accuracy[has_rows]
        ax.vlines(
            confidence, *wilson_interval(accuracy, bins.n_effective[has_rows]), color=colour, linewidth=1.2, alpha=0.7
        )
        label = f"{name or 'held-out rows'}: ECE {bins.expected_calibration_error:.3f}"
        ax.plot(confidence, accuracy, color=colour, linewidth=1.0, alpha=0.4)
        ax.plot(confidence, accuracy, "o", color=colour, markersize=5, label=label, clip_on=False)
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy; share of the rows")
    ax.set_aspect("equal", adjustable="box")
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1))  # above: points may be anywhere
    return ax
