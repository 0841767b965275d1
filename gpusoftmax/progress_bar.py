"""The progress bar of `verbose`, one for fits, sweeps and many fits."""

import math
import sys
import time
from types import TracebackType
from typing import Any, Self

from gpusoftmax.solvers.base import Progress

FIRST_SECONDS = 1.0  # what ends sooner needs no bar, and would notice what one costs to set up
INTERVAL_SECONDS = 0.1
MAX_SHARE = 0.005  # of the time between two drawings that one may take


class ProgressBar:
    """A bar on standard error while problems are fitted, and one line when they have ended.

    Where standard error is no terminal there is the line only. A bar has no thread: it is drawn by who is heard, at
    intervals that keep its cost below a hundredth of the time.

    Parameters
    ----------
    n_problems : int
        Of one, the bar shows how far the logarithm of the gradient has come on its way to `tol`, since nobody knows
        how many passes there will be; of several, how many have ended.
    n_rows : int or None
        That a pass reads; None where problems share no passes.
    tol : float
    is_shown : bool
        If not, nothing is written.
    """

    def __init__(self, n_problems: int, *, n_rows: int | None = None, tol: float = 0.0, is_shown: bool):
        self._n_problems = n_problems
        self._n_rows = n_rows
        self._tol = tol
        self._is_shown = is_shown and sys.stderr is not None
        self._is_live = self._is_shown and sys.stderr.isatty()
        self._n_finished, self._n_passes = 0, 0.0
        self._running = (0, 0.0)  # of the problems that run now: finished, passes
        self._first_gradient = self._least_gradient = math.inf
        self._standing: tuple[float, float] | None = None  # objective of the first and largest gradient of all that run
        self._status = ""
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        self._draw_at = self._began + FIRST_SECONDS
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._is_shown and kind is None:
            sys.stderr.write(f"gpusoftmax: {self._status}{self._text()}\n")

    def hear(self, progress: Progress) -> None:
        """Show how far the problems are that run."""
        if not self._is_shown:
            return
        gradient = float(progress.gradient_norms.max())
        if self._least_gradient == math.inf:
            self._first_gradient = gradient
        self._least_gradient = min(self._least_gradient, gradient)
        self._running = progress.n_finished, progress.n_passes
        self._standing = float(progress.values[0]), gradient
        self._draw_if_due()

    def finish(self, n_problems: int, status: object = None) -> None:
        """Count problems that ran together and have ended; `status` is how the one of a fit did."""
        self._n_finished += n_problems
        self._n_passes += self._running[1]
        self._running = 0, 0.0
        if self._n_problems > 1:
            self._standing = None
        self._status = "" if status is None else f"{status}, "
        self._draw_if_due()

    def _draw_if_due(self) -> None:
        now = time.perf_counter()
        if not self._is_live or now < self._draw_at:
            return
        if self._bar is None:
            self._start()
        self._bar.update(self._task, completed=self._share(), description=self._text(), refresh=True)
        then = time.perf_counter()
        self._draw_at = then + max(INTERVAL_SECONDS, (then - now) / MAX_SHARE)

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = BarColumn(bar_width=12), TextColumn("{task.description}", markup=False)
        self._bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)
        self._task = self._bar.add_task(self._text(), total=1.0, completed=self._share())
        self._bar.start()

    def _share(self) -> float:
        if self._n_problems > 1:
            return (self._n_finished + self._running[0]) / self._n_problems
        if not 0 < self._tol < self._first_gradient < math.inf or self._least_gradient <= self._tol:
            return float(self._least_gradient <= self._tol)
        return math.log(self._least_gradient / self._first_gradient) / math.log(self._tol / self._first_gradient)

    def _text(self) -> str:
        n_finished, n_passes = self._running
        n_passes += self._n_passes
        seconds = time.perf_counter() - self._began
        text = f"{self._n_finished + n_finished} of {self._n_problems} problems, " if self._n_problems > 1 else ""
        if self._standing is not None:
            objective, gradient = self._standing
            text += f"objective {objective:.6g}, " if self._n_problems == 1 else ""
            text += f"gradient {gradient:.1e}, "
        if self._n_rows is not None:
            text += f"{n_passes:,.0f} passes, {_in_short(self._n_rows * n_passes / seconds)} rows/s, "
        return text + (f"{seconds:.2g} s" if seconds < 1 else f"{seconds:,.1f} s")


def _in_short(number: float) -> str:
    """Return a number with three digits and the letter of its size."""
    size = min(3, int(math.log10(max(number, 1.0)) / 3))
    return f"{number / 1000**size:.3g}{['', 'k', 'M', 'G'][size]}"
