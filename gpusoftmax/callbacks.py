"""Consumers of `Progress` records. Solvers call them and know nothing of what they do."""

import sys
import time
from dataclasses import dataclass, field
from typing import Any, Self

from gpusoftmax.solvers.base import Progress


@dataclass
class PrintProgress:
    """Write a line to standard error after the first evaluation and then every `seconds`."""

    seconds: float = 1.0
    _last: float = field(default=float("-inf"), init=False)

    def __call__(self, progress: Progress) -> None:
        """Write the line if it is due."""
        now = time.monotonic()
        if now - self._last < self.seconds:
            return
        self._last = now
        sys.stderr.write(
            f"gpusoftmax: {progress.n_passes:.0f} passes, {progress.n_finished} of {len(progress.values)} problems "
            f"finished, objective {progress.values.max():.6g}, max |gradient| {progress.gradient_norms.max():.2e}\n"
        )


class SweepProgress:
    """A bar on standard error: finished of all problems, passes, and the hardest of those that run.

    Quiet where it is not shown; a line at the end where standard error is no terminal.
    """

    def __init__(self, n_problems: int, *, is_shown: bool):
        self.n_problems = n_problems
        self.n_finished = 0
        self.n_passes = 0.0
        self._is_shown = is_shown
        self._bar: Any = None
        self._task: Any = None
        self._running = (0, 0.0)  # of the problems that run now: finished, passes

    def __enter__(self) -> Self:
        if self._is_shown:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                TextColumn("gpusoftmax"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("problems, {task.fields[passes]:,.0f} passes, max |gradient| {task.fields[gradient]:.1e}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=self.n_problems, passes=0.0, gradient=float("nan"))
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def hear(self, progress: Progress) -> None:
        """Show how far the problems are that run."""
        self._running = progress.n_finished, progress.n_passes
        self._show(float(progress.gradient_norms.max()))

    def finish(self, n_problems: int) -> None:
        """Count problems that ran together and have ended."""
        self.n_finished += n_problems
        self.n_passes += self._running[1]
        self._running = 0, 0.0
        self._show(float("nan"))

    def _show(self, gradient: float) -> None:
        if self._bar is None:
            return
        n_finished, n_passes = self._running
        self._bar.update(
            self._task, completed=self.n_finished + n_finished, passes=self.n_passes + n_passes, gradient=gradient
        )
