"""pass: seconds of one loss and gradient, library beside library, each checked before it is timed."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from bench import cases, judge, libraries
from bench.cases import Case, Data
from bench.libraries.base import Answer, Pass, PassLibrary
from bench.options import Options
from bench.results import Results, Row, error_of

PAUSE_SECONDS = 0.25  # threads of OpenBLAS and OpenMP spin for up to 0.1 s after work, on cores the next one needs
CALLS = 3  # timed calls of a turn, after one that is not
LONG_SECONDS = 0.5  # a call as long as this is timed once a turn
TOLERANCE = {"float32": 2e-4, "float64": 1e-10}  # relative, of loss and gradient


class WrongAnswerError(Exception):
    """A library's loss or gradient is not that of the judge."""


@dataclass
class Turn:
    """One library on one case, and its timed calls."""

    library: PassLibrary
    prepared: Pass
    error: float
    seconds: list[float] = field(default_factory=list)

    def run(self, *, is_smoke: bool) -> None:
        """Pause, call once untimed, then time a few calls."""
        time.sleep(0 if is_smoke else PAUSE_SECONDS)
        with self.prepared.session():
            warm = _time(self.prepared)
            calls = 1 if is_smoke or warm > LONG_SECONDS else CALLS
            self.seconds += [_time(self.prepared) for _ in range(calls)]


def measure(options: Options, results: Results) -> None:
    """Add a row for every case and library to the table "pass"."""
    quick = [library for library in libraries.PASS if library is not libraries.COMPILED]  # it takes seconds to compile
    chosen = options.choose_libraries(quick if options.is_smoke else libraries.PASS)
    for case in options.choose_cases(cases.PASS, cases.SMOKE_PASS):
        results.say(f"making {case.name}")
        data = cases.make(case, options.data)
        for row in compare(case, data, chosen, options, results.say):
            results.add("pass", row)


def compare(
    case: Case, data: Data, candidates: Iterable[PassLibrary], options: Options, say: Callable[[str], None]
) -> list[Row]:
    """Return the case's rows: those that failed first, then those with times."""
    n_rows, n_features = data.X.shape
    shape = {"n_rows": n_rows, "n_features": n_features, "n_classes": data.n_classes}
    about = {"case": case.name, **shape, "dtype": case.dtype, "is_soft": case.is_soft}
    turns: list[Turn] = []
    failed: list[Row] = []
    W, b = params(data)
    truth = judge.loss_and_gradient(data.X, data.targets, W, b)

    def attempt(library: PassLibrary, act, *args, **kwargs):
        try:
            return act(*args, **kwargs)
        except Exception as error:  # whatever a library raises is its row
            failed.append(about | {"library": library.name, **error_of(error)})
            return None

    for library in candidates:
        say(f"{case.name}: checking {library.name}")
        if (turn := attempt(library, check, library, data, W, b, truth)) is not None:
            turns.append(turn)
    for i in range(1 if options.is_smoke else options.n_rounds):
        for turn in list(turns):
            say(f"{case.name}: round {i + 1} of {options.n_rounds}, {turn.library.name}")
            n_failed = len(failed)
            attempt(turn.library, turn.run, is_smoke=options.is_smoke)
            if len(failed) > n_failed:
                turns.remove(turn)
    least = {turn.library.name: min(turn.seconds) for turn in turns}
    flops = 4 * n_rows * n_features * data.n_classes
    return failed + [about | _figures(turn, least, flops) for turn in turns]


def params(data: Data, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return W and b in the dtype of X, with logits of unit variance for features of unit variance."""
    rng = np.random.default_rng(seed)
    shape = data.X.shape[1], data.n_classes
    W = rng.standard_normal(shape, data.X.dtype) / np.sqrt(data.X.shape[1]).astype(data.X.dtype)
    return W, rng.standard_normal(data.n_classes, data.X.dtype)


def check(library: PassLibrary, data: Data, W: np.ndarray, b: np.ndarray, truth: Answer) -> Turn:
    """Prepare a library's pass and compare its answer with the judge's; a floor has none."""
    prepared = library.prepare_pass(data, library.lay_out(W, b))
    with prepared.session():
        result = prepared.run()
    if prepared.answer is None:
        return Turn(library, prepared, math.nan)
    loss, *gradients = prepared.answer(result)
    scale = max(np.abs(gradient).max() for gradient in truth[1:])
    errors = [abs(loss - truth[0]) / truth[0]]
    errors += [np.abs(g - t).max() / scale for g, t in zip(gradients, truth[1:], strict=True)]
    error, tolerance = float(max(errors)), TOLERANCE[data.X.dtype.name]
    if not error <= tolerance:
        raise WrongAnswerError(f"loss or gradient is wrong by a relative {error:.1e}, more than {tolerance:.0e}")
    return Turn(library, prepared, error)


def _time(prepared: Pass) -> float:
    start = time.perf_counter()
    prepared.run()
    return time.perf_counter() - start


def _figures(turn: Turn, least: dict[str, float], flops: int) -> Row:
    """Return a row's figures; `times_` is this library's seconds over another's."""
    seconds = min(turn.seconds)
    others = {"times_gemms": libraries.GEMMS, "times_read": libraries.READ, "times_ours": libraries.OURS}
    return {
        "library": turn.library.name,
        "settings": turn.library.settings,
        "seconds_min": seconds,
        "seconds_median": median(turn.seconds),
        "n_calls": len(turn.seconds),
        "gflops": flops / seconds / 1e9,
        "relative_error": turn.error,
        **{key: seconds / least.get(other.name, math.nan) for key, other in others.items()},
    }
