"""Backends: where arrays live and how a pass runs there. Chosen once, in `training`, and passed down.

`Backend` is deliberately small: move an array in, move it out, state the device's facts, run a pass. A backend owns
threads or streams; what happens to one block is a kernel's affair.
"""

import functools
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, Self

import numpy as np
from threadpoolctl import OpenBLASController, ThreadpoolController

from gpusoftmax.exceptions import NonFiniteError
from gpusoftmax.kernels import cpu
from gpusoftmax.plan import DeviceFacts, MetricPlan, Plan
from gpusoftmax.sources import ArraySource


class FusedPass(Protocol):
    """A plan bound to a source: every evaluation is one pass over the rows, in buffers allocated once."""

    n_rows: int
    dtype: np.dtype

    def loss_and_gradient(self, params, label_smoothing: float):
        """Return summed losses (n_problems,) in float64 and the gradient's sums, like `params`."""

    def curvature(self, params, scale, plan: MetricPlan, rows):
        """Return the metric's sums over `rows`; see `kernels.reference.curvature`."""

    def select(self, active: np.ndarray) -> Self:
        """Return the pass of the problems in `active`."""


class Backend(Protocol):
    """A device: its facts, the way in and out, and its fused pass."""

    name: str

    def facts(self) -> DeviceFacts:
        """Return what a plan needs to know."""

    def session(self, plan: Plan) -> AbstractContextManager:
        """Return what a fit holds of the device from its first pass to its last."""

    def to_device(self, array, dtype=None):
        """Return `array` on the device."""

    def to_host(self, array) -> np.ndarray:
        """Return `array` as a NumPy array."""

    def fused_pass(self, source: ArraySource, plan: Plan) -> FusedPass:
        """Bind a plan to a source."""

    def predict(self, source: ArraySource, plan: Plan, params, output: str, out) -> None:
        """Write the `output` of one problem into `out`, block by block; see `kernels.cpu.predict`."""


class NumpyBackend:
    """The CPU, through NumPy."""

    name = "cpu"

    def facts(self) -> DeviceFacts:
        """As many threads as the BLAS at hand would use, so that its environment variables and limits are ours."""
        return DeviceFacts(n_threads=_one_blas_thread.count())

    def session(self, plan: Plan) -> AbstractContextManager:
        """Hold BLAS to one thread, unless the plan leaves the threads to it.

        A BLAS thread that has just worked spins for milliseconds in wait of more, on a core that ours need.
        """
        return nullcontext() if plan.is_blas_threaded else _one_blas_thread

    def to_device(self, array, dtype=None) -> np.ndarray:
        return np.asarray(array, dtype)

    def to_host(self, array) -> np.ndarray:
        return np.asarray(array)

    def fused_pass(self, source: ArraySource, plan: Plan) -> "NumpyPass":
        return NumpyPass(source, plan)

    def predict(self, source: ArraySource, plan: Plan, params, output: str, out: np.ndarray) -> None:
        params = np.ascontiguousarray(params, plan.dtype)

        def run(rows: slice, work: cpu.Workspace, _: None) -> None:
            z = cpu.logits(source.block(rows, work.rows).X, params, work)
            if not np.isfinite(z).all():
                raise NonFiniteError(
                    f"Logits left the range of {plan.dtype.name}: rescale the features as they were in fit, or give "
                    "X as float64."
                )
            out[rows] = cpu.predict(z, output)

        _Lanes(plan).map(run, lambda: None)


class NumpyPass:
    """A plan bound to an `ArraySource`, run by threads over tasks.

    BLAS is held to one thread meanwhile: threads over tasks beat threads inside small products.
    """

    def __init__(self, source: ArraySource, plan: Plan):
        self.source = source
        self.plan = plan
        self.n_rows = plan.n_rows
        self.dtype = plan.dtype
        self._lanes = _Lanes(plan)

    def loss_and_gradient(self, params: np.ndarray, label_smoothing: float):
        """Return summed losses (n_problems,) in float64 and the gradient's sums, of the shape and dtype of `params`."""
        plan, source = self.plan, self.source
        compute = np.ascontiguousarray(params, plan.dtype)

        def run(rows: slice, work: cpu.Workspace, sums: cpu.Sums) -> None:
            cpu.loss_and_gradient(source.block(rows, work.rows), compute, work, sums, label_smoothing)

        total, *others = self._lanes.map(run, lambda: cpu.Sums(plan))
        for sums in others:
            total.add(sums)
        gradient = np.empty(params.shape, params.dtype)
        gradient[:-1] = total.gradient.T.reshape(gradient[:-1].shape)
        gradient[-1] = total.intercept.reshape(gradient[-1].shape)
        return total.loss, gradient

    def curvature(self, params: np.ndarray, scale: np.ndarray, plan: MetricPlan, rows: np.ndarray):
        """Return the metric's sums over `rows`, block by block, each thread with a share of the blocks."""
        compute = np.ascontiguousarray(params, self.plan.dtype)
        _, n_problems, n_classes = params.shape
        lanes = [cpu.CurvatureSums(len(scale), n_problems, n_classes, plan) for _ in range(plan.n_lanes)]
        starts = range(0, len(rows), plan.block_rows)

        def run(lane: int) -> None:
            with np.errstate(all="ignore"):
                for start in starts[lane :: plan.n_lanes]:
                    block = self.source.block(rows[start : start + plan.block_rows])
                    cpu.curvature(block, compute, scale, lanes[lane])

        if plan.n_lanes == 1:
            run(0)
        else:
            with _one_blas_thread, ThreadPoolExecutor(plan.n_lanes) as pool:
                list(pool.map(run, range(plan.n_lanes)))
        for other in lanes[1:]:
            lanes[0].add(other)
        return lanes[0]

    def select(self, active: np.ndarray) -> "NumpyPass":
        """Return the pass of the problems in `active`, planned anew."""
        return NumpyPass(self.source.select(active), self.plan.with_problems(len(active)))


class _Lanes:
    """Runs the lanes of a plan on its threads, each with a workspace of its own that is allocated once."""

    def __init__(self, plan: Plan):
        self._plan = plan
        self._workspaces = [cpu.Workspace(plan) for _ in range(plan.n_threads)]
        self._pool = ThreadPoolExecutor(plan.n_threads) if plan.n_threads > 1 else None

    def map(self, run: Callable[[slice, cpu.Workspace, Any], None], start: Callable[[], Any]) -> list:
        """Call ``run(rows, workspace, state)`` for every task and return the lanes' states, in the lanes' order.

        Overflow is no error here: it shows in the sums as Inf or NaN, for the caller to judge. An exception in any
        thread, Ctrl-C included, stops all of them after the task in hand.
        """
        stop = threading.Event()
        states = [start() for _ in range(self._plan.n_lanes)]
        waiting = deque(range(self._plan.n_lanes))

        def work_through(work: cpu.Workspace) -> None:
            with np.errstate(all="ignore"):
                while waiting:
                    try:
                        lane = waiting.popleft()
                    except IndexError:
                        return
                    for rows in self._plan.tasks(lane):
                        if stop.is_set():
                            return
                        run(rows, work, states[lane])

        if self._pool is None:
            work_through(self._workspaces[0])
            return states
        with _one_blas_thread:
            futures = {self._pool.submit(work_through, work) for work in self._workspaces}
            pending = futures
            try:
                while pending:  # a wait without end would not notice Ctrl-C where system calls are restarted
                    done, pending = wait(pending, timeout=0.1, return_when=FIRST_EXCEPTION)
                    for future in done:
                        future.result()
            finally:
                stop.set()
                wait(futures)
        return states


class _BlasThreads:
    """The threads of the process's BLAS, held to one within a `with` block.

    Several passes may be inside at once, from several Python threads: the last to leave gives the threads back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_users = 0
        self._n_threads = 0

    @functools.cached_property
    def _controller(self) -> ThreadpoolController:
        return ThreadpoolController()  # finding the libraries takes milliseconds

    def count(self) -> int:
        """Return how many threads BLAS uses when it is not held."""
        with self._lock:
            return self._n_threads if self._n_users > 0 else self._current()

    def _current(self) -> int:
        blas = self._controller.select(user_api="blas").lib_controllers
        return max((library.num_threads for library in blas), default=os.cpu_count() or 1)

    def __enter__(self) -> None:
        with self._lock:
            self._n_users += 1
            if self._n_users == 1:
                self._n_threads = self._current()
                _control_openblas()
                self._limit = self._controller.limit(limits=1, user_api="blas")

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._n_users -= 1
            if self._n_users == 0:
                _control_openblas()  # the last to leave need not be the first that came
                self._limit.restore_original_limits()
                _control_openblas()


def _control_openblas() -> None:
    """Let this thread set OpenBLAS's threads: threadpoolctl 3.8 heeds only the first that did."""
    if hasattr(OpenBLASController, "clear_controlling_thread"):
        OpenBLASController.clear_controlling_thread(force=True)


_one_blas_thread = _BlasThreads()


def get_backend(device: str) -> Backend:
    """Return the backend of a device.

    Parameters
    ----------
    device : {"auto", "cpu"}

    Raises
    ------
    ValueError
        The device is unknown.
    """
    if device in ("auto", "cpu"):
        return NumpyBackend()
    raise ValueError(f"device={device!r} is unknown: give 'auto' or 'cpu'.")
