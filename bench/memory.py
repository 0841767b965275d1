"""memory: extra peak of one pass and of one fit, each in a process of its own, cold and warm.

Extra is the peak of resident bytes beyond those held when it begins, data and params included: whatever else a
library prepares counts.
Cold: the first pass or fit of the process. Warm: the second, after the first one's memory was given back.
"""

import ctypes
import gc
import itertools
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from bench import cases, fresh, libraries
from bench.cases import Case
from bench.one_pass import params
from bench.options import Options
from bench.recording import Counter
from bench.results import Results


def measure(options: Options, results: Results) -> None:
    """Add a row for every case and library to the table "memory"."""
    passes = [case for case in cases.PASS if case.dtype == "float32" and not case.is_soft]
    no_floors = [library for library in libraries.PASS if library not in (libraries.GEMMS, libraries.READ)]
    for work, full, smoke, candidates in (
        (one_pass, passes, cases.SMOKE_PASS[:1], no_floors),
        (one_fit, cases.MEMORY_OF_FIT, cases.SMOKE_FIT, libraries.FIT),
    ):
        chosen = options.choose_libraries(candidates)[: 2 if options.is_smoke else None]
        for case, library in itertools.product(options.choose_cases(full, smoke), chosen):
            results.say(f"{work.__name__} of {case.name}: {library.name}")
            row = {"work": work.__name__, "case": case.name, "library": library.name}
            try:
                cold, warm = fresh.call(work, case, library, options, limit_seconds=options.limit_seconds)
                row |= {"cold_bytes": cold, "warm_bytes": warm}
            except RuntimeError as error:
                row |= {"error": str(error)}
            results.add("memory", row)


def one_pass(case: Case, library: libraries.PassLibrary, options: Options) -> tuple[int, int]:
    """Return the extra bytes of preparing and running the first and the second pass of this process."""
    data = cases.make(case, options.data, is_fetched=options.is_fetched)
    laid_out = library.lay_out(*params(data))

    def run():
        prepared = library.prepare_pass(data, laid_out)
        with prepared.session():
            return prepared.run()

    return _extra_bytes(run), _extra_bytes(run)


def one_fit(case: Case, library: libraries.FitLibrary, options: Options) -> tuple[int, int]:
    """Return the extra bytes of the first and the second fit of this process."""
    data = cases.make(case, options.data, is_fetched=options.is_fetched)
    return tuple(_extra_bytes(lambda: library.fit(data, Counter())) for _ in range(2))


def _extra_bytes(run: Callable) -> int:
    """Return the extra peak of a call, and give back what it left."""
    extra_bytes = watch()
    run()
    peak = extra_bytes()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return peak


def watch() -> Callable[[], int]:
    """Return what tells the peak of resident bytes since now, beyond those of now."""
    read_peak = _status_peak if can_reset_peak() else _usage_peak
    before = read_peak()
    return lambda: read_peak() - before


def can_reset_peak() -> bool:
    """Set the process's peak of resident memory back to what it holds now, where Linux lets us."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return _status_peak() > 0
    except (OSError, StopIteration):
        return False


def _status_peak() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))


def _usage_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
