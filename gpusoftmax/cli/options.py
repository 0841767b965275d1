"""Options that several commands share, as typer declares them."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Device(StrEnum):
    """Where to compute."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class ClassWeight(StrEnum):
    """How classes are weighed."""

    BALANCED = "balanced"


def strengths(text: str) -> list[float]:
    """Return values of C: "1", "0.01,1,100" or "1e-4:1e4:20", first, last and how many, evenly by logarithm.

    Raises
    ------
    typer.BadParameter
        The text is none of those.
    """
    try:
        if text.count(":") == 2:
            first, last, count = text.split(":")
            low, high, n_values = float(first), float(last), int(count)
            if not (0 < low < high < float("inf") and n_values >= 2):
                raise ValueError
            values = [low * (high / low) ** (i / (n_values - 1)) for i in range(n_values)]
        else:
            values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(value > 0 for value in values):
        raise typer.BadParameter(
            f"{text!r} is no C: give a number above 0 or inf, several as 0.01,1,100, or a range as 1e-4:1e4:20.",
            param_hint="--C",
        )
    return values


DATA, MODEL, OUTPUT = "Data", "Model", "Output"
Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA", help="CSV, Parquet, Arrow, Feather, .npy, .npz or svmlight.", show_default=False,
        readable=False,  # no check of typer's, whose message would be another
    ),
]  # fmt: skip
ModelFile = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A model that fit saved.", show_default=False, readable=False)
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target", "-t", metavar="NAME", help="Column of the labels; of .npy its number, or a .npy file.",
        show_default=False, rich_help_panel=DATA,
    ),
]  # fmt: skip
Features = Annotated[
    list[str] | None,
    typer.Option(
        "--features", "-f", metavar="NAMES", help="Columns to learn from, such as 'age,pixel*'.",
        show_default="all of numbers", rich_help_panel=DATA,
    ),
]  # fmt: skip
Drop = Annotated[
    list[str] | None,
    typer.Option(
        "--drop", metavar="NAMES", help="Columns to leave out, such as 'id,date*'.",
        show_default=False, rich_help_panel=DATA,
    ),
]  # fmt: skip
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights", metavar="NAME", help="Column of each row's weight.", show_default=False, rich_help_panel=DATA
    ),
]  # fmt: skip
ZeroBased = Annotated[
    bool,
    typer.Option("--zero-based", help="Indices of svmlight start at 0, not at 1.", rich_help_panel=DATA),
]
TestSize = Annotated[
    float,
    typer.Option(
        "--test-size", min=0, max=0.9, metavar="SHARE", help="Share of the rows to hold out and judge by, by class.",
        rich_help_panel=DATA,
    ),
]  # fmt: skip
Seed = Annotated[
    int, typer.Option("--seed", min=0, metavar="INT", help="Of the draw of rows and folds.", rich_help_panel=DATA)
]
Folds = Annotated[
    int, typer.Option("--cv", min=2, metavar="FOLDS", help="Folds of the cross-validation.", rich_help_panel=MODEL)
]
Balance = Annotated[
    ClassWeight | None,
    typer.Option("--class-weight", help="Give each class the same weight.", show_default=False, rich_help_panel=MODEL),
]
Smoothing = Annotated[
    float,
    typer.Option(
        "--label-smoothing", min=0, max=0.99, metavar="SHARE", help="Spread this share of each label over all classes.",
        rich_help_panel=MODEL,
    ),
]  # fmt: skip
Standardize = Annotated[
    bool,
    typer.Option(
        "--standardize", help="Learn from features of mean 0 and deviation 1; the model takes them as they are.",
        rich_help_panel=MODEL,
    ),
]  # fmt: skip
Tolerance = Annotated[
    float, typer.Option("--tol", min=0, metavar="FLOAT", help="Largest gradient at the end.", rich_help_panel=MODEL)
]
Iterations = Annotated[
    int, typer.Option("--max-iter", min=1, metavar="INT", help="Most steps of a fit.", rich_help_panel=MODEL)
]
OnDevice = Annotated[Device, typer.Option("--device", help="Where to compute.", rich_help_panel=MODEL)]
AsJson = Annotated[
    bool, typer.Option("--json", help="Write one JSON object to standard output.", rich_help_panel=OUTPUT)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say only what is wrong.", rich_help_panel=OUTPUT)]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.", rich_help_panel=OUTPUT)]
