"""report: tables and figures of a results folder, written between markers of the documents.

A document says where: ``<!-- bench:pass -->`` and ``<!-- /bench:pass -->`` hold the block "pass", and so on for every
name in `BLOCKS`. What the folder has no results for stays as it is.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from bench import figures, libraries
from bench.fit import CONVERGED, GAPS
from bench.results import ROOT, Row, read

DOCUMENTS = (ROOT.parents[1] / "README.md", ROOT.parent / "README.md")
OURS, SCIKIT_LEARN, GEMMS = libraries.OURS.name, libraries.SCIKIT_LEARN.name, libraries.GEMMS.name
FLOORS = (GEMMS, libraries.READ.name)


def write(folder: Path, documents: Iterable[Path] = DOCUMENTS) -> None:
    """Draw the folder's figures and rewrite the documents' blocks."""
    draw(folder)
    for document in documents:
        text = document.read_text(encoding="utf-8")
        for name, block in BLOCKS.items():
            if content := block(folder, document.parent):
                text = replace_block(text, name, content)
        document.write_text(text, encoding="utf-8")


def latest() -> Path:
    """Return the newest folder of results."""
    return max(path.parent for path in ROOT.glob("*/machine.json"))


def replace_block(text: str, name: str, content: str) -> str:
    """Put content between the markers of a block, wherever they are."""
    pattern = rf"(<!-- bench:{name} -->\n).*?(<!-- /bench:{name} -->)"
    return re.sub(pattern, lambda match: f"{match[1]}\n{content.strip()}\n\n{match[2]}", text, flags=re.DOTALL)


# ---------------------------------------------------------------- blocks: Markdown from a folder, or nothing


def pass_block(folder: Path, document: Path) -> str:
    """Return the seconds of a pass, and every peer's over ours."""
    rows = read(folder / "pass.csv")
    done = [row for row in rows if "seconds_min" in row]
    if not done:
        return ""
    peers = [name for name in names(done) if name not in (OURS, *FLOORS)]
    header = ["N, D, K", "ours, ms", "GFLOP/s", *(f"{name} ÷ ours" for name in peers), "ours ÷ two GEMMs", "÷ one read"]
    lines = []
    for case in dict.fromkeys(row["case"] for row in done):
        by_library = {row["library"]: row for row in done if row["case"] == case}
        if (ours := by_library.get(OURS)) is None:
            continue
        ratios = [number(by_library.get(name, {}).get("times_ours")) for name in peers]
        own = [f"{1e3 * ours['seconds_min']:.1f}", f"{ours['gflops']:.0f}"]
        lines.append([shape(ours), *own, *ratios, number(ours.get("times_gemms")), number(ours.get("times_read"))])
    picture_text = picture("pass", folder, document, "Seconds of one loss and gradient, every library over gpusoftmax")
    return picture_text + table(header, lines) + (missing(rows) if document == ROOT.parent else "")


def fit_block(folder: Path, document: Path) -> str:
    """Return when every library reached the objective at which scikit-learn ends converged."""
    rows = read(folder / "fit.csv")
    lines = [
        [
            case_name(row),
            row["library"],
            number(row.get("n_passes"), ".0f"),
            number(row.get("seconds"), ".3g"),
            number(row.get("times_ours"), ".1f"),
        ]
        for row in rows
        if row.get("target") == CONVERGED
    ]
    if not lines:
        return ""
    header = ["data", "library", "passes over X", "seconds", "÷ ours"]
    picture_text = picture("fit", folder, document, "Relative gap to the optimum against seconds, for every library")
    return picture_text + table(header, lines)


def gaps_block(folder: Path, document: Path) -> str:
    """Return the seconds and passes to every relative gap."""
    rows = read(folder / "fit.csv")
    ways = {(case_name(row), row["library"], row["target"]): row for row in rows if "target" in row}
    lines = []
    for case, library in dict.fromkeys(key[:2] for key in ways):
        to_gaps = (ways.get((case, library, f"gap {gap:g}"), {}) for gap in GAPS)
        cells = [f"{w['seconds']:.3g} ({w['n_passes']:.0f})" if "seconds" in w else "–" for w in to_gaps]
        lines.append([case, library, *cells])
    header = ["data", "library", *(f"{gap:g}" for gap in GAPS)]
    return table(header, lines) + missing(rows) if lines else ""


def sweep_block(folder: Path, document: Path) -> str:
    """Return the seconds of whole sweeps, every peer's over ours for the same problems, and how objectives compare."""
    rows = read(folder / "sweep.csv")
    done = [row for row in rows if "times_ours" in row]
    if not done:
        return ""
    own = (OURS, libraries.TO_TARGETS.name)
    peers = [library.name for library in libraries.SWEEP if library.name in names(done) and library.name not in own]
    header = [
        *("sweep", "problems", "ours, s", "scikit-learn loop, all threads or 1 as is faster ÷ ours, to its objectives"),
        *(f"{name} ÷ ours" for name in peers),
        "ours over the best",
    ]
    lines, objectives = [], []
    for case in dict.fromkeys(row["case"] for row in done):
        by_library = {row["library"]: row for row in done if row["case"] == case}
        ours, others = by_library.get(OURS, {}), [by_library.get(name, {}) for name in peers]
        about = [case_name({"case": case}), f"{next(iter(by_library.values()))['n_problems']:,.0f}"]
        excess = number(ours.get("worst_excess"), ".1e")
        ahead = number(ahead_of_loops(by_library), ".1f")
        lines.append([*about, number(ours.get("seconds"), ".3g"), ahead, *map(times, others), excess])
        objectives.append([about[0], excess, *map(excesses, others)])
    legend = "\nEvery library's objective over the best at worst, and in brackets ours over that library's:\n\n"
    text = table(header, lines) + legend + table(["sweep", "ours", *peers], objectives)
    return text + (missing(rows) if document == ROOT.parent else "")


def memory_block(folder: Path, document: Path) -> str:
    """Return the extra peak of a pass and of a fit."""
    rows = [row for row in read(folder / "memory.csv") if "cold_bytes" in row]
    columns = names(rows)
    lines = []
    for work, case in dict.fromkeys((row["work"], row["case"]) for row in rows):
        by_library = {row["library"]: row for row in rows if (row["work"], row["case"]) == (work, case)}
        cells = [
            f"{row['warm_bytes'] / 1e6:.1f} ({row['cold_bytes'] / 1e6:.1f})" if row else "–"
            for row in map(by_library.get, columns)
        ]
        lines.append([work.replace("_", " "), case_name({"case": case}), *cells])
    return table(["work", "case", *columns], lines) if lines else ""


def scaling_block(folder: Path, document: Path) -> str:
    """Return the fitted exponents, and the gain of each thread."""
    exponents = read(folder / "exponents.csv")
    lines = [
        [row["axis"], f"{row['smallest']:,.0f} to {row['largest']:,.0f}", row["library"], f"{row['exponent']:.2f}"]
        for row in exponents
    ]
    if not lines:
        return ""
    rows = [row for row in read(folder / "scaling.csv") if row["axis"] == "threads" and "seconds_min" in row]
    one = {(row["case"], row["library"]): row["seconds_min"] for row in rows if row["n_threads"] == 1}
    gains = [
        [
            shape(row),
            row["library"],
            f"{row['n_threads']:.0f}",
            f"{one[row['case'], row['library']] / row['seconds_min']:.2f}",
        ]
        for row in rows
        if row["n_threads"] > 1
    ]
    picture_text = picture("scaling", folder, document, "Seconds of a pass over rows, features and classes")
    text = picture_text + table(["over", "from", "library", "exponent"], lines)
    return text + "\n" + table(["N, D, K", "library", "threads", "gain over one"], gains) if gains else text


def optimum_block(folder: Path, document: Path) -> str:
    """Return in how many cases ours is at most scikit-learn's."""
    rows = [row for row in read(folder / "optimum.csv") if "relative_difference" in row]
    if not rows:
        return ""
    worst = max(row["relative_difference"] for row in rows)
    n_holding = sum(row["relative_difference"] <= 1e-6 for row in rows)
    n_converged = sum(row["ours_status"] == "CONVERGED" for row in rows)
    sets = ", ".join(dict.fromkeys(row["data"] for row in rows))
    return (
        f"{len(rows)} cases ({sets}): in {n_holding} our objective is at most scikit-learn's, to a relative 1e-6; the "
        f"largest relative difference is {worst:.1e}. In {n_converged} ours converged.\n"
    )


def machine_block(folder: Path, document: Path) -> str:
    """Return on what the measures ran."""
    path = folder / "machine.json"
    runs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    runs = {name: run for name, run in runs.items() if isinstance(run, dict) and "commit" in run}
    if not runs:
        return ""
    run = next(iter(runs.values()))
    packages = ("numpy", "scipy", "scikit-learn", "torch", "jax")
    versions = ", ".join(f"{name} {run[name]}" for name in packages if run.get(name, "not") != "not installed")
    return (
        f"Measured on {run['n_threads']} threads of {run['processor']} with Python {run['python']}, {versions}; "
        f"all figures are in [{folder.name}]({relative(folder, document)}).\n"
    )


BLOCKS: dict[str, Callable[[Path, Path], str]] = {
    "pass": pass_block,
    "fit": fit_block,
    "gaps": gaps_block,
    "sweep": sweep_block,
    "memory": memory_block,
    "scaling": scaling_block,
    "optimum": optimum_block,
    "machine": machine_block,
}


# ---------------------------------------------------------------- figures


def draw(folder: Path) -> None:
    """Draw the figures of the tables that the folder has."""
    curves, panels = read(folder / "curves.csv"), {}
    for row in curves:
        lines = panels.setdefault(case_name(row), {})
        lines.setdefault(row["library"], []).append((row["seconds"], row["gap"]))
    if panels:
        figures.draw_gaps(panels, folder, "fit", "seconds", "log")
    bars = {}
    for row in read(folder / "pass.csv"):
        if (
            "times_ours" in row
            and row["dtype"] == "float32"
            and row["is_soft"] == "False"
            and row["library"] not in FLOORS
        ):
            bars.setdefault(shape(row).replace(", ", "\n× "), {})[row["library"]] = row["times_ours"]
    if bars:
        figures.draw_bars(bars, folder, "pass", "seconds of a pass over ours")
    over: figures.Panels = {}
    for row in read(folder / "scaling.csv"):
        if row["axis"] != "threads" and "seconds_min" in row:
            lines = over.setdefault(f"over {row['axis']}", {})
            lines.setdefault(row["library"], []).append((row[f"n_{row['axis']}"], row["seconds_min"]))
    if over:
        ordered = {axis: {name: sorted(line) for name, line in lines.items()} for axis, lines in over.items()}
        figures.draw_scaling(ordered, folder, "scaling")


# ---------------------------------------------------------------- Markdown


def table(header: list[str], lines: list[list[str]]) -> str:
    """Return a table; a first cell that repeats the line above is left blank."""
    rule = ["---" if i == 0 else "---:" for i in range(len(header))]
    above = ""
    rows = []
    for line in lines:
        rows.append([line[0] if line[0] != above else "", *line[1:]])
        above = line[0]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows)) + "\n"


def picture(name: str, folder: Path, document: Path, alt: str) -> str:
    """Return a figure that follows the page's theme, if it was drawn."""
    if not (folder / f"{name}-light.svg").exists():
        return ""
    source = f"{relative(folder, document)}/{name}"
    return (
        f'<picture>\n  <source media="(prefers-color-scheme: dark)" srcset="{source}-dark.svg">\n'
        f'  <img alt="{alt}" src="{source}-light.svg">\n</picture>\n\n'
    )


def missing(rows: list[Row]) -> str:
    """Return which libraries have no figures, and why."""
    reasons: dict[str, dict[str, None]] = {}
    for row in rows:
        if "error" in row:
            reasons.setdefault(str(row["error"]), {})[str(row.get("library", case_name(row)))] = None
    lines = [f"* {', '.join(who)}: {why}\n" for why, who in reasons.items()]
    return "".join(["\nNot measured:\n\n", *lines]) if lines else ""


def relative(folder: Path, document: Path) -> str:
    """Return the folder as a link from a document's folder."""
    return Path(os.path.relpath(folder, document)).as_posix()


def names(rows: list[Row]) -> list[str]:
    """Return the libraries of some rows, in order."""
    return list(dict.fromkeys(row["library"] for row in rows))


def shape(row: Row) -> str:
    """Return a case's sizes as a reader would write them."""
    sizes = ", ".join(f"{row[key]:,.0f}" for key in ("n_rows", "n_features", "n_classes"))
    return sizes + " float64" * (row["dtype"] == "float64") + " soft" * (row["is_soft"] == "True")


def case_name(row: Row) -> str:
    """Return a case's name as a reader would write it."""
    return str(row["case"]).replace("-float32", "").replace("-", " ")


def times(row: Row) -> str:
    """Return a sweep's seconds over ours, and for how many problems if not for all."""
    is_part = row.get("n_compared") != row.get("n_problems")
    return number(row.get("times_ours"), ".1f") + (f" (first {row['n_compared']:.0f})" if is_part else "")


def ahead_of_loops(by_library: dict[str, Row]) -> float:
    """Return the seconds of the faster of scikit-learn's loops over those that ours takes to the loop's objectives."""
    ours = by_library.get(libraries.TO_TARGETS.name, {})
    loops = (by_library.get(loop.name, {}) for loop in (libraries.LOOP, libraries.LOOP_ON_ONE_THREAD))
    seconds = (row["seconds"] for row in loops if row and row["n_compared"] == ours.get("n_compared"))
    return min(seconds, default=math.nan) / ours.get("seconds", math.nan)


def excesses(row: Row) -> str:
    """Return how far a sweep's worst objective is above the best library's, and ours above the sweep's."""
    return f"{number(row['worst_excess'], '.1e')} ({number(row['ours_worst_excess'], '.1e')})" if row else "–"


def number(value: float | None, spec: str = ".2f") -> str:
    """Return a figure, or a dash where there is none."""
    return "–" if value is None or value != value else format(value, spec)
