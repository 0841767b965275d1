"""What the pictures share: colours, new Axes, and names as they are written on them."""

# Told apart by the colour-blind (after Okabe & Ito) and seen on white as on black.
COLOURS = ("#2a8fd0", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#808080")
QUIET = "#808080"
LONGEST_NAME = 24


def new_axes(what: str, width: float = 7, height: float = 4):
    """Return the Axes of a new figure, in inches; `what` needs them."""
    try:
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise ImportError(f"{what} needs matplotlib: pip install 'gpusoftmax[plots]'") from error
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def text_colour(ax) -> str:
    """Return the colour of the page's text."""
    return ax.xaxis.label.get_color()


def written(name) -> str:
    """Return a name as matplotlib writes it: short, its dollars no formula."""
    return shortened(name, LONGEST_NAME).replace("$", r"\$")


def shortened(name, longest: int) -> str:
    """Return a name in one line, printable, without its middle if it is longer than that."""
    words = "".join(letter if letter.isprintable() else " " for letter in str(name)).split()
    name = " ".join(words) or repr(str(name))
    if len(name) <= longest:
        return name
    n_last = longest // 3
    return f"{name[: longest - 1 - n_last]}…{name[-n_last:]}"
