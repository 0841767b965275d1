"""How fits came to their ends."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from gpusoftmax.plots.style import COLOURS, new_axes

LABELS = {
    "gap": "relative gap to the lowest objective",
    "objectives": "objective",
    "gradient_norms": "largest absolute gradient entry",
    "n_passes": "passes over X",
    "seconds": "seconds",
}


def convergence(
    histories: Any,
    ax=None,
    *,
    by: Literal["gap", "objectives", "gradient_norms"] = "gap",
    over: Literal["n_passes", "seconds"] = "n_passes",
    optimum: float | None = None,
):
    """Draw how one or several fits came to their ends, with a dot at each.

    Of objectives, the lowest so far is drawn: evaluations of a line search may go up. The gap to the lowest of all is
    drawn on a logarithm, where that one itself has no place.

    Parameters
    ----------
    histories : History, or dict of them by name
        The ``history_`` of fitted models.
    ax : matplotlib.axes.Axes, default=None
        Where to draw; None makes a figure.
    by : {"gap", "objectives", "gradient_norms"}
        The gap is ``(objective − optimum) / |optimum|``.
    over : {"n_passes", "seconds"}
    optimum : float, default=None
        From which the gap is taken; None for the lowest objective of these histories. Fits to different objectives, of
        another C for instance, have no common one.

    Returns
    -------
    ax : matplotlib.axes.Axes

    Raises
    ------
    ValueError
        There is no history, no finite number in one, or `by` or `over` is none of these.
    ImportError
        There is no matplotlib.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from gpusoftmax import SoftmaxRegression, plots
    >>> X, y = load_iris(return_X_y=True)
    >>> ax = plots.convergence(SoftmaxRegression().fit(X, y).history_)  # doctest: +SKIP
    """
    if by not in ("gap", "objectives", "gradient_norms") or over not in ("n_passes", "seconds"):
        raise ValueError(
            "by must be 'gap', 'objectives' or 'gradient_norms', and over 'n_passes' or 'seconds', "
            f"got {by!r} and {over!r}."
        )
    named = histories if isinstance(histories, Mapping) else {"": histories}
    lines = {name: _line(history, by, over) for name, history in named.items()}
    if not lines or not all(len(x) for x, _ in lines.values()):
        raise ValueError("There is nothing to draw: give histories with at least one finite evaluation each.")
    if by == "gap":
        best = min(y.min() for _, y in lines.values()) if optimum is None else optimum
        lines = {name: _gap(*line, best) for name, line in lines.items()}
    if ax is None:
        ax = new_axes("convergence")
    for i, (name, (x, y)) in enumerate(lines.items()):
        (line,) = ax.plot(x, y, color=COLOURS[i % len(COLOURS)], linewidth=1.8, label=name or "_fit")
        ax.plot(x[-1:], y[-1:], "o", color=line.get_color(), markersize=5)
    ax.set_xlim(left=0)
    ax.set_xlabel(LABELS[over])
    ax.set_ylabel(LABELS[by] if optimum is None or by != "gap" else "relative gap to the optimum")
    if by != "objectives" and any((y > 0).any() for _, y in lines.values()):
        ax.set_yscale("log")
    if isinstance(histories, Mapping):
        ax.legend(frameon=False)
    return ax


def _line(history, by: str, over: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the finite evaluations: where, and what."""
    x, y = getattr(history, over), getattr(history, "objectives" if by == "gap" else by)
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    is_finite = np.isfinite(y)
    x, y = x[is_finite], y[is_finite]
    return x, y if by == "gradient_norms" else np.minimum.accumulate(y)


def _gap(x: np.ndarray, y: np.ndarray, optimum: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the positive gaps."""
    gap = (y - optimum) / max(abs(optimum), np.finfo(np.float64).tiny)
    is_positive = gap > 0
    return x[is_positive], gap[is_positive]
