"""Drawing results as SVG, for light and for dark pages."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LEAST_GAP = 1e-7  # what float32 resolves
THEMES = {  # text, grid, and colours told apart by the colour-blind (Okabe & Ito), in the order of the libraries
    "light": ("#1f2328", "#d1d9e0", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#555555", "#56b4e9")),
    "dark": ("#e6edf3", "#3d444d", ("#56b4e9", "#e69f00", "#2fbf93", "#cc79a7", "#f0e442", "#aaaaaa", "#0072b2")),
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
        yield figure, figure.subplots(1, n_panels, sharey=True, squeeze=False)[0], colours
        figure.savefig(path, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))


def draw_lines(panels: Panels, folder: Path, name: str, x_label: str, y_label: str, *, is_gap: bool = False) -> None:
    """Draw a panel of lines for each title into NAME-light.svg and NAME-dark.svg, logarithmic but for x of gaps.

    Gaps fall from left to right and have a dot at their end; they are cut off at what float32 resolves.
    """
    libraries = list(dict.fromkeys(library for lines in panels.values() for library in lines))
    for theme in THEMES:
        with _canvas(folder / f"{name}-{theme}.svg", theme, len(panels)) as (figure, axes, colours):
            for ax, (title, lines) in zip(axes, panels.items(), strict=True):
                for library, line in lines.items():
                    x, y = zip(*line, strict=True)
                    colour = colours[libraries.index(library) % len(colours)]
                    y = [max(value, LEAST_GAP) for value in y] if is_gap else y
                    ax.plot(x, y, color=colour, label=library, marker=None if is_gap else ".")
                    if is_gap:
                        ax.plot(x[-1], y[-1], "o", color=colour, markersize=5)
                ax.set(
                    xlabel=x_label,
                    title=title,
                    yscale="log",
                    xscale="linear" if x_label.startswith("passes") else "log",
                )
            if is_gap:
                axes[0].set_yticks((LEAST_GAP, 1e-5, 1e-3, 0.1, 10), ("≤ 1e-7", "1e-5", "0.001", "0.1", "10"))
            axes[0].set_ylabel(y_label)
            _legend(figure, axes)


def draw_bars(groups: dict[str, dict[str, float]], folder: Path, name: str, label: str) -> None:
    """Draw a group of bars for each case, one a library, into NAME-light.svg and NAME-dark.svg."""
    libraries = list(dict.fromkeys(library for bars in groups.values() for library in bars))
    width = 0.8 / len(libraries)
    for theme in THEMES:
        with _canvas(folder / f"{name}-{theme}.svg", theme, 1) as (figure, (ax,), colours):
            figure.set_size_inches(8.4, 3.4)  # wide: many bars
            for i, library in enumerate(libraries):
                heights = [bars.get(library, 0) for bars in groups.values()]
                places = [place + (i - (len(libraries) - 1) / 2) * width for place in range(len(groups))]
                ax.bar(places, heights, 0.9 * width, color=colours[i % len(colours)], label=library)
            ax.set_xticks(range(len(groups)), groups)
            ax.set_ylabel(label)
            _legend(figure, [ax])


def _legend(figure, axes) -> None:
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=max(2, min(4, len(axes) + 1)))
