"""Consumers of `Progress` records. Solvers call them and know nothing of what they do."""

import sys
import time
from dataclasses import dataclass, field

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
