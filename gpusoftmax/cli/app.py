"""The commands and their options. Nothing slow is imported before a command runs: ``--help`` is quick."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from gpusoftmax.cli.options import (
    DATA,
    MODEL,
    OUTPUT,
    AsJson,
    Balance,
    Data,
    Debug,
    Device,
    Drop,
    Features,
    Folds,
    Iterations,
    ModelFile,
    OnDevice,
    Quiet,
    Seed,
    Smoothing,
    Standardize,
    Target,
    TestSize,
    Tolerance,
    Weights,
    ZeroBased,
    strengths,
)
from gpusoftmax.cli.terminal import Terminal

app = typer.Typer(
    name="gpusoftmax",
    help="Softmax (multinomial logistic) regression from a data file to a model on disk.",
    epilog="Exit codes: 0 done, 1 it could not be done, 2 wrong usage, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Report = Annotated[
    Path | None,
    typer.Option(
        "--report", metavar="HTML", help="Page on the model and the rows held out.", show_default=False,
        rich_help_panel=OUTPUT,
    ),
]  # fmt: skip
OneStandardError = Annotated[
    bool,
    typer.Option(
        "--one-se", help="The strongest penalty within one standard error of the best.", rich_help_panel=MODEL
    ),
]


@app.command()
def fit(
    data: Data,
    target: Target = None,
    features: Features = None,
    drop: Drop = None,
    weights: Weights = None,
    zero_based: ZeroBased = False,
    test_size: TestSize = 0.0,
    seed: Seed = 0,
    C: Annotated[
        str | None,
        typer.Option(
            "--C", metavar="FLOAT", help="Inverse strength of the penalty; with --cv several to choose from, "
            "as 0.01,1,100 or 1e-4:1e4:20.", show_default="1, with --cv 1e-4:1e4:20", rich_help_panel=MODEL,
        ),
    ] = None,
    cv: Annotated[
        int | None,
        typer.Option(
            "--cv", min=2, metavar="FOLDS", help="Choose C by so many folds of the rows fitted.", show_default=False,
            rich_help_panel=MODEL,
        ),
    ] = None,
    one_se: OneStandardError = False,
    standardize: Standardize = False,
    calibrate: Annotated[
        float,
        typer.Option(
            "--calibrate", min=0, max=0.5, metavar="SHARE", help="Fit a temperature to this share of the rows, "
            "held out for it.", rich_help_panel=MODEL,
        ),
    ] = 0.0,
    class_weight: Balance = None,
    label_smoothing: Smoothing = 0.0,
    tol: Tolerance = 1e-4,
    max_iter: Iterations = 1000,
    device: OnDevice = Device.AUTO,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Save the model as .safetensors.", show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    report: Report = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Fit a model to a data file, judge it by rows held out, and save it."""
    Cs = strengths(C or ("1e-4:1e4:20" if cv else "1"))
    if len(Cs) > 1 and not cv:
        raise typer.BadParameter("several C want a way to choose: give --cv 5 as well.", param_hint="--C")
    if one_se and not cv:
        raise typer.BadParameter("there are no folds to choose by: give --cv 5 as well.", param_hint="--one-se")
    if report and not test_size:
        raise typer.BadParameter(
            "a report tells of rows held out: give --test-size 0.2 as well.", param_hint="--report"
        )
    if test_size + calibrate > 0.9:
        raise typer.BadParameter(
            "with --test-size it leaves under a tenth of the rows to fit.", param_hint="--calibrate"
        )
    with Terminal(is_json=as_json, is_quiet=quiet, is_debug=debug) as terminal:
        _check_target(data, target)
        from gpusoftmax.cli import fitting
        from gpusoftmax.cli.request import Request

        request = Request(
            data=data,
            target=target,
            features=features or (),
            drop=drop or (),
            weights=weights,
            is_zero_based=zero_based,
            test_size=test_size,
            seed=seed,
            Cs=Cs,
            n_folds=cv,
            is_standardized=standardize,
            class_weight=class_weight.value if class_weight else None,
            label_smoothing=label_smoothing,
            tol=tol,
            max_iter=max_iter,
            device=device.value,
        )
        fitting.fit(
            terminal,
            request,
            one_standard_error=one_se,
            calibration_size=calibrate,
            model_path=output,
            report_path=report,
        )


@app.command()
def sweep(
    data: Data,
    target: Target = None,
    features: Features = None,
    drop: Drop = None,
    weights: Weights = None,
    zero_based: ZeroBased = False,
    test_size: TestSize = 0.0,
    seed: Seed = 0,
    C: Annotated[
        str,
        typer.Option(
            "--C", metavar="FLOATS", help="Inverse strengths of the penalty: 0.01,1,100, or first:last:how many.",
            rich_help_panel=MODEL,
        ),
    ] = "1e-4:1e4:20",
    cv: Folds = 5,
    one_se: OneStandardError = False,
    standardize: Standardize = False,
    class_weight: Balance = None,
    label_smoothing: Smoothing = 0.0,
    tol: Tolerance = 1e-4,
    max_iter: Iterations = 1000,
    device: OnDevice = Device.AUTO,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write every C and fold to a .csv.", show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Fit every C on every fold in one go, and show which does best."""
    Cs = strengths(C)
    with Terminal(is_json=as_json, is_quiet=quiet, is_debug=debug) as terminal:
        _check_target(data, target)
        from gpusoftmax.cli import fitting
        from gpusoftmax.cli.request import Request

        request = Request(
            data=data,
            target=target,
            features=features or (),
            drop=drop or (),
            weights=weights,
            is_zero_based=zero_based,
            test_size=test_size,
            seed=seed,
            Cs=Cs,
            n_folds=cv,
            is_standardized=standardize,
            class_weight=class_weight.value if class_weight else None,
            label_smoothing=label_smoothing,
            tol=tol,
            max_iter=max_iter,
            device=device.value,
        )
        fitting.sweep(terminal, request, one_standard_error=one_se, output=output)


@app.command()
def predict(
    model: ModelFile,
    data: Data,
    target: Target = None,
    drop: Drop = None,
    zero_based: ZeroBased = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", "-p", help="Write that of each class too.", rich_help_panel=OUTPUT)
    ] = False,
    device: OnDevice = Device.AUTO,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write .csv, .parquet, .arrow, .feather or .npy instead of CSV to "
            "standard output.", show_default=False, rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Predict the class of every row of a data file."""
    with Terminal(is_json=as_json, is_quiet=quiet, is_debug=debug) as terminal:
        from gpusoftmax.cli.predicting import predict as run
        from gpusoftmax.tables import Selection

        selection = Selection(target, (), drop or (), is_zero_based=zero_based)
        run(
            terminal,
            model,
            data,
            selection,
            has_probabilities=probabilities,
            device=device.value,
            output=output,
        )


@app.command()
def evaluate(
    model: ModelFile,
    data: Data,
    target: Target = None,
    drop: Drop = None,
    weights: Weights = None,
    zero_based: ZeroBased = False,
    test_size: Annotated[
        float,
        typer.Option(
            "--test-size", min=0, max=0.9, metavar="SHARE", help="Judge only by the rows that fit held out of "
            "this file, at this size and seed.", rich_help_panel=DATA,
        ),
    ] = 0.0,
    seed: Seed = 0,
    device: OnDevice = Device.AUTO,
    report: Report = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Judge a model by the rows of a data file: accuracy, log loss, calibration, every class."""
    with Terminal(is_json=as_json, is_quiet=quiet, is_debug=debug) as terminal:
        _check_target(data, target)
        from gpusoftmax.cli.judging import evaluate as run
        from gpusoftmax.tables import Selection

        selection = Selection(target, (), drop or (), weights, zero_based)
        run(
            terminal,
            model,
            data,
            selection,
            test_size=test_size,
            seed=seed,
            device=device.value,
            report_path=report,
        )


@app.command()
def info(
    model: Annotated[
        Path | None,
        typer.Argument(metavar="[MODEL]", help="Show what a saved model is.", show_default=False, readable=False),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show versions, processors, BLAS and GPU, and what is missing; or what a model is."""
    with Terminal(is_json=as_json, is_debug=debug) as terminal:
        from gpusoftmax.cli import informing

        if model is None:
            informing.info(terminal)
        else:
            informing.inform_of_model(terminal, model)


@app.command()
def bench(
    device: OnDevice = Device.AUTO,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Take a quick look at seconds and optimum beside scikit-learn, on generated data."""
    with Terminal(is_json=as_json, is_debug=debug) as terminal:
        from gpusoftmax.cli.benching import bench as run

        run(terminal, device.value)


def _check_target(data: Path, target: str | None) -> None:
    from gpusoftmax.tables import names_its_target

    if target is None and not names_its_target(data):
        raise typer.BadParameter("which column holds the labels? Name it.", param_hint="--target")


def main() -> None:
    """Run the command line: the entry point `gpusoftmax`."""
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  # for as long as the process lives
    if sys.stdout is None:
        sys.exit("Error: standard output is closed: leave it open, or send it to a file or to /dev/null.")
    app()
