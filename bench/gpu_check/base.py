"""What every section of the check is given, and what it answers with."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]  # "is_right" is False where something is wrong; names that end in "seconds" are times


@dataclass(frozen=True)
class Run:
    """What was asked for.

    folder : where results go
    is_tiny : smallest sizes, to see that everything runs
    is_emulated : CuPy is the stand-in of the tests: answers are checked, nothing is timed
    """

    folder: Path
    is_tiny: bool = False
    is_emulated: bool = False

    def seconds(self, act: Callable[[], Any], n_calls: int = 10) -> float | None:
        """Return the seconds of one call, device included, after one that is not timed; None where emulated."""
        import cupy

        wait = cupy.cuda.Device().synchronize
        act()
        if self.is_emulated:
            return None
        wait()
        start = time.perf_counter()
        for _ in range(n_calls):
            act()
        wait()
        return (time.perf_counter() - start) / n_calls


def ratio(amount: float, seconds: float | None) -> float | None:
    """Return an amount a second, where seconds were measured."""
    return None if seconds is None else amount / seconds


def compare(actual: Any, expected: np.ndarray, tolerance: float) -> Row:
    """Return the largest error relative to the largest number expected, and whether it is within the tolerance."""
    scale = max(float(np.abs(expected).max(initial=0)), np.finfo(float).tiny)
    error = float(np.abs(np.asarray(actual, np.float64) - expected).max(initial=0)) / scale
    return {"error": error, "tolerance": tolerance, "is_right": bool(error <= tolerance)}


def worst(rows: list[Row]) -> Row:
    """Return the row whose error comes nearest to its tolerance, or is beyond it the most."""
    return max(rows, key=lambda row: (not row["is_right"], row["error"] / row["tolerance"]))
