"""Sections that run other programs: the tests on this card, NVIDIA's checkers, and the benchmarks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench import cases, one_pass, results
from bench.gpu_check.base import Row, Run
from bench.libraries.ours import Ours
from bench.options import Options

ROOT = Path(__file__).parents[2]
MARK = "cuda_device"  # what a test file imports that can use a real card
CHECKERS = ("memcheck", "racecheck", "initcheck", "synccheck")
ERROR_EXIT = 86
LIBRARIES = ("CUDA", "CuPy", "cuML")  # parts of the names of all that run on a GPU
OURS = Ours("gpusoftmax CUDA", "cuda")
TAIL_LINES = 15
LIMIT_SECONDS = 7000  # of one program: below that of a section, so that it is ended with it


def tests(run: Run) -> list[Row]:
    """Run the project's own tests with the real CuPy."""
    files = sorted(path for path in (ROOT / "tests").glob("test_*.py") if MARK in path.read_text(encoding="utf-8"))
    names = [str(path.relative_to(ROOT)) for path in files]
    if run.is_tiny:  # that they are found is enough
        return [{"files": name, "is_right": True} for name in names]
    done = _run("-m", "pytest", "-q", "-ra", "--device", "cuda", *names)
    return [{"files": " ".join(names), "is_right": done.returncode == 0, "output": _tail(done.stdout)}]


def checkers(run: Run) -> list[Row]:
    """Let compute-sanitizer, where it is installed, look for bad accesses, races, uninitialised reads and barriers."""
    found = _find("compute-sanitizer")
    if found is None:
        note = "compute-sanitizer is not installed: it comes with the CUDA toolkit"
        return [{"tool": tool, "note": note} for tool in CHECKERS]
    rows = []
    for tool in CHECKERS:
        command = (found, "--tool", tool, "--error-exitcode", str(ERROR_EXIT), sys.executable)
        done = _run("-m", "bench.gpu_check.tiny_run", program=command)
        rows.append({"tool": tool, "is_right": done.returncode == 0, "output": _tail(done.stdout)})
    return rows


def benchmarks(run: Run) -> list[Row]:
    """Time passes, fits and sweeps of gpusoftmax beside every library for CUDA that is installed."""
    if run.is_tiny:
        return _tiny_benchmark(run)
    rows = []
    for measure in ("pass", "fit", "sweep"):
        done = _run("-m", "bench", measure, "--out", str(run.folder), "--libraries", *LIBRARIES)
        note = {} if done.returncode == 0 else {"output": _tail(done.stdout + done.stderr)}
        rows.append({"measure": measure, "is_right": done.returncode == 0, **note})
        rows += [{"measure": measure} | row for row in _rows(run.folder / f"{measure}.csv")]
    return rows


def _tiny_benchmark(run: Run) -> list[Row]:
    """Return what the smallest passes answered, and times only where a card took them."""
    told = ("case", "library", "relative_error", "error") + (() if run.is_emulated else ("seconds_min",))
    rows = []
    for case in cases.SMOKE_PASS:
        answers = one_pass.compare(case, cases.make(case, Path()), [OURS], Options(is_smoke=True), lambda _: None)
        rows += [{key: row[key] for key in told if key in row} | _judged(row) for row in answers]
    return rows


def _rows(path: Path) -> list[Row]:
    """Return what a benchmark found, without what its case and settings were."""
    told = ("case", "library", "target", "seconds_min", "seconds", "n_passes", "gflops", "times_ours", "error")
    rows = results.read(path) if path.exists() else []
    return [{key: row[key] for key in told if key in row} | _judged(row) for row in rows]


def _judged(row: Row) -> Row:
    """Say whether ours did what it should; other libraries may be missing."""
    return {"is_right": "error" not in row} if row.get("library") == OURS.name else {}


def _find(tool: str) -> str | None:
    """Return a tool of the CUDA toolkit, on PATH or where the toolkit is."""
    places = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    return shutil.which(tool) or shutil.which(tool, path=os.pathsep.join(f"{place}/bin" for place in places if place))


def _run(*arguments: str, program: tuple[str, ...] = (sys.executable,)) -> subprocess.CompletedProcess:
    command = [*program, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-TAIL_LINES:])
