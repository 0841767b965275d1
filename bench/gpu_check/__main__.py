"""Check on a CUDA GPU what no other machine can show, and write gpu-check.json and gpu-check.md.

Every section runs in a process of its own, since an illegal access ends all CUDA work of the process it happens in; a
section that fails is recorded with its error, and the others run. The exit status is 1 if something failed, and 2 if
there is no GPU.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import fresh, results
from bench.gpu_check import answers, speed, tools
from bench.gpu_check.base import Row, Run
from bench.gpu_check.page import page
from gpusoftmax.backends.cuda import load_cupy
from gpusoftmax.exceptions import DeviceError

SECTIONS: tuple[Callable[[Run], list[Row]], ...] = (
    speed.machine,
    speed.compilation,
    answers.kernels,
    answers.products,
    answers.passes,
    answers.determinism,
    answers.fits,
    tools.tests,
    tools.checkers,
    speed.hardware,
    speed.plans,
    tools.benchmarks,
)
LIMIT_SECONDS = 7200  # of one section
NO_GPU = 2


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, run the sections, write the files, and return the exit status."""
    arguments = parser().parse_args(argv)
    log = Console(stderr=True, highlight=False)
    try:
        with device(is_emulated=arguments.emulated):
            card = load_cupy().cuda.runtime.getDeviceProperties(0)["name"].decode()
            folder = arguments.out or results.ROOT / f"{time.strftime('%Y-%m-%d')}-{slug(card)}"
            run = Run(folder, is_tiny=arguments.tiny, is_emulated=arguments.emulated)
            report = check(run, arguments.sections, log)
    except DeviceError as error:
        log.print(f"scripts/gpu-check needs a CUDA GPU: {error}", soft_wrap=True, markup=False)
        return NO_GPU
    write(report, folder)
    log.print(f"written: {folder / 'gpu-check.json'} and gpu-check.md", soft_wrap=True, markup=False)
    return int(any(section["status"] == "failed" for section in report["sections"].values()))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(prog="scripts/gpu-check", description=(__doc__ or "").partition("\n")[0])
    names = [section.__name__ for section in SECTIONS]
    result.add_argument("--out", type=Path, metavar="DIR", help="default: bench/results/DATE-CARD")
    result.add_argument("--sections", nargs="+", choices=names, default=names, help="default: all")
    result.add_argument("--tiny", action="store_true", help="smallest sizes, to see that everything runs")
    result.add_argument("--emulated", action="store_true", help="on the tests' stand-in for CuPy; times nothing")
    return result


def device(*, is_emulated: bool) -> AbstractContextManager:
    """Return what lets `import cupy` find a device: nothing for a real one."""
    if not is_emulated:
        return nullcontext()
    sys.path.append(str(tools.ROOT / "tests"))
    from emulator import toolchain
    from emulator.cupy_standin import installed

    if reason := toolchain.why_missing():
        raise DeviceError(f"--emulated needs CuPy with NVRTC, though no GPU: {reason}")
    return installed()


def check(run: Run, names: list[str], log: Console) -> dict[str, Any]:
    """Run sections one after the other and return the report."""
    machine = results.machine()
    about = {"emulated": run.is_emulated, "tiny": run.is_tiny, "started": machine["started"]}
    report = about | {"commit": machine["commit"], "machine": machine, "sections": {}}
    chosen = [section for section in SECTIONS if section.__name__ in names]
    for i, section in enumerate(chosen):
        name = section.__name__
        log.print(f"[{i + 1}/{len(chosen)}] {name} ...", markup=False)
        outcome = attempt(section, run)
        log.print(f"    {outcome['status']} {outcome['error']}".rstrip(), markup=False, soft_wrap=True)
        report["sections"][name] = outcome
        if not run.is_emulated:
            write(report, run.folder)  # what is known, should the machine stop
    return report


def attempt(section: Callable[[Run], list[Row]], run: Run) -> Row:
    """Return a section's rows, status and error; an emulated one shares this process, where nothing can break."""
    start = time.perf_counter()
    rows, error = [], ""
    try:
        rows = section(run) if run.is_emulated else fresh.call(section, run, limit_seconds=LIMIT_SECONDS)
    except Exception as raised:  # whatever it is, it is what the report is for
        error = results.error_of(raised)["error"]
    wrong = [row for row in rows if row.get("is_right") is False]
    if wrong and not error:
        error = f"{len(wrong)} of {len(rows)} rows are wrong"
    seconds = None if run.is_emulated else time.perf_counter() - start
    settles = (section.__doc__ or "").partition("\n")[0]
    is_skipped = bool(rows) and all("note" in row for row in rows)
    status = "failed" if error else "skipped" if is_skipped else "passed"
    return {"status": status, "error": error, "settles": settles, "seconds": seconds, "rows": rows}


def write(report: dict[str, Any], folder: Path) -> None:
    """Write the JSON and the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu-check.json").write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
    (folder / "gpu-check.md").write_text(page(report), encoding="utf-8")


def slug(text: str) -> str:
    """Return a name as part of a folder's.

    >>> slug("NVIDIA H100 80GB HBM3")
    'nvidia-h100-80gb-hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
