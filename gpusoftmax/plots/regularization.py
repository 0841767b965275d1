"""How well models of every strength do."""

from typing import Literal

import numpy as np

from gpusoftmax.plots.style import COLOURS, QUIET, new_axes, text_colour
from gpusoftmax.sweep_result import LOWER_IS_BETTER, SweepResult

LEAST_STEP_TO_INF = 0.5  # powers of ten
LEAST_RATIO_OF_LOG = 4  # of losses that want a logarithmic axis


def regularization_path(
    result: SweepResult, ax=None, *, by: Literal["held_out_loss", "held_out_accuracy"] = "held_out_loss"
):
    """Draw how well models of every strength do, with the best and the one-standard-error choice.

    The mean over the folds has a band of one standard error, where there is more than one; single folds are faint, the
    rows fitted dashed. Losses that span much have a logarithmic axis that fits those held out: the loss of the rows
    fitted may leave it. Class weights and label smoothings that were swept over are lines of their own. ``C=inf`` has a
    place beyond the largest other C; settings that an interrupt left unfinished have none.

    Parameters
    ----------
    result : SweepResult
        Of a sweep that held rows out.
    ax : matplotlib.axes.Axes, default=None
        Where to draw; None makes a figure.
    by : {"held_out_loss", "held_out_accuracy"}
        What is drawn and what is best.

    Returns
    -------
    ax : matplotlib.axes.Axes

    Raises
    ------
    ValueError
        Nothing was held out, or no setting was finished on all folds.
    ImportError
        There is no matplotlib.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from gpusoftmax import plots, sweep
    >>> X, y = load_iris(return_X_y=True)
    >>> ax = plots.regularization_path(sweep(X, y, cv=5))  # doctest: +SKIP
    """
    best = result.best_setting(by)
    strongest = result.best_setting(by, one_standard_error=True)
    if ax is None:
        ax = new_axes("regularization_path")
    path = _Path(result, by)
    families = path.families()
    for i, (name, settings) in enumerate(families.items()):
        _draw_family(ax, path, settings, COLOURS[i % len(COLOURS)], name, is_alone=len(families) == 1)
    if strongest == best and result.n_folds > 1:
        _mark(ax, path, best, "o", "full", "best, also by one standard error")
    else:
        _mark(ax, path, best, "o", "full", "best")
        if strongest != best:
            _mark(ax, path, strongest, "D", "none", "one standard error")
    _label(ax, path, by)
    return ax


class _Path:
    """The numbers to draw, one row a setting."""

    def __init__(self, result: SweepResult, by: str):
        self.settings = result.settings
        self.n_folds = result.n_folds
        self.C = result.problems.C[:: result.n_folds]
        self.x = _places(self.C)
        self.held_out = result.by_fold(by)
        self.means = self.held_out.mean(axis=1)
        self.train = result.by_fold(by.replace("held_out", "train")).mean(axis=1)
        drawn = self.held_out[np.isfinite(self.means)]
        self.is_log = LOWER_IS_BETTER[by] and bool(0 < LEAST_RATIO_OF_LOG * drawn.min() <= drawn.max())

    def families(self) -> dict[str, np.ndarray]:
        """Return the finished settings that differ in C only, from small to large C, by what tells them apart."""
        is_varied = {
            name: len({str(getattr(setting, name)) for setting in self.settings}) > 1
            for name in ("class_weight", "label_smoothing")
        }
        families: dict[str, list[int]] = {}
        for i in np.argsort(self.C, kind="stable"):
            if np.isfinite(self.means[i]):
                words = [f"{name}={getattr(self.settings[i], name)!r}" for name, varies in is_varied.items() if varies]
                families.setdefault(", ".join(words), []).append(i)
        return {name: np.array(settings) for name, settings in sorted(families.items(), key=lambda item: min(item[1]))}


def _places(C: np.ndarray) -> np.ndarray:
    """Return C with a finite place beyond the others for those that are infinite."""
    is_finite = np.isfinite(C)
    finite = C[is_finite] if is_finite.any() else np.ones(1)
    n_decades = np.log10(finite.max() / finite.min())
    return np.where(is_finite, C, finite.max() * 10 ** max(LEAST_STEP_TO_INF, 0.08 * n_decades))


def _draw_family(ax, path: _Path, settings: np.ndarray, colour: str, name: str, *, is_alone: bool) -> None:
    x, means, held_out = path.x[settings], path.means[settings], path.held_out[settings]
    what = "held out" if is_alone else name
    if is_alone and path.n_folds > 1:
        what += f", mean of {path.n_folds} folds ± one standard error"
    ax.plot(x, means, color=colour, linewidth=1.8, label=what)
    if path.n_folds > 1:
        error = held_out.std(axis=1, ddof=1) / np.sqrt(path.n_folds)
        ax.fill_between(x, means - error, means + error, color=colour, alpha=0.3, linewidth=0)
        faint = ax.plot(x, held_out, color=colour, linewidth=0.7, alpha=0.55, zorder=1.5)
        faint[0].set_label("held out, each fold" if is_alone else "_each fold")
    limits = ax.dataLim.get_points().copy()
    ax.plot(
        x,
        path.train[settings],
        color=QUIET if is_alone else colour,
        linewidth=1.2,
        linestyle="--",
        label="rows fitted" if is_alone else "_rows fitted",
    )
    if path.is_log:
        ax.dataLim.set_points(limits)  # a loss that goes to nothing would flatten everything else


def _mark(ax, path: _Path, setting: int, marker: str, fill: str, name: str) -> None:
    C = "∞" if np.isinf(path.C[setting]) else f"{path.C[setting]:.3g}"
    ax.plot(
        path.x[setting],
        path.means[setting],
        linestyle="none",
        marker=marker,
        fillstyle=fill,
        markersize=7,
        color=text_colour(ax),
        zorder=3,
        label=f"{name}: C = {C}",
    )


def _label(ax, path: _Path, by: str) -> None:
    ax.set_xscale("log")
    if path.is_log:
        ax.set_yscale("log")
        _plain_ticks(ax.yaxis)
    if np.isinf(path.C).any():
        _tick_infinity(ax, path.C[np.isfinite(path.C)], path.x.max())
    ax.set_xlabel("C, inverse strength of the penalty")
    ax.set_ylabel("mean cross-entropy" if LOWER_IS_BETTER[by] else "accuracy")
    ax.legend(frameon=False)


def _plain_ticks(axis) -> None:
    """Write 0.1, 0.2, 0.5, 1 instead of powers of ten."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def _tick_infinity(ax, finite: np.ndarray, place: float) -> None:
    """Keep the ticks that belong to finite C, and add that of C without a penalty."""
    ticks = ax.xaxis.get_major_locator().tick_values(finite.min(), finite.max()) if len(finite) else finite
    ticks = [tick for tick in ticks if finite.min() / 1.01 <= tick <= finite.max() * 1.01]
    labels = ax.xaxis.get_major_formatter().format_ticks(ticks)
    ax.set_xticks([*ticks, place], [*labels, "∞"])
