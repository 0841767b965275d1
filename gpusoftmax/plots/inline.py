"""Pictures as SVG inside an HTML page: its colours and fonts are theirs, whether it is light or dark."""

import io
import re
import warnings
from collections.abc import Callable
from html import escape

TEXT, RULE = "#010203", "#040506"  # no picture draws with them: what they colour takes the page's colours
STYLE = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), TEXT),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), RULE),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys((f"{axis}tick.{kind}.size" for axis in "xy" for kind in ("major", "minor")), 0),
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "font.family": "DejaVu Sans",  # comes with matplotlib: the size of its letters is the same on every machine
    "font.size": 9,
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud and written in any script
    "svg.hashsalt": "gpusoftmax",  # the same picture, the same bytes
}


def inline_svg(draw: Callable, name: str, title: str, width: float, height: float) -> str:
    """Return what `draw` draws on Axes as an SVG element.

    Parameters
    ----------
    draw : callable
        Takes Axes.
    name : str
        Of this picture on its page: it begins the ids of its parts.
    title : str
        What is seen, for those who do not see it.
    width, height : float
        Inches, which give the size of the text; the page scales the picture to its own width.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]), warnings.catch_warnings():
        # The page's fonts write the text: what matplotlib's own lacks is not missed.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)  # ids are unique on a page
    svg = svg.replace("'DejaVu Sans'", "system-ui, sans-serif")
    svg = svg.replace(f": {TEXT}", ": currentColor").replace(f": {RULE}", ": var(--rule)")
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    start = f'<svg {box[0]} role="img" aria-labelledby="{name}-title"><title id="{name}-title">{escape(title)}</title>'
    return start + svg[svg.index(">") + 1 :]
