"""How one pass over the rows is cut up: pure arithmetic from shapes, dtypes, device facts and a budget to a Plan.

Reads no data and touches no device, so every choice can be tested anywhere.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np

from gpusoftmax.exceptions import WorkspaceError

UNPACKED_ROWS = 64, 2048  # fewest and most rows of a product that BLAS need not pack
PACKED_ROWS = 1024  # of any other
STACK_BYTES = 5 << 20  # of X and logits in a stack: a shorter one is over before thirty ufuncs have been called
PRODUCT_STACK_BYTES = 5 << 19  # where most of the time goes to the two products, which want X from a cache
PRODUCT_FEATURES = 64  # from here on it does
ROW_MAJOR_CLASSES = 256  # from here on a softmax along rows costs no more than a transposition and one along classes
ROW_MAJOR_PRODUCTS = 100_000  # n_features · n_classes from which on that matters less than what products want
ROW_MAJOR_ROWS, ROW_MAJOR_BYTES = 1024, 4 << 20  # most rows of a task, and their logits
N_VECTORS = 5  # of a softmax: one number a row and problem
LANES_PER_THREAD = 4  # independent partial sums: enough to share work evenly, few enough to add up for nothing
SMALL_GRADIENT_BYTES = 1 << 18  # up to here a lane's gradient is nothing beside the caches
LANE_GRADIENT_BYTES = 64 << 20  # of all lanes and the products for them, beyond which threads share one gradient
SHARED_BLOCK_ROWS = 256
SHARED_TASK_BYTES = 64 << 20  # logits of one shared task
PRODUCT_BYTES = 8 << 20  # of XᵀG that one thread makes at once: products of fewer columns are slower
SMALL_PASS_FLOPS = 20_000_000  # a millisecond's work: handing it to a second thread costs as much as it saves
BUSY_FLOPS = 50_000_000  # of one thread in a millisecond or two; a step's calls besides take about one
METRIC_ROWS = 20_000  # fewer sampled rows made the metric much worse
METRIC_ROWS_PER_FEATURE = 12
METRIC_BLOCK_BYTES = 4 << 20  # of one lane: products of fewer rows are over before their sums are
MAX_METRIC_FEATURES = 2048  # a symmetric eigenproblem of this order takes seconds
MAX_METRIC_CLASSES = 640
SMALL_METRIC_FEATURES = 256  # an eigenproblem up to this order takes less than the passes that it saves
WIDE = 1.2  # features a row from which on the span of the rows is worth finding
SPAN_BLOCK_NUMBERS = 1 << 19  # of X in float64 that are read at once for it


class PassPlan(Protocol):
    """How a pass is cut up, on whatever device."""

    @property
    def gradient_dtype(self) -> np.dtype:
        """Dtype of params and gradient."""

    @property
    def workspace_bytes(self) -> int:
        """Bytes of all buffers of the pass."""


class Facts(Protocol):
    """What is known of a device; it plans passes there."""

    @property
    def n_threads(self) -> int:
        """Threads on the host that have work of their own."""

    def plan_pass(self, n_rows, n_features, n_problems, n_classes, dtype, **options) -> PassPlan:
        """Return a pass's plan; options and errors are those of `plan_pass`."""

    def least_bytes(self, n_rows, n_features, n_problems, n_classes, dtype, **options) -> int:
        """Return the smallest workspace that a pass can do with."""

    def busy_flops(self, dtype: np.dtype) -> float:
        """Return the flops of a pass beside which the calls of a step take little time."""


@dataclass(frozen=True)
class DeviceFacts:
    """What a plan needs to know of a CPU.

    n_threads : threads at hand
    cache_bytes : cache that one thread has for itself
    unpacked_size : largest M·N·K that its BLAS multiplies without packing, twice as fast where two of them are small;
        zero where it always packs
    """

    n_threads: int = 1
    cache_bytes: int = 1 << 20
    unpacked_size: int = 1_000_000

    def plan_pass(self, n_rows, n_features, n_problems, n_classes, dtype, **options) -> "Plan":
        """Return the plan of a pass on this CPU."""
        return plan_pass(n_rows, n_features, n_problems, n_classes, dtype, self, **options)

    def least_bytes(self, n_rows, n_features, n_problems, n_classes, dtype, **options) -> int:
        """Return the smallest workspace that a pass can do with: that of one row."""
        return plan_pass(1, n_features, n_problems, n_classes, dtype, self, **options).workspace_bytes

    def busy_flops(self, dtype: np.dtype) -> float:
        return BUSY_FLOPS * self.n_threads


@dataclass(frozen=True)
class Plan:
    """One pass over the rows.

    Rows are cut into tasks of `task_rows`, and those into blocks of `block_rows`, the rows of one product X_b W.

    * Usually a thread takes a task through all stages. Task t belongs to lane ``t % n_lanes``; a lane adds its tasks
      up in order and lanes are added in order.
    * Where lanes would hold too many copies of a huge gradient, all threads share one task and one gradient: they
      take its blocks through logits and residual, then columns of the gradient through XᵀG.

    Either way sums do not depend on which thread did what.
    """

    n_rows: int
    n_features: int
    n_problems: int
    n_classes: int
    dtype: np.dtype
    gradient_dtype: np.dtype
    block_rows: int
    task_rows: int
    n_lanes: int
    n_threads: int
    is_shared: bool
    is_class_major: bool
    is_soft: bool
    is_direct: bool
    facts: DeviceFacts
    budget_bytes: int | None
    reserved_bytes: int

    def with_problems(self, n_problems: int) -> "Plan":
        """Return the plan of the same pass for another number of problems."""
        make = partial(
            plan_pass,
            *(self.n_rows, self.n_features, n_problems, self.n_classes, self.dtype, self.facts),
            is_soft=self.is_soft,
            is_direct=self.is_direct,
            reserved_bytes=self.reserved_bytes,
        )
        if self.budget_bytes is None:
            return make()
        try:
            return make(budget_bytes=self.budget_bytes)
        except WorkspaceError:  # a gradient that has become small would be summed in float64
            plan = replace(make(), gradient_dtype=self.gradient_dtype, budget_bytes=self.budget_bytes)
            return _shrink(plan, self.budget_bytes)

    @property
    def n_columns(self) -> int:
        return self.n_problems * self.n_classes

    @property
    def n_tasks(self) -> int:
        return -(-self.n_rows // self.task_rows)

    @property
    def softmax_rows(self) -> int:
        """Rows whose softmax is taken at once: a task class-major, or as many row-major ones as stay in cache."""
        if self.is_class_major:
            return self.task_rows
        return min(self.block_rows, max(8, self.facts.cache_bytes // (self.n_columns * self.dtype.itemsize)))

    @property
    def product_columns(self) -> int:
        """Columns of XᵀG that one thread computes at once."""
        if self.is_class_major:
            return self.n_columns
        most = max(64, PRODUCT_BYTES // (self.n_features * self.dtype.itemsize))
        n_sharing = self.n_threads if self.is_shared else 1
        return -(-self.n_columns // (-(-self.n_columns // (most * n_sharing)) * n_sharing))

    @property
    def product_size(self) -> int:
        """Numbers in the largest product XᵀG, or stack of such, that one thread makes at once."""
        n_stacked = -(-self.task_rows // self.block_rows) if self.is_class_major else 1
        return n_stacked * self.product_columns * self.n_features

    @property
    def needs_scratch(self) -> bool:
        """Whether a second array of logits is needed: to transpose from, or to multiply soft targets into."""
        return self.is_class_major or self.is_soft

    @property
    def n_spare_vectors(self) -> int:
        """How many of the softmax's vectors, one number a row and problem, the second array has room for."""
        return min(N_VECTORS, self.n_classes) if self.is_class_major and not self.is_soft else 0

    @property
    def thread_bytes(self) -> int:
        """Bytes of the buffers that each thread has for itself."""
        size, rows = self.dtype.itemsize, self.softmax_rows
        scratch = self.needs_scratch * rows * self.n_columns * size
        n_vectors = 1 + N_VECTORS - self.n_spare_vectors
        row_vectors = rows * self.n_problems * (n_vectors * size + 24) + self.block_rows * size
        soft = 2 * rows * self.n_classes * size * self.is_soft  # cast, and times the class weights
        return scratch + soft + row_vectors + self.product_size * size

    @property
    def task_bytes(self) -> int:
        """Bytes of the logits of a task, and of its rows where they are no view."""
        return self.task_rows * (self.n_columns + self.n_features * (not self.is_direct)) * self.dtype.itemsize

    @property
    def lane_bytes(self) -> int:
        """Bytes of one lane's running sums."""
        return self.n_columns * ((self.n_features + 1) * self.gradient_dtype.itemsize + 8)

    @property
    def workspace_bytes(self) -> int:
        n_tasks_at_once = 1 if self.is_shared else self.n_threads
        return self.n_threads * self.thread_bytes + n_tasks_at_once * self.task_bytes + self.n_lanes * self.lane_bytes

    def tasks(self, lane: int) -> Iterator[slice]:
        """Yield the rows of each task of a lane; what fills no whole block at the end is a task of its own."""
        for start in range(lane * self.task_rows, self.n_rows, self.n_lanes * self.task_rows):
            stop = min(start + self.task_rows, self.n_rows)
            whole = stop - (stop - start) % self.block_rows
            if whole > start:
                yield slice(start, whole)
            if whole < stop:
                yield slice(whole, stop)

    @staticmethod
    def cut(size: int, at_once: int) -> list[slice]:
        """Return pieces of `at_once`, the last one perhaps shorter."""
        return [slice(start, min(start + at_once, size)) for start in range(0, size, at_once)]

    def columns(self) -> list[slice]:
        """Return the columns of each product XᵀG of row-major residuals."""
        return self.cut(self.n_columns, self.product_columns)

    def by_rows(self) -> "Plan":
        """Return the plan of a pass that only maps rows, as predictions do: each thread has tasks of its own."""
        if not self.is_shared:
            return self
        n_threads = min(self.n_threads, self.task_rows // self.block_rows)
        return replace(self, task_rows=self.block_rows, n_threads=n_threads, n_lanes=n_threads, is_shared=False)

    def explain(self) -> str:
        """Return the choices in words."""
        threads = f"{self.n_threads} thread{'s' * (self.n_threads > 1)}"
        who = f"shared by {threads}" if self.is_shared else f"in {self.n_lanes} lanes on {threads}"
        return (
            f"{self.n_rows:,} rows in {self.n_tasks:,} tasks of {self.task_rows:,} "
            f"({self.block_rows:,} rows a block), {who}; "
            f"logits {'class-major' if self.is_class_major else 'row-major'} in {self.dtype.name}, "
            f"gradient summed in {self.gradient_dtype.name}; workspace {self.workspace_bytes / 1e6:.1f} MB"
        )


def plan_pass(
    n_rows: int,
    n_features: int,
    n_problems: int,
    n_classes: int,
    dtype: np.dtype,
    facts: DeviceFacts,
    *,
    is_soft: bool = False,
    is_direct: bool = True,
    budget_bytes: int | None = None,
    reserved_bytes: int = 0,
) -> Plan:
    """Choose blocks, lanes and threads for one pass.

    Parameters
    ----------
    n_rows, n_features, n_problems, n_classes : int
    dtype : compute dtype, float32 or float64
    facts : DeviceFacts
    is_soft : whether targets are (rows, n_classes)
    is_direct : whether blocks of X can be views
    budget_bytes : most bytes that `Plan.workspace_bytes` may be; None for no bound
    reserved_bytes : part of the budget that is spent elsewhere

    Raises
    ------
    WorkspaceError
        A block of one row does not fit; the message names a budget that does.
    """
    columns, size = n_problems * n_classes, dtype.itemsize
    n_threads = 1 if 4 * n_rows * n_features * columns <= SMALL_PASS_FLOPS else facts.n_threads
    is_gradient_small = n_features * columns * 8 <= SMALL_GRADIENT_BYTES
    is_shared = 2 * n_threads * n_features * columns * size > LANE_GRADIENT_BYTES
    is_wide = n_classes >= ROW_MAJOR_CLASSES or n_features * n_classes >= ROW_MAJOR_PRODUCTS
    is_class_major = not (is_wide or is_shared)
    if is_shared:
        block, task, n_lanes = _cut_shared(n_rows, columns * size, n_threads)
    else:
        per_thread = LANES_PER_THREAD if is_gradient_small and n_threads > 1 else 1
        lanes = range(n_threads, 1 + n_threads * per_thread, n_threads)
        cut = _cut_stacks if is_class_major else _cut_blocks
        block, task, n_lanes = cut(n_rows, n_features, columns, size, lanes, facts.unpacked_size)
    plan = Plan(
        n_rows=n_rows,
        n_features=n_features,
        n_problems=n_problems,
        n_classes=n_classes,
        dtype=dtype,
        gradient_dtype=np.dtype(np.float64) if is_gradient_small else dtype,
        block_rows=block,
        task_rows=task,
        n_lanes=n_lanes,
        n_threads=n_threads if is_shared else min(n_threads, n_lanes),
        is_shared=is_shared,
        is_class_major=is_class_major,
        is_soft=is_soft,
        is_direct=is_direct,
        facts=facts,
        budget_bytes=budget_bytes,
        reserved_bytes=reserved_bytes,
    )
    return plan if budget_bytes is None else _shrink(plan, budget_bytes)


def _cut_stacks(n_rows, n_features, columns, size, lanes, unpacked_size) -> tuple[int, int, int]:
    """Return the rows of a block and of a task, and the lanes: small products in stacks that outlast their overhead."""
    fewest, most = UNPACKED_ROWS
    unpacked = unpacked_size // (n_features * columns)
    most = min(unpacked, most) if unpacked >= fewest else PACKED_ROWS
    stack_bytes = STACK_BYTES if n_features < PRODUCT_FEATURES else PRODUCT_STACK_BYTES
    task, n_lanes = _even(n_rows, max(most, stack_bytes // ((n_features + columns) * size)), lanes)
    n_stacked = -(-task // most)
    block = -(-task // n_stacked)
    task = min(n_stacked * block, n_rows)
    return block, task, min(n_lanes, -(-n_rows // task))  # whole blocks may leave fewer tasks than there were lanes


def _cut_blocks(n_rows, n_features, columns, size, lanes, unpacked_size) -> tuple[int, int, int]:
    """Return the rows of a block and of a task, which are one, and the lanes: rows for both products at full speed."""
    task, n_lanes = _even(n_rows, min(ROW_MAJOR_ROWS, max(128, ROW_MAJOR_BYTES // (columns * size))), lanes)
    return task, task, n_lanes


def _even(n_rows: int, task: int, lanes: range) -> tuple[int, int]:
    """Return the rows of a task, at most `task`, and a number of lanes, so that every lane has as many tasks."""
    n_tasks = -(-n_rows // task)
    n_lanes = next((n for n in lanes if n >= n_tasks), lanes[-1])
    task = -(-n_rows // (n_lanes * -(-n_tasks // n_lanes)))
    return task, min(n_lanes, -(-n_rows // task))


def _cut_shared(n_rows, row_bytes, n_threads) -> tuple[int, int, int]:
    """Return the rows of a block, one thread's work, and of a task, which all threads share in one lane."""
    task = min(ROW_MAJOR_ROWS, max(1, SHARED_TASK_BYTES // row_bytes), n_rows)
    block = min(SHARED_BLOCK_ROWS, max(1, task // n_threads))
    return block, task - task % block, 1


def _shrink(plan: Plan, budget_bytes: int) -> Plan:
    """Give up stacked blocks, then rows of a block, threads and class-major logits, until the workspace fits."""
    while plan.workspace_bytes + plan.reserved_bytes > budget_bytes:
        if plan.task_rows > plan.block_rows:
            half = plan.task_rows // 2
            plan = replace(plan, task_rows=max(half - half % plan.block_rows, plan.block_rows))
        elif plan.block_rows > (32 if plan.n_threads > 1 else 1):
            plan = replace(plan, block_rows=plan.block_rows // 2, task_rows=plan.block_rows // 2)
        elif plan.n_threads > 1:
            half = plan.n_threads // 2
            plan = replace(plan, n_threads=half, n_lanes=min(half, plan.n_lanes))
        elif plan.is_class_major:
            plan = replace(plan, is_class_major=False)
        else:
            raise WorkspaceError(
                f"memory_budget={budget_bytes} bytes is too small for one row of {plan.n_features} features, "
                f"{plan.n_problems} problems and {plan.n_classes} classes: "
                f"give at least memory_budget={plan.workspace_bytes + plan.reserved_bytes}."
            )
    return plan


@dataclass(frozen=True)
class MetricPlan:
    """How the metric is estimated: rows of a block, lanes of sums, and which of its two factors are full matrices."""

    dtype: np.dtype
    block_rows: int
    n_lanes: int
    is_feature_full: bool
    is_class_full: bool
    workspace_bytes: int


def plan_fit(
    n_rows: int,
    n_features: int,
    n_problems: int,
    n_classes: int,
    dtype: np.dtype,
    facts: Facts,
    *,
    is_soft: bool = False,
    is_direct: bool = True,
    is_orthogonal: bool = False,
    budget_bytes: int | None = None,
) -> tuple[PassPlan, MetricPlan]:
    """Share a budget between the pass and the metric: the metric gets half at most, and what the least pass leaves.

    Features that are orthogonal want a diagonal metric. Other parameters and errors are those of `plan_pass`.
    """
    sizes = (n_rows, n_features, n_problems, n_classes, dtype)
    if budget_bytes is None:
        return facts.plan_pass(*sizes, is_soft=is_soft, is_direct=is_direct), _plan_metric(
            *sizes, facts, math.inf, is_orthogonal
        )
    least = facts.least_bytes(*sizes, is_soft=is_soft, is_direct=is_direct)
    metric = _plan_metric(*sizes, facts, min(budget_bytes / 2, budget_bytes - least), is_orthogonal)
    plan = facts.plan_pass(
        *sizes,
        is_soft=is_soft,
        is_direct=is_direct,
        budget_bytes=budget_bytes,
        reserved_bytes=metric.workspace_bytes,
    )
    return plan, metric


def least_fit_bytes(n_rows, n_features, n_problems, n_classes, dtype, facts: Facts, **options) -> int:
    """Return the smallest budget that `plan_fit` can do with."""
    sizes = (n_rows, n_features, n_problems, n_classes, dtype)
    return facts.least_bytes(*sizes, **options) + _plan_metric(*sizes, facts, 0).workspace_bytes


def plan_row_space(n_rows: int, n_features: int, room: float) -> tuple[int, int] | None:
    """Return how many columns of X to read at once for the span of its rows, and the bytes that finding it takes.

    Those are four matrices of order n_rows and a block. None where that does not pay or takes more than half the room.
    """
    block_features = min(n_features, -(-SPAN_BLOCK_NUMBERS // n_rows))
    workspace_bytes = 8 * n_rows * (4 * n_rows + block_features)
    pays = n_features > SMALL_METRIC_FEATURES and WIDE * n_rows <= n_features and n_rows < MAX_METRIC_FEATURES
    return (block_features, workspace_bytes) if pays and workspace_bytes <= room / 2 else None


def metric_sample(n_rows: int, n_features: int) -> int:
    """Return from how many rows the metric is estimated."""
    return min(n_rows, max(METRIC_ROWS, METRIC_ROWS_PER_FEATURE * n_features))


def _plan_metric(
    n_rows: int,
    n_features: int,
    n_problems: int,
    n_classes: int,
    dtype: np.dtype,
    facts: Facts,
    budget: float,
    is_orthogonal: bool = False,
) -> MetricPlan:
    """Choose the metric's sample and factors: one too large for the budget, or not worth its eigenproblem, is diagonal.

    While they are made, full factors cost five matrices of order n_features + 1, enough for two lanes' sums and
    products, and a lane two plus n_problems of order n_classes in float64.
    """
    sample = metric_sample(n_rows, n_features)
    row_bytes = dtype.itemsize * (2 * n_features + 3 * n_problems * n_classes + 8)
    feature_bytes = 5 * dtype.itemsize * (n_features + 1) ** 2
    class_bytes = 8 * (n_problems + 2) * n_classes**2
    is_small = 2 * sample * n_features * (n_features + n_problems * n_classes) <= SMALL_PASS_FLOPS
    n_lanes = 1 if is_small else min(2, facts.n_threads)
    spent = n_lanes * (8 * (2 * n_features + 1 + n_problems * n_classes) + row_bytes)
    pays = n_features < (SMALL_METRIC_FEATURES if is_orthogonal else MAX_METRIC_FEATURES)
    is_feature_full = pays and spent + feature_bytes <= budget
    spent += feature_bytes * is_feature_full
    is_class_full = n_classes <= MAX_METRIC_CLASSES and spent + n_lanes * class_bytes <= budget
    spent += n_lanes * class_bytes * is_class_full
    allowance = min(METRIC_BLOCK_BYTES, max(budget - spent, 0) / n_lanes)
    more_rows = int(min(1023, sample - 1, allowance // row_bytes))
    n_lanes = min(n_lanes, -(-sample // (1 + more_rows)))
    spent += n_lanes * more_rows * row_bytes
    return MetricPlan(dtype, 1 + more_rows, n_lanes, is_feature_full, is_class_full, spent)
