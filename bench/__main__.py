"""Benchmarks of gpusoftmax: cases x libraries -> results -> report. bench/README.md documents every measure.

python -m bench pass       seconds of one loss and gradient
python -m bench fit        objective against time and passes
python -m bench sweep      seconds of every strength on every fold, to objectives that one judge compares
python -m bench memory     extra peak of a pass and of a fit
python -m bench scaling    seconds over rows, features, classes and threads, with exponents
python -m bench optimum    the optimum reached, beside scikit-learn's
python -m bench smoke      all of these on tiny cases
python -m bench report     tables and figures of the newest results, or of --out, into the documents
"""

import argparse
import warnings
from pathlib import Path

from bench import fit, memory, one_pass, optimum, report, scaling, sweeps
from bench.options import Options
from bench.results import Results, default_folder

MEASURES = {
    "pass": one_pass.measure,
    "fit": fit.measure,
    "sweep": sweeps.measure,
    "memory": memory.measure,
    "scaling": scaling.measure,
    "optimum": optimum.measure,
}


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run what it asks for."""
    arguments = parser().parse_args(argv)
    if arguments.measure == "report":
        report.write(arguments.out or report.latest(), arguments.documents)
        return
    options = Options(
        data=arguments.data,
        is_fetched=arguments.fetch,
        cases=tuple(arguments.cases),
        libraries=tuple(arguments.libraries),
        n_rounds=arguments.rounds,
        is_smoke=arguments.smoke or arguments.measure == "smoke",
        limit_seconds=arguments.limit,
    )
    for name in MEASURES if arguments.measure == "smoke" else [arguments.measure]:
        with Results(arguments.out or default_folder(), name) as results, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a library's advice; what it reached is in its row
            MEASURES[name](options, results)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("measure", choices=[*MEASURES, "smoke", "report"])
    result.add_argument(
        "--out", type=Path, help="folder of results; default: results/DATE-MACHINE, for report the newest"
    )
    result.add_argument("--data", type=Path, default=Path("data"), help="folder of the real data sets")
    result.add_argument("--fetch", action="store_true", help="download real data sets that are not there from OpenML")
    result.add_argument("--cases", nargs="+", default=[], help="only cases with one of these in their name")
    result.add_argument("--libraries", nargs="+", default=[], help="only libraries with one of these in their name")
    result.add_argument("--rounds", type=int, default=5, help="interleaved rounds of timed calls")
    result.add_argument("--limit", type=float, default=900, help="seconds after which one fit or sweep is stopped")
    result.add_argument("--smoke", action="store_true", help="tiny cases, to see that everything runs")
    result.add_argument("--documents", type=Path, nargs="+", default=report.DOCUMENTS, help="what report rewrites")
    return result


if __name__ == "__main__":
    main()
