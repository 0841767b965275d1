"""How one pass over the rows is cut up on a CUDA GPU: pure arithmetic from shapes, dtypes, facts and a budget.

Two designs. *Two products*: cuBLAS for X W, one kernel that turns logits into residual in place, cuBLAS for XᵀG, block
by block. *One kernel*, for a small W: logits, softmax, residual and XᵀG of a block in shared memory, X read once.
Their times are modelled, not measured; `scripts/gpu-check` measures them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from gpusoftmax.exceptions import WorkspaceError
from gpusoftmax.kernels import launches

SMALL_GRADIENT_BYTES = 1 << 20  # in float64: up to here it is summed so
LAUNCH_SECONDS = 36e-6  # of a block's kernels and products, on the host
BLOCK_LAUNCHES = 1.5  # a block works at least this many times as long as launching it takes
GRADIENT_TRAFFIC = 0.5  # most of the time of XᵀG that reading and writing the gradient may take
WAVES = 4  # of output tiles that X W has at least
TILE = 128  # rows and columns of one multiprocessor's output tile
SPLIT_ROWS = 1024  # fewest rows of one part of XᵀG
GEMM_EFFICIENCY, KERNEL_EFFICIENCY = 0.8, 0.3  # assumed shares of the peak, of cuBLAS and of the one kernel
WORKSPACE_BYTES, WORKSPACE_SHARE, WORKSPACE_FLOOR = 1 << 30, 0.1, 64 << 20  # most, of free memory, at least

FLOPS_PER_CYCLE = {75: 128, 80: 128, 86: 256, 89: 256, 90: 256, 100: 256, 120: 256}  # of a multiprocessor, float32
DOUBLE_RATE = {80: 1 / 2, 90: 1 / 2, 100: 1 / 2}  # of float64 to float32; elsewhere a few units only
FEW_DOUBLES = 1 / 64


@dataclass(frozen=True)
class CudaFacts:
    """What a plan needs to know of a CUDA GPU.

    compute_capability : major and minor as one number, 90 for 9.0
    n_multiprocessors : int
    clock_hz : float
    bytes_per_second : of its memory
    free_bytes : memory that is free now
    shared_bytes : most shared memory that a block may ask for
    """

    compute_capability: int
    n_multiprocessors: int
    clock_hz: float
    bytes_per_second: float
    free_bytes: int
    shared_bytes: int
    n_threads: int = 1

    def flops(self, dtype: np.dtype) -> float:
        """Return the peak of multiplications and additions a second outside tensor cores."""
        known = [capability for capability in FLOPS_PER_CYCLE if capability <= self.compute_capability]
        family = max(known, default=min(FLOPS_PER_CYCLE))
        rate = 1.0 if dtype == np.float32 else DOUBLE_RATE.get(family, FEW_DOUBLES)
        return FLOPS_PER_CYCLE[family] * rate * self.n_multiprocessors * self.clock_hz

    def plan_pass(self, n_rows, n_features, n_problems, n_classes, dtype, **options) -> "CudaPlan":
        """Return the plan of a pass on this GPU."""
        return plan_pass(n_rows, n_features, n_problems, n_classes, dtype, self, **options)


@dataclass(frozen=True)
class CudaPlan:
    """One pass over the rows, block by block, in buffers allocated once.

    block_rows : a multiple of 64, so that the losses' tiles are the same for every block size
    is_one_kernel : which of the two designs
    n_splits : parts into which the rows of a block are cut for XᵀG, so that every multiprocessor has some
    seconds, bound : of one pass as modelled, and what bounds it
    """

    n_rows: int
    n_features: int
    n_problems: int
    n_classes: int
    dtype: np.dtype
    gradient_dtype: np.dtype
    block_rows: int
    is_one_kernel: bool
    n_splits: int
    is_soft: bool
    is_direct: bool
    facts: CudaFacts
    budget_bytes: int | None
    reserved_bytes: int
    seconds: float
    bound: str

    def with_problems(self, n_problems: int) -> "CudaPlan":
        """Return the plan of the same pass for another number of problems."""
        return self._replanned(n_problems=n_problems, may_be_one_kernel=True)

    def by_products(self) -> "CudaPlan":
        """Return the plan of the same pass in the design of two products."""
        return self._replanned(n_problems=self.n_problems, may_be_one_kernel=False) if self.is_one_kernel else self

    def _replanned(self, *, n_problems: int, may_be_one_kernel: bool) -> "CudaPlan":
        return plan_pass(
            *(self.n_rows, self.n_features, n_problems, self.n_classes, self.dtype, self.facts),
            is_soft=self.is_soft,
            is_direct=self.is_direct,
            budget_bytes=self.budget_bytes,
            reserved_bytes=self.reserved_bytes,
            may_be_one_kernel=may_be_one_kernel,
        )

    def halved(self) -> "CudaPlan":
        """Return the plan with blocks of half as many rows, or raise MemoryError where they cannot be smaller."""
        if self.block_rows <= launches.TILE_ROWS:
            raise MemoryError(f"A pass needs {self.workspace_bytes} bytes of GPU memory beside X, and there are fewer.")
        half = _whole_tiles(self.block_rows // 2)
        return replace(self, block_rows=half, n_splits=min(self.n_splits, max(1, half // launches.TILE_ROWS)))

    @property
    def class_stride(self) -> int:
        """Columns from one problem's logits to the next's: rows of a problem start at multiples of 16 bytes."""
        return self.n_classes if self.is_one_kernel else launches.padded(self.n_classes, self.dtype.itemsize)

    @property
    def n_columns(self) -> int:
        return self.n_problems * self.class_stride

    @property
    def needs_row_losses(self) -> bool:
        return not self.is_one_kernel and launches.needs_row_losses(self.n_classes, self.dtype)

    @property
    def n_parts(self) -> int:
        """Partial gradients that are added up after each block; one that has no parts adds to itself."""
        if self.is_one_kernel:
            return launches.fused_small(self.block_rows, *self.kernel_sizes).grid
        return self.n_splits if self.n_splits > 1 or self.gradient_dtype != self.dtype else 0

    @property
    def kernel_sizes(self) -> tuple:
        """Sizes of the one kernel beside its rows, as `launches.fused_small` takes them."""
        return self.n_features, self.n_classes, self.n_problems, self.dtype, self.facts.shared_bytes

    @property
    def workspace_bytes(self) -> int:
        size, columns = self.dtype.itemsize, self.n_columns
        n_params = (self.n_features + 1) * columns
        logits = 0 if self.is_one_kernel else columns + 8 * self.n_problems * self.needs_row_losses / size
        converted = self.n_features * (not self.is_direct) + self.n_classes * self.is_soft
        n_sums = 8 * columns * launches.column_sum_parts(self.block_rows) * (not self.is_one_kernel)
        losses = 8 * self.n_problems * (launches.n_tiles(self.n_rows) + 1)
        gradient = n_params * ((1 + self.n_parts) * size + self.gradient_dtype.itemsize)
        return int(self.block_rows * (logits + converted) * size) + n_sums + losses + gradient

    def blocks(self) -> Iterator[slice]:
        """Yield the rows of each block."""
        for start in range(0, self.n_rows, self.block_rows):
            yield slice(start, min(start + self.block_rows, self.n_rows))

    def explain(self) -> str:
        """Return the choices in words, with bytes, flops and the modelled time of a pass."""
        n_blocks = -(-self.n_rows // self.block_rows)
        flops = 4 * self.n_rows * self.n_features * self.n_problems * self.n_classes
        if self.is_one_kernel:
            design = f"one kernel, {launches.fused_small(self.block_rows, *self.kernel_sizes).name}"
        else:
            kernel = launches.residual(self.block_rows, self.n_classes, self.n_problems, self.dtype).name
            design = f"two products around {kernel}, XᵀG in {self.n_splits} part{'s' * (self.n_splits > 1)}"
        return (
            f"{self.n_rows:,} rows in {n_blocks:,} block{'s' * (n_blocks > 1)} of {self.block_rows:,}: {design}; "
            f"{self.dtype.name}, gradient summed in {self.gradient_dtype.name}; workspace "
            f"{self.workspace_bytes / 1e6:.1f} MB; {flops / 1e9:.3g} GFLOP, "
            f"modelled {self.seconds * 1e3:.3g} ms a pass, bound by {self.bound}"
        )


def plan_pass(
    n_rows: int,
    n_features: int,
    n_problems: int,
    n_classes: int,
    dtype: np.dtype,
    facts: CudaFacts,
    *,
    is_soft: bool = False,
    is_direct: bool = True,
    budget_bytes: int | None = None,
    reserved_bytes: int = 0,
    may_be_one_kernel: bool = True,
) -> CudaPlan:
    """Choose design, blocks and parts for one pass; parameters and errors are those of `plan.plan_pass`.

    `may_be_one_kernel` is False where logits are wanted for themselves, or X is not row-major.
    """
    is_small = 8 * (n_features + 1) * n_problems * n_classes <= SMALL_GRADIENT_BYTES
    two, one = (_model(n_rows, n_features, n_problems, n_classes, dtype, facts, is_one) for is_one in (False, True))
    per_round = launches.fused_rows_per_round(n_features, n_classes, n_problems, dtype, facts.shared_bytes)
    is_one_kernel = may_be_one_kernel and per_round is not None and one[0] < two[0]
    seconds, bound = one if is_one_kernel else two
    columns = n_problems * launches.padded(n_classes, dtype.itemsize)
    rows = _whole_tiles(n_rows if is_one_kernel else _fewest_rows(n_features, columns, dtype, facts, two[0] / n_rows))
    rows = min(rows, _whole_tiles(n_rows))
    n_tiles = -(-n_features // TILE) * -(-columns // TILE)
    plan = CudaPlan(
        n_rows=n_rows,
        n_features=n_features,
        n_problems=n_problems,
        n_classes=n_classes,
        dtype=dtype,
        gradient_dtype=np.dtype(np.float64) if is_small else dtype,
        block_rows=rows,
        is_one_kernel=is_one_kernel,
        n_splits=1 if is_one_kernel else max(1, min(facts.n_multiprocessors // n_tiles, rows // SPLIT_ROWS)),
        is_soft=is_soft,
        is_direct=is_direct,
        facts=facts,
        budget_bytes=budget_bytes,
        reserved_bytes=reserved_bytes,
        seconds=seconds,
        bound=bound,
    )
    if budget_bytes is None:
        share = int(WORKSPACE_SHARE * facts.free_bytes)
        return _shrink(plan, max(WORKSPACE_FLOOR, min(WORKSPACE_BYTES, share)), is_firm=False)
    return _shrink(plan, budget_bytes - reserved_bytes, is_firm=True)


def _shrink(plan: CudaPlan, most_bytes: int, *, is_firm: bool) -> CudaPlan:
    """Halve blocks until the workspace fits; if it never does, say which budget would where that was asked for."""
    while plan.workspace_bytes > most_bytes and plan.block_rows > launches.TILE_ROWS:
        plan = plan.halved()
    if is_firm and plan.workspace_bytes > most_bytes:
        raise WorkspaceError(
            f"memory_budget={plan.budget_bytes} bytes is too small for 64 rows of {plan.n_features} features, "
            f"{plan.n_problems} problems and {plan.n_classes} classes on a GPU: "
            f"give at least memory_budget={plan.workspace_bytes + plan.reserved_bytes}."
        )
    return plan


def _whole_tiles(rows: int) -> int:
    return launches.TILE_ROWS * max(1, -(-rows // launches.TILE_ROWS))


def _model(n_rows, n_features, n_problems, n_classes, dtype, facts: CudaFacts, is_one_kernel) -> tuple[float, str]:
    """Return the seconds of a pass that a design would take, and whether memory or arithmetic bounds it.

    Two products read X twice, and write, read, overwrite and read the logits; one kernel reads X once.
    """
    size = dtype.itemsize
    columns = n_problems * (n_classes if is_one_kernel else launches.padded(n_classes, size))
    n_moved = n_features if is_one_kernel else 2 * n_features + 4 * columns
    by_memory = n_rows * n_moved * size / facts.bytes_per_second
    efficiency = KERNEL_EFFICIENCY if is_one_kernel else GEMM_EFFICIENCY
    by_arithmetic = 4 * n_rows * n_features * columns / (efficiency * facts.flops(dtype))
    return max((by_memory, "memory"), (by_arithmetic, "arithmetic"))


def _fewest_rows(n_features, columns, dtype, facts: CudaFacts, row_seconds: float) -> int:
    """Return the fewest rows of a block that hide its launches, its traffic of the gradient, and uneven waves."""
    hide_launches = BLOCK_LAUNCHES * LAUNCH_SECONDS / row_seconds
    hide_gradient = dtype.itemsize * facts.flops(dtype) / facts.bytes_per_second / GRADIENT_TRAFFIC
    fill_waves = WAVES * facts.n_multiprocessors * TILE / -(-columns // TILE)
    return int(max(hide_launches, hide_gradient, fill_waves)) + 1
