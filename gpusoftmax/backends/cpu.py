"""The CPU, through NumPy: threads over rows, each with BLAS on that thread alone."""

import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.linalg
from threadpoolctl import OpenBLASController, ThreadpoolController

from gpusoftmax.exceptions import LOGITS_LEFT, NonFiniteError
from gpusoftmax.kernels import cpu
from gpusoftmax.kernels.curvature import CurvatureSums, curvature
from gpusoftmax.kernels.scores import ScoreSums, add_scores
from gpusoftmax.kernels.workspace import Sums, Workspace
from gpusoftmax.plan import DeviceFacts, MetricPlan, Plan
from gpusoftmax.sources import ArraySource, Block


class NumpyBackend:
    """The CPU, through NumPy."""

    name = "cpu"
    xp = np

    def facts(self) -> DeviceFacts:
        """As many threads as the BLAS at hand would use, so that its environment variables and limits are ours."""
        return DeviceFacts(n_threads=_blas_threads.count(), unpacked_size=_blas_threads.unpacked_size)

    def active(self) -> AbstractContextManager:
        return nullcontext()

    @contextmanager
    def session(self) -> Iterator[None]:
        """Hold BLAS to one thread, and let what is too small for a float be zero, whatever the caller has set.

        A BLAS thread that has just worked spins for milliseconds in wait of more, on a core that ours need.
        """
        with np.errstate(under="ignore"), _OneBlasThread():
            yield

    def to_device(self, array, dtype=None) -> np.ndarray:
        return np.asarray(array, dtype)

    def to_host(self, array) -> np.ndarray:
        return np.asarray(array)

    # A and B are symmetric: their transposes are in LAPACK's order.

    def inverse_cholesky(self, A: np.ndarray) -> np.ndarray:
        L = scipy.linalg.cholesky(A.T, lower=True, overwrite_a=True, check_finite=False)
        (invert,) = scipy.linalg.get_lapack_funcs(("trtri",), (L,))
        return invert(L, lower=1, overwrite_c=1)[0].T

    def eigenvectors(self, A: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return scipy.linalg.eigh(A.T, B.T, driver="gvd", overwrite_b=True, check_finite=False)

    def place(self, source: ArraySource) -> ArraySource:
        return source

    def fused_pass(self, source: ArraySource, plan: Plan) -> "NumpyPass":
        return NumpyPass(source, plan)

    def predict(self, source: ArraySource, plan: Plan, params, output: str, out: np.ndarray) -> None:
        plan = plan.by_rows()
        affine = cpu.Affine.of(params, plan.dtype)

        def run(lane: int, work: Workspace) -> Iterator[None]:
            for rows in plan.tasks(lane):
                for part, chunk in cpu.logits(source.block(rows, work.rows).X, affine, work):
                    if not np.isfinite(chunk.flat).all():
                        raise NonFiniteError(LOGITS_LEFT.format(plan.dtype.name))
                    out[rows][part] = cpu.predict(chunk.z, output)
                yield

        _Crew(plan, shares_tasks=False).map(run, range(plan.n_lanes))


class NumpyPass:
    """A plan bound to an `ArraySource`, run by threads, each with BLAS on that thread alone.

    Threads over tasks beat threads inside small products.
    """

    def __init__(self, source: ArraySource, plan: Plan):
        self.source = source
        self.plan = plan
        self.n_rows = plan.n_rows
        self.dtype = plan.dtype
        self.rounding = float(np.finfo(plan.dtype).eps)
        self._crew = _Crew(plan, shares_tasks=plan.is_shared)

    def loss_and_gradient(self, params: np.ndarray, label_smoothing: float):
        """Return summed losses (n_problems,) in float64 and the gradient's sums, of the shape and dtype of `params`."""
        affine = cpu.Affine.of(params, self.plan.dtype)
        sums = (self._share if self.plan.is_shared else self._by_lanes)(affine, label_smoothing)
        return sums.loss, sums.as_params(params)

    def _by_lanes(self, affine: cpu.Affine, label_smoothing: float) -> Sums:
        """Let each thread take tasks through all stages, and add up the lanes."""
        plan, source = self.plan, self.source
        lanes = [Sums(plan) for _ in range(plan.n_lanes)]

        def run(lane: int, work: Workspace) -> Iterator[None]:
            for rows in plan.tasks(lane):
                cpu.loss_and_gradient(source.block(rows, work.rows), affine, work, lanes[lane], label_smoothing)
                yield

        self._crew.map(run, range(plan.n_lanes))
        for other in lanes[1:]:
            lanes[0].add(other)
        return lanes[0]

    def _share(self, affine: cpu.Affine, label_smoothing: float) -> Sums:
        """Let all threads share each task and one gradient."""
        sums = Sums(self.plan)
        for rows in self.plan.tasks(0):
            task = self.source.block(rows, self._crew.workspaces[0].rows)
            self._share_task(task, affine, sums, label_smoothing)
        return sums

    def _share_task(self, task: Block, affine: cpu.Affine, sums: Sums, label_smoothing: float) -> None:
        """Let threads take blocks of the task's rows first, then columns of the gradient."""
        blocks = self.plan.cut(len(task.X), self.plan.block_rows)
        losses = np.empty((len(blocks), self.plan.n_problems))

        def residual(i: int, work: Workspace) -> Iterator[None]:
            block = task.select(blocks[i])
            losses[i] = cpu.loss_and_residual(block, affine, work, blocks[i].start, label_smoothing)
            yield

        def accumulate(columns: slice, work: Workspace) -> Iterator[None]:
            cpu.accumulate_columns(task.X, columns, work, sums)
            yield

        self._crew.map(residual, range(len(blocks)))
        self._crew.map(accumulate, self.plan.columns())
        sums.loss += losses.sum(axis=0)

    def curvature(self, params: np.ndarray, scale: np.ndarray, plan: MetricPlan, rows: np.ndarray):
        """Return the metric's sums over `rows`, block by block, each thread with a share of the blocks."""
        compute = np.ascontiguousarray(params, self.plan.dtype)
        _, n_problems, n_classes = params.shape
        lanes = [CurvatureSums(np, len(scale), n_problems, n_classes, plan) for _ in range(plan.n_lanes)]
        starts = range(0, len(rows), plan.block_rows)

        def run(lane: int, _: Workspace) -> Iterator[None]:
            for start in starts[lane :: plan.n_lanes]:
                block = self.source.block(rows[start : start + plan.block_rows])
                curvature(block.X, block.weights, compute, scale, lanes[lane])
                yield

        self._crew.map(run, range(plan.n_lanes))
        for other in lanes[1:]:
            lanes[0].add(other)
        return lanes[0]

    def scores(self, params: np.ndarray, weights: Callable, n_sets: int) -> ScoreSums:
        """Return the sums of the scores of each set of rows; `weights` say how those of some rows weigh."""
        plan = self.plan.by_rows()
        source = replace(self.source, weights=None, class_weight=None)
        affine = cpu.Affine.of(params, plan.dtype)
        lanes = [ScoreSums(np, n_sets, plan.n_problems) for _ in range(plan.n_lanes)]

        def run(lane: int, work: Workspace) -> Iterator[None]:
            for rows in plan.tasks(lane):
                block, given = source.block(rows, work.rows), weights(rows)
                for part, chunk in cpu.logits(block.X, affine, work):
                    add_scores(chunk.z, block.targets[part], given[part], lanes[lane])
                yield

        crew = _Crew(plan, shares_tasks=False) if self.plan.is_shared else self._crew
        crew.map(run, range(plan.n_lanes))
        for other in lanes[1:]:
            lanes[0].add(other)
        return lanes[0]

    def cheaper(self, precision: str) -> list["NumpyPass"]:
        return []

    def select(self, active: np.ndarray) -> "NumpyPass":
        """Return the pass of the problems in `active`, planned anew."""
        return NumpyPass(self.source.select(active), self.plan.with_problems(len(active)))


class _Crew:
    """The threads of a plan, the caller's among them, each with a workspace of its own that is allocated once."""

    def __init__(self, plan: Plan, *, shares_tasks: bool):
        first = Workspace(plan)
        shared = first if shares_tasks else None
        self.workspaces = [first, *(Workspace(plan, shared) for _ in range(plan.n_threads - 1))]
        self._pool = ThreadPoolExecutor(plan.n_threads - 1) if plan.n_threads > 1 else None

    def map(self, run: Callable[[Any, Workspace], Iterator[None]], items: Iterable) -> None:
        """Work through ``run(item, workspace)`` for every item, on any thread.

        Overflow is no error here: it shows in the sums as Inf or NaN, for the caller to judge. An exception in any
        thread, Ctrl-C included, stops all of them where `run` next yields.
        """
        stop, waiting = threading.Event(), iter(items)  # each item goes to the thread that asks next

        def work_through(work: Workspace) -> None:
            try:
                with np.errstate(all="ignore"):
                    for item in waiting:
                        for _ in run(item, work):
                            if stop.is_set():
                                return
            except BaseException:
                stop.set()
                raise

        if self._pool is None:
            work_through(self.workspaces[0])
            return
        with _OneBlasThread():
            futures = [self._pool.submit(work_through, work) for work in self.workspaces[1:]]
            try:
                work_through(self.workspaces[0])
                while wait(futures, timeout=0.1).not_done:  # a wait without end might not notice Ctrl-C
                    pass
            finally:
                stop.set()
                wait(futures)
        for future in futures:
            future.result()


class _BlasThreads:
    """The threads of the process's BLAS, held to one for as long as there are users.

    Ctrl-C may come between any two lines. Hence users are known by weak references, which end with the frame that used
    them, and `_settle` may be broken off and called again.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._users: weakref.WeakSet[_OneBlasThread] = weakref.WeakSet()
        self._held: list[tuple[Any, int]] = []  # each library, and how many threads it had
        # No fork finds a change half made, and of the users only the thread that forked lives on, in the parent.
        os.register_at_fork(
            before=self._lock.acquire, after_in_parent=self._lock.release, after_in_child=self._begin_child
        )

    @functools.cached_property
    def _controller(self) -> ThreadpoolController:
        return ThreadpoolController()  # finding the libraries takes milliseconds

    @functools.cached_property
    def unpacked_size(self) -> int:
        """Largest M·N·K that BLAS multiplies without packing, known of its kernels and not timed: plans must repeat.

        OpenBLAS has such kernels for AVX-512 only. With them a pass over 200,000 x 784 x 10 took 67 ms in blocks of 127
        rows and 102 ms in blocks of 256; with its AVX2 kernels 94 to 99 ms in blocks of any size from 64 to 2048 rows.
        """
        kernels = {getattr(library, "architecture", None) for library in self._controller.lib_controllers}
        return 1_000_000 if kernels & {"SkylakeX", "Cooperlake", "SapphireRapids"} else 0

    def count(self) -> int:
        """Return how many threads BLAS uses when it is not held."""
        with self._lock:
            self._settle()
            return max((n_threads for _, n_threads in self._held or self._found()), default=os.cpu_count() or 1)

    def add(self, user: "_OneBlasThread") -> None:
        with self._lock:
            self._settle()
            self._users.add(user)
            self._settle()

    def discard(self, user: "_OneBlasThread") -> None:
        with self._lock:
            self._users.discard(user)
            self._settle()

    def _found(self) -> list[tuple[Any, int]]:
        libraries = self._controller.select(user_api="blas").lib_controllers
        return [(library, library.num_threads) for library in libraries]

    def _settle(self) -> None:
        """Hold BLAS if there are users, and give its threads back if there are none."""
        if self._users and not self._held:
            self._held = self._found()
            _control_openblas()
            for library, _ in self._held:
                library.set_num_threads(1)
        elif self._held and not self._users:
            _control_openblas()  # the last to leave need not be the first that came
            for library, n_threads in self._held:
                library.set_num_threads(n_threads)
            _control_openblas()
            self._held = []

    def _begin_child(self) -> None:
        self._users.clear()
        self._settle()
        self._lock.release()


class _OneBlasThread:
    """BLAS held to one thread within a `with` block.

    Several may be inside at once, from several Python threads: the last to leave gives the threads back.
    """

    def __enter__(self) -> None:
        try:
            _blas_threads.add(self)
        except BaseException:  # whose traceback may be kept, and this user with it
            _blas_threads.discard(self)
            raise

    def __exit__(self, *exception: object) -> None:
        try:
            _blas_threads.discard(self)
        except BaseException:
            _blas_threads.discard(self)
            raise


def _control_openblas() -> None:
    """Let this thread set OpenBLAS's threads: threadpoolctl 3.8 heeds only the first that did."""
    if hasattr(OpenBLASController, "clear_controlling_thread"):
        OpenBLASController.clear_controlling_thread(force=True)


_blas_threads = _BlasThreads()
