"""How one pass over the rows is cut up: pure arithmetic from shapes, dtypes, device facts and a budget to a Plan.

Reads no data and touches no device, so every choice can be tested anywhere.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from gpusoftmax.exceptions import WorkspaceError

SMALL_GEMM_FLOPS = 1_000_000  # below this M·N·K OpenBLAS skips packing: twice the speed for narrow products
ROWS_FIRST_COLUMNS = 64  # narrower logits are computed row-major and transposed; wider ones straight class-major
LANES_PER_THREAD = 4  # independent partial sums: enough to share work evenly, few enough to add up for nothing
SMALL_GRADIENT_BYTES = 1 << 18  # up to here a lane's gradient is nothing beside the caches
WIDE_BLOCK_BYTES = 2 << 20  # logits of one block of a wide problem
SMALL_PASS_FLOPS = 20_000_000  # a millisecond's work: handing it to a second thread costs as much as it saves
SHARED_GRADIENT_BYTES = 24 << 20  # gradients of all threads together, beyond which BLAS gets the threads instead
METRIC_BLOCK_BYTES = 4 << 20  # of one lane: products of fewer rows are over before their sums are
METRIC_ROWS = 20_000  # fewer sampled rows made the metric much worse
METRIC_ROWS_PER_FEATURE = 12
MAX_METRIC_FEATURES = 2048  # a symmetric eigenproblem of this order takes seconds
MAX_METRIC_CLASSES = 640


@dataclass(frozen=True)
class DeviceFacts:
    """What a plan needs to know of a device."""

    n_threads: int = 1
    cache_bytes: int = 1 << 20


@dataclass(frozen=True)
class Plan:
    """One pass over the rows.

    Rows are cut into tasks of `task_rows`; a task is a stack of blocks of `block_rows`, the rows of one small GEMM.
    Task t belongs to lane ``t % n_lanes``; a lane adds its tasks up in order and lanes are added in order, so sums do
    not depend on which thread ran which lane.
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
    is_blas_threaded: bool
    is_rows_first: bool
    is_soft: bool
    is_direct: bool
    facts: DeviceFacts
    budget_bytes: int | None
    reserved_bytes: int

    def with_problems(self, n_problems: int) -> "Plan":
        """Return the plan of the same pass for another number of problems."""
        return plan_pass(
            self.n_rows,
            self.n_features,
            n_problems,
            self.n_classes,
            self.dtype,
            self.facts,
            is_soft=self.is_soft,
            is_direct=self.is_direct,
            budget_bytes=self.budget_bytes,
            reserved_bytes=self.reserved_bytes,
        )

    @property
    def n_columns(self) -> int:
        return self.n_problems * self.n_classes

    @property
    def n_tasks(self) -> int:
        return -(-self.n_rows // self.task_rows)

    @property
    def needs_scratch(self) -> bool:
        """Whether a second array of logits is needed: to transpose from, or to multiply soft targets into."""
        return self.is_rows_first or self.is_soft

    @property
    def thread_bytes(self) -> int:
        """Bytes of the buffers that one thread reuses for all its tasks."""
        size, rows = self.dtype.itemsize, self.task_rows
        logits = (1 + self.needs_scratch) * rows * self.n_columns * size
        gradients = -(-rows // self.block_rows) * self.n_columns * self.n_features * size
        row_vectors = rows * self.n_problems * (8 + 12 * size)
        if self.is_soft:
            row_vectors += 2 * rows * self.n_classes * size  # cast, and times the class weights
        return logits + gradients + row_vectors + (0 if self.is_direct else rows * self.n_features * size)

    @property
    def lane_bytes(self) -> int:
        """Bytes of one lane's running sums."""
        return self.n_columns * (self.n_features * self.gradient_dtype.itemsize + 8)

    @property
    def workspace_bytes(self) -> int:
        return self.n_threads * self.thread_bytes + self.n_lanes * self.lane_bytes

    def tasks(self, lane: int) -> Iterator[slice]:
        """Yield the rows of each task of a lane; what fills no whole block at the end is a task of its own."""
        for start in range(lane * self.task_rows, self.n_rows, self.n_lanes * self.task_rows):
            stop = min(start + self.task_rows, self.n_rows)
            whole = stop - (stop - start) % self.block_rows
            if whole > start:
                yield slice(start, whole)
            if whole < stop:
                yield slice(whole, stop)

    def explain(self) -> str:
        """Return the choices in words."""
        order = "row-major, then transposed" if self.is_rows_first else "class-major"
        threads = f"{self.n_threads} thread{'s' * (self.n_threads > 1)}" + ", BLAS with its own" * self.is_blas_threaded
        return (
            f"{self.n_rows:,} rows in {self.n_tasks:,} tasks of {self.task_rows:,} "
            f"({self.block_rows:,} rows a block), {self.n_lanes} lanes on {threads}; "
            f"logits {order} in {self.dtype.name}, gradient summed in {self.gradient_dtype.name}; "
            f"workspace {self.workspace_bytes / 1e6:.1f} MB"
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
    block = SMALL_GEMM_FLOPS // (n_features * columns)
    if block >= 64:
        block = min(block, 1024)
        # Tasks several times the cache: a smaller one is over before the interpreter has called its ten ufuncs.
        rows = min(3 * facts.cache_bytes // (n_features * size), facts.cache_bytes // (columns * size))
        stack = max(1, min(rows, n_rows // (facts.n_threads * LANES_PER_THREAD)) // block)
    else:
        block, stack = min(1024, max(128, WIDE_BLOCK_BYTES // (columns * size))), 1
    is_gradient_small = n_features * columns * 8 <= SMALL_GRADIENT_BYTES
    gradient_dtype = np.dtype(np.float64) if is_gradient_small else dtype
    is_blas_threaded = 2 * facts.n_threads * n_features * columns * size > SHARED_GRADIENT_BYTES
    is_small = 4 * n_rows * n_features * columns <= SMALL_PASS_FLOPS
    n_threads = 1 if is_small or is_blas_threaded else facts.n_threads
    n_tasks = -(-n_rows // (block * stack))
    n_threads = min(n_threads, n_tasks)
    n_lanes = min(n_threads * LANES_PER_THREAD if n_threads > 1 and is_gradient_small else n_threads, n_tasks)
    block = min(block, n_rows)
    plan = Plan(
        n_rows=n_rows,
        n_features=n_features,
        n_problems=n_problems,
        n_classes=n_classes,
        dtype=dtype,
        gradient_dtype=gradient_dtype,
        block_rows=block,
        task_rows=min(block * stack, n_rows),
        n_lanes=n_lanes,
        n_threads=n_threads,
        is_blas_threaded=is_blas_threaded,
        is_rows_first=columns <= ROWS_FIRST_COLUMNS,
        is_soft=is_soft,
        is_direct=is_direct,
        facts=facts,
        budget_bytes=budget_bytes,
        reserved_bytes=reserved_bytes,
    )
    return plan if budget_bytes is None else _shrink(plan, budget_bytes)


def _shrink(plan: Plan, budget_bytes: int) -> Plan:
    """Give up stacked blocks, then rows of a block, then threads, until the workspace fits."""
    while plan.workspace_bytes + plan.reserved_bytes > budget_bytes:
        if plan.task_rows > plan.block_rows:
            half = plan.task_rows // 2
            plan = replace(plan, task_rows=max(half - half % plan.block_rows, plan.block_rows))
        elif plan.block_rows > (32 if plan.n_threads > 1 else 1):
            plan = replace(plan, block_rows=plan.block_rows // 2, task_rows=plan.block_rows // 2)
        elif plan.n_lanes > 1:
            plan = replace(plan, n_threads=max(1, plan.n_threads // 2), n_lanes=max(1, plan.n_threads // 2))
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
    facts: DeviceFacts,
    *,
    is_soft: bool = False,
    is_direct: bool = True,
    budget_bytes: int | None = None,
) -> tuple[Plan, MetricPlan]:
    """Share a budget between the pass and the metric: the metric gets half at most, and what one row leaves.

    Parameters and errors are those of `plan_pass`.
    """
    sizes = (n_rows, n_features, n_problems, n_classes, dtype)
    if budget_bytes is None:
        return plan_pass(*sizes, facts, is_soft=is_soft, is_direct=is_direct), _plan_metric(*sizes, facts, math.inf)
    one_row = plan_pass(1, *sizes[1:], facts, is_soft=is_soft, is_direct=is_direct)
    metric = _plan_metric(*sizes, facts, min(budget_bytes / 2, budget_bytes - one_row.workspace_bytes))
    plan = plan_pass(
        *sizes,
        facts,
        is_soft=is_soft,
        is_direct=is_direct,
        budget_bytes=budget_bytes,
        reserved_bytes=metric.workspace_bytes,
    )
    return plan, metric


def metric_sample(n_rows: int, n_features: int) -> int:
    """Return from how many rows the metric is estimated."""
    return min(n_rows, max(METRIC_ROWS, METRIC_ROWS_PER_FEATURE * n_features))


def _plan_metric(
    n_rows: int,
    n_features: int,
    n_problems: int,
    n_classes: int,
    dtype: np.dtype,
    facts: DeviceFacts,
    budget: float,
) -> MetricPlan:
    """Choose the metric's sample and factors: a factor too large for the budget or for its eigenproblem is diagonal.

    While they are made, full factors cost five matrices of order n_features + 1, enough for two lanes' sums and
    products, and a lane two plus n_problems of order n_classes in float64.
    """
    sample = metric_sample(n_rows, n_features)
    row_bytes = dtype.itemsize * (2 * n_features + 3 * n_problems * n_classes + 8)
    feature_bytes = 5 * dtype.itemsize * (n_features + 1) ** 2
    class_bytes = 8 * (n_problems + 2) * n_classes**2
    is_small = 2 * sample * n_features * (n_features + n_problems * n_classes) <= SMALL_PASS_FLOPS
    n_lanes = 1 if is_small else min(2, facts.n_threads)
    spent = n_lanes * (8 * (n_features + 1 + n_problems * n_classes) + row_bytes)
    is_feature_full = n_features < MAX_METRIC_FEATURES and spent + feature_bytes <= budget
    spent += feature_bytes * is_feature_full
    is_class_full = n_classes <= MAX_METRIC_CLASSES and spent + n_lanes * class_bytes <= budget
    spent += n_lanes * class_bytes * is_class_full
    allowance = min(METRIC_BLOCK_BYTES, max(budget - spent, 0) / n_lanes)
    more_rows = int(min(1023, sample - 1, allowance // row_bytes))
    n_lanes = min(n_lanes, -(-sample // (1 + more_rows)))
    spent += n_lanes * more_rows * row_bytes
    return MetricPlan(dtype, 1 + more_rows, n_lanes, is_feature_full, is_class_full, spent)
