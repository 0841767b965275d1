"""Drawing results as SVG, for light and for dark pages."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LEAST_GAP = 1e-7  # what float32 resolves
THEMES = {  # text, grid, and colours told apart by the colour-blind (Okabe & Ito), in the order of the libraries
    "light": (
        "#1f2328",
        "#d1d9e0",
        ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#555555", "#56b4e9", "#882255"),
    ),
    "dark": (
        "#e6edf3",
        "#3d444d",
        ("#56b4e9", "#e69f00", "#2fbf93", "#cc79a7", "#f0e442", "#aaaaaa", "#3f7fd9", "#ff8fa3"),
    ),
}
Line = list[tuple[float, float]]
Panels = dict[str, dict[str, Line]]  # by title, then by library


@contextmanager
def _canvas(path: Path, theme: str, n_panels: int) -> Iterator[tuple]:
    """Yield a figure, its axes and a colour for each library, and save the figure."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    text, grid, colours = THEMES[theme]
    style = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), text)
    style |= dict.fromkeys(("axes.edgecolor", "grid.color"), grid)
    style |= dict.fromkeys(("axes.spines.top", "axes.spines.right"), False)
    sizes = (f"{axis}tick.{kind}.size" for axis in "xy" for kind in ("major", "minor"))
    style |= dict.fromkeys(sizes, 0)
    style |= {
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.facecolor": "none",
        "legend.frameon": False,
    }
    style |= {"svg.hashsalt": "gpusoftmax", "axes.titlesize": 10, "font.size": 9}
    with mpl.rc_context(style):
        figure = Figure(figsize=(max(4.2, 2.8 * n_panels), 3.4), layout="constrained", facecolor="none")
        yield figure, figure.subplots(1, n_panels, sharey=True, squeeze=False)[0], _Colours(colours)
        figure.savefig(path, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))


def draw_gaps(panels: Panels, folder: Path, name: str, x_label: str, x_scale: str) -> None:
    """Draw the lowest relative gap so far, cut off at what float32 resolves, with a dot where a fit ends."""
    for theme in THEMES:
        with _canvas(folder / f"{name}-{theme}.svg", theme, len(panels)) as (figure, axes, colours):
            for ax, library, line in _lines(axes, panels, x_label):
                x, gaps = zip(*line, strict=True)
                lowest = [max(gap, LEAST_GAP) for gap in itertools.accumulate(gaps, min)]
                ax.plot(x, lowest, color=colours[library], label=library)
                ax.plot(x[-1], lowest[-1], "o", color=colours[library], markersize=5)
                ax.set(xscale=x_scale, yscale="log")
            axes[0].set_yticks((LEAST_GAP, 1e-5, 1e-3, 0.1, 10), ("≤ 1e-7", "1e-5", "0.001", "0.1", "10"))
            axes[0].set_ylabel("relative gap to the optimum")
            _legend(figure, axes)


def draw_scaling(panels: Panels, folder: Path, name: str) -> None:
    """Draw seconds over sizes, both logarithmic."""
    for theme in THEMES:
        with _canvas(folder / f"{name}-{theme}.svg", theme, len(panels)) as (figure, axes, colours):
            for ax, library, line in _lines(axes, panels, "size"):
                ax.loglog(*zip(*line, strict=True), color=colours[library], label=library, marker=".")
            axes[0].set_ylabel("seconds")
            _legend(figure, axes)


def draw_bars(groups: dict[str, dict[str, float]], folder: Path, name: str, label: str) -> None:
    """Draw a group of bars for each case, one a library, into NAME-light.svg and NAME-dark.svg."""
    libraries = dict.fromkeys(library for bars in groups.values() for library in bars)
    width = 0.8 / len(libraries)
    for theme in THEMES:
        with _canvas(folder / f"{name}-{theme}.svg", theme, 1) as (figure, (ax,), colours):
            figure.set_size_inches(8.4, 3.4)  # wide: many bars
            for i, library in enumerate(libraries):
                heights = [bars.get(library, 0) for bars in groups.values()]
                places = [place + (i - (len(libraries) - 1) / 2) * width for place in range(len(groups))]
                ax.bar(places, heights, 0.9 * width, color=colours[library], label=library)
            ax.set_xticks(range(len(groups)), groups)
            ax.set_ylabel(label)
            _legend(figure, [ax])


def draw_axes(draw: Callable, folder: Path, name: str, inches: tuple[float, float] = (7.3, 4)) -> None:
    """Have `draw` draw on axes, by default as wide as a page."""
    for theme in THEMES:
        with _canvas(folder / f"{name}-{theme}.svg", theme, 1) as (figure, (ax,), _):
            figure.set_size_inches(inches)
            draw(ax)


class _Colours(dict):
    """A colour for each library, in the order in which they are asked for."""

    def __init__(self, colours: tuple[str, ...]):
        self._colours = itertools.cycle(colours)

    def __missing__(self, library: str) -> str:
        self[library] = next(self._colours)
        return self[library]


def _lines(axes, panels: Panels, x_label: str) -> Iterator[tuple]:
    """Yield axes, library and line of every panel, titled."""
    for ax, (title, lines) in zip(axes, panels.items(), strict=True):
        ax.set(title=title, xlabel=x_label)
        for library, line in lines.items():
            yield ax, library, line


def _legend(figure, axes) -> None:
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=max(2, min(4, len(axes) + 1)))
