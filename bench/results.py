"""Results on disk: one CSV a table, written anew with every row, and machine.json beside them."""

import csv
import json
import os
import platform
import shutil
import subprocess
import time
from collections import defaultdict
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from threadpoolctl import threadpool_info

from bench.libraries.base import n_threads

ROOT = Path(__file__).parent / "results"
PACKAGES = "gpusoftmax numpy scipy scikit-learn torch jax cupy-cuda12x cupy-cuda13x cuml liger-kernel cut-cross-entropy"
Row = dict[str, Any]
UNLOGGED = {"n_rows", "n_features", "n_classes", "dtype", "is_soft", "settings"}


class Results:
    """A folder of results that is being filled, and the log of it on standard error."""

    def __init__(self, folder: Path, measure: str):
        self.folder = folder
        self._measure = measure
        self._old: dict[str, list[Row]] = {}  # of earlier runs
        self._order: dict[str, list[Any]] = {}  # of cases
        self._new: dict[str, list[Row]] = defaultdict(list)
        self._console = Console(stderr=True, highlight=False)
        self._status = self._console.status(measure)

    def __enter__(self) -> Self:
        """Write what the figures depend on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "machine.json"
        runs = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(runs | {self._measure: machine()}, indent=2) + "\n")
        self._status.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._status.stop()

    def say(self, text: str) -> None:
        """Show what is going on."""
        self._status.update(escape(f"{self._measure}: {text} ..."))

    def add(self, table: str, row: Row, *, is_logged: bool = True) -> None:
        """Write a row in place of the earlier run's rows of its case and library, and log it."""
        path = self.folder / f"{table}.csv"
        if table not in self._old:
            self._old[table] = _read_cells(path)
            self._order[table] = [other["case"] for other in self._old[table] if "case" in other]
        self._order[table].append(row.get("case"))
        self._old[table] = [other for other in self._old[table] if _identity(other) != _identity(row)]
        self._new[table].append(row)
        rows = [*self._old[table], *self._new[table]]
        write(path, sorted(rows, key=lambda row: self._order[table].index(row.get("case"))))
        if not is_logged:
            return
        told = (f"{key}={_short(value)}" for key, value in row.items() if key not in UNLOGGED)
        self._console.print(escape(f"{table}: {' '.join(told)}"), soft_wrap=True)


def write(path: Path, rows: list[Row]) -> None:
    """Write a CSV with every key of any row as a column."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, dict.fromkeys(key for row in rows for key in row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[Row]:
    """Return the rows of a CSV: numbers as floats, empty cells left out."""
    return [{key: _number(value) for key, value in row.items()} for row in _read_cells(path)]


def _read_cells(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: value for key, value in row.items() if value != ""} for row in csv.DictReader(file)]


def _identity(row: Row) -> tuple[str, ...]:
    """Return what tells the rows of a run from those of another: a run replaces its own rows of an earlier one."""
    return tuple(str(row.get(key, "")) for key in ("case", "library", "work", "axis", "n_threads", "data"))


def error_of(error: Exception) -> Row:
    """Return what a failed run leaves in its row: the first line of the error."""
    text = (str(error).strip().splitlines() or [""])[0]
    return {"error": text if type(error).__name__ == "UnavailableError" else f"{type(error).__name__}: {text}"}


def default_folder() -> Path:
    """Return the folder named after today and this machine's CPUs."""
    return ROOT / f"{time.strftime('%Y-%m-%d')}-{os.cpu_count()}-cores"


def machine() -> Row:
    """Return what the figures of a run depend on."""
    versions = {}
    for package in PACKAGES.split():
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "started": time.strftime("%Y-%m-%d %H:%M"),
        "commit": _output("git", "-C", str(ROOT.parent), "describe", "--always", "--dirty"),
        "processor": _processor(),
        "gpu": _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),
        "n_cpus": os.cpu_count(),
        "n_threads": n_threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "threads": {f"{pool['internal_api']} {pool['version']}": pool["num_threads"] for pool in threadpool_info()},
        **versions,
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _output(*command: str) -> str:
    """Return the first line that a command prints, or nothing if it fails."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0] if done.returncode == 0 else ""


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
