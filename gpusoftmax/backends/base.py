"""What the rooms above ask of a device: `Backend`, and `FusedPass`, which is a plan bound to a source.

`Backend` is deliberately small: arrays in and out, the facts that plans are made from, and passes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, Self

import numpy as np

from gpusoftmax.arrays import Arrays
from gpusoftmax.kernels.scores import ScoreSums
from gpusoftmax.plan import Facts, MetricPlan
from gpusoftmax.sources import ArraySource


class FusedPass(Protocol):
    """A plan bound to a source: every evaluation is one pass over the rows, in buffers allocated once.

    `rounding` is the relative rounding error of its products.
    """

    n_rows: int
    dtype: np.dtype
    rounding: float

    def loss_and_gradient(self, params, label_smoothing: float):
        """Return summed losses (n_problems,) in float64 and the gradient's sums, like `params`."""

    def curvature(self, params, scale, plan: MetricPlan, rows):
        """Return the metric's sums over `rows`; see `kernels.reference.curvature`."""

    def scores(self, params, weights: Callable, n_sets: int) -> ScoreSums:
        """Return the scores of sets of rows, one forward pass.

        ``weights(rows)`` returns how the rows of a slice weigh, on the host, (rows, n_sets · n_problems) or (rows, 1).
        """

    def cheaper(self, precision: str) -> list[Self]:
        """Return the passes of coarser products, coarsest first, with which `precision` lets a fit begin."""

    def select(self, active: np.ndarray) -> Self:
        """Return the pass of the problems in `active`."""


class Backend(Arrays, Protocol):
    """A device: its facts, the way in and out, and its fused pass."""

    name: str

    def facts(self) -> Facts:
        """Return what a plan needs to know."""

    def active(self) -> AbstractContextManager:
        """Return a context in which new arrays are made on this device."""

    def session(self) -> AbstractContextManager:
        """Return what a fit holds of the device from its first pass to its last."""

    def place(self, source: ArraySource) -> ArraySource:
        """Return the source with its features on the device; its targets and weights stay where they are."""

    def fused_pass(self, source: ArraySource, plan: Any) -> FusedPass:
        """Bind one of its plans to a source."""

    def predict(self, source: ArraySource, plan: Any, params, output: str, out) -> None:
        """Write the `output` of one problem into `out`, block by block; see `kernels.cpu.predict`.

        `out` is on the host or on the device.
        """
