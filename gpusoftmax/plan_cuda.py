"""How one pass over the rows is cut up on a CUDA GPU: pure arithmetic from shapes, dtypes, facts and a budget.

Two designs. *Two products*: cuBLAS for X W, one kernel that turns logits into residual in place, cuBLAS for XᵀG, block
by block. *One kernel*, for a small W: logits, softmax, residual and XᵀG of a block in shared memory, X read once.
Their times are modelled, not measured: the constants below are assumptions; `scripts/gpu-check` measures them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from gpusoftmax.exceptions import WorkspaceError
from gpusoftmax.kernels import launches

SMALL_GRADIENT_BYTES = 1 << 20  # in float64: up to here it is summed so
MAX_ROWS = 2**31 - launches.TILE_ROWS  # of a block: kernels and cuBLAS take C ints
WORKSPACE_BYTES, WORKSPACE_SHARE, WORKSPACE_FLOOR = 1 << 30, 0.1, 64 << 20  # of a block: most, of free memory, at least

# The block rule of two products
BLOCK_LAUNCHES = 1.5  # a block works at least this many times as long as launching it takes
GRADIENT_TRAFFIC = 0.5  # most of the time of XᵀG that reading and writing the gradient may take
WAVES = 4  # of output tiles that X W has at least
TILE = 128  # rows and columns of one multiprocessor's output tile
SPLIT_ROWS = 1024  # fewest rows of one part of XᵀG

# The model
PRODUCTS_LAUNCH_SECONDS, KERNEL_LAUNCH_SECONDS = 36e-6, 12e-6  # of a block, on the host: about 6 and 2 launches
PASS_LAUNCH_SECONDS = 24e-6  # of what comes before the first block and after the last
GEMM_EFFICIENCY, KERNEL_EFFICIENCY = 0.8, 0.3  # shares of the peak, of cuBLAS and of the one kernel
NARROW_TILE = 32  # rows and columns that a product computes at least, wanted or not
BUSY_SECONDS = 2e-3  # of a pass, beside some 40 launches of the solver
ROUND_SECONDS = 1e-6  # of the one kernel's wait for the rows of a round, and its softmax: few warps share the latency

FLOPS_PER_CYCLE = {75: 128, 80: 128, 86: 256, 89: 256, 90: 256, 100: 256, 120: 256}  # of a multiprocessor, float32
DOUBLE_RATE = {75: 1 / 32, 80: 1 / 2, 90: 1 / 2, 100: 1 / 2}  # of float64 to float32
PRODUCT_DOUBLE_RATE = DOUBLE_RATE | {80: 1, 90: 1}  # cuBLAS multiplies float64 on tensor cores where they are faster
FEW_DOUBLES = 1 / 64  # elsewhere
UNKNOWN_HZ, UNKNOWN_BYTES_PER_SECOND = 1e9, 2e11  # where a driver says zero, as some do for shared memory


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
        return self._flops(dtype, DOUBLE_RATE)

    def product_flops(self, dtype: np.dtype) -> float:
        """Return the peak of a matrix product in full precision."""
        return self._flops(dtype, PRODUCT_DOUBLE_RATE)

    def _flops(self, dtype: np.dtype, double_rate: dict) -> float:
        known = [capability for capability in FLOPS_PER_CYCLE if capability <= self.compute_capability]
        per_cycle = FLOPS_PER_CYCLE[max(known, default=min(FLOPS_PER_CYCLE))]
        rate = 1.0 if dtype == np.float32 else double_rate.get(self.compute_capability, FEW_DOUBLES)
        return per_cycle * rate * self.n_multiprocessors * (self.clock_hz or UNKNOWN_HZ)

    def busy_flops(self, dtype: np.dtype) -> float:
        """Return the flops of a pass that takes several times as long as launching it and its step."""
        return BUSY_SECONDS * GEMM_EFFICIENCY * self.product_flops(dtype)

    def memory_seconds(self, n_bytes: float) -> float:
        """Return how long moving bytes to or from memory takes at least."""
        return n_bytes / (self.bytes_per_second or UNKNOWN_BYTES_PER_SECOND)

    def plan_pass(self, n_rows, n_features, n_problems, n_classes, dtype, **options) -> "CudaPlan":
        """Return the plan of a pass on this GPU."""
        return plan_pass(n_rows, n_features, n_problems, n_classes, dtype, self, **options)

    def least_bytes(self, n_rows, n_features, n_problems, n_classes, dtype, **options) -> int:
        """Return the smallest workspace that a pass can do with."""
        return self.plan_pass(n_rows, n_features, n_problems, n_classes, dtype, **options).smallest().workspace_bytes


@dataclass(frozen=True)
class CudaPlan:
    """One pass over the rows, block by block, in buffers allocated once.

    block_rows : a multiple of 64, so that the losses' tiles are the same for every block size
    is_one_kernel : which of the two designs
    n_splits : parts into which the rows of a block are cut for XᵀG, so that every multiprocessor has some
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

    # ---------------------------------------------------------------- other plans of the same pass

    def with_problems(self, n_problems: int) -> "CudaPlan":
        """Return the plan of the same pass for another number of problems, in the design of two products.

        Problems leave in the middle of a fit: the one kernel would be compiled anew for each number of them, which
        takes longer than many passes. The gradient keeps its dtype, so that fewer problems never need more memory.
        """
        if n_problems == self.n_problems:
            return self
        return self._replanned(n_problems)

    def by_products(self) -> "CudaPlan":
        """Return the plan of the same pass in the design of two products; it fits the same budget."""
        return self._replanned(self.n_problems) if self.is_one_kernel else self

    def _replanned(self, n_problems: int) -> "CudaPlan":
        return plan_pass(
            *(self.n_rows, self.n_features, n_problems, self.n_classes, self.dtype, self.facts),
            is_soft=self.is_soft,
            is_direct=self.is_direct,
            budget_bytes=self.budget_bytes,
            reserved_bytes=self.reserved_bytes,
            may_be_one_kernel=False,
            gradient_dtype=self.gradient_dtype,
        )

    def halved(self) -> "CudaPlan":
        """Return the plan with blocks of half as many rows, or raise MemoryError where they cannot be smaller."""
        if self.block_rows <= launches.TILE_ROWS:
            raise MemoryError(f"A pass needs {self.workspace_bytes} bytes of GPU memory beside X, and there are fewer.")
        return self._with_rows(_whole_tiles(self.block_rows // 2))

    def smallest(self) -> "CudaPlan":
        """Return the plan of two products whose blocks are as small as can be."""
        return replace(self, is_one_kernel=False)._with_rows(launches.TILE_ROWS)

    def _with_rows(self, rows: int) -> "CudaPlan":
        return replace(self, block_rows=rows, n_splits=max(1, min(self.n_splits, rows // SPLIT_ROWS)))

    # ---------------------------------------------------------------- sizes

    @property
    def class_stride(self) -> int:
        """Columns from one problem's logits to the next's: rows of a problem start at multiples of 16 bytes."""
        return self.n_classes if self.is_one_kernel else launches.padded(self.n_classes, self.dtype.itemsize)

    @property
    def n_columns(self) -> int:
        return self.n_problems * self.class_stride

    @property
    def n_blocks(self) -> int:
        return -(-self.n_rows // self.block_rows)

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
    def block_bytes(self) -> int:
        """Bytes of the buffers that grow with the rows of a block."""
        size, rows = self.dtype.itemsize, self.block_rows
        converted = self.n_features * (not self.is_direct) + self.n_classes * self.is_soft
        converted += self.n_problems * (self.n_problems > 1)  # weights, where problems share some columns of them
        if self.is_one_kernel:
            return rows * converted * size
        sums = 8 * self.n_columns * launches.column_sum_parts(rows)
        return rows * ((self.n_columns + converted) * size + 8 * self.n_problems * self.needs_row_losses) + sums

    @property
    def fixed_bytes(self) -> int:
        """Bytes of params, gradient with its parts, and losses, which no block size makes smaller."""
        size, per_row = self.dtype.itemsize, self.n_columns
        params = (self.n_features + 1) * per_row * (size + self.gradient_dtype.itemsize)
        parts = self.n_parts * (self.n_features + self.is_one_kernel) * per_row * size
        return params + parts + 8 * self.n_problems * (launches.n_tiles(self.n_rows) + 1)

    @property
    def workspace_bytes(self) -> int:
        return self.block_bytes + self.fixed_bytes

    def blocks(self) -> Iterator[slice]:
        """Yield the rows of each block."""
        for start in range(0, self.n_rows, self.block_rows):
            yield slice(start, min(start + self.block_rows, self.n_rows))

    # ---------------------------------------------------------------- modelled time

    @property
    def seconds(self) -> float:
        """Seconds of a pass as modelled."""
        return max(self.launch_seconds, sum(self._device_seconds))

    @property
    def bound(self) -> str:
        """What most of the modelled time is spent on."""
        if self.launch_seconds > sum(self._device_seconds):
            return "launches"
        by_memory, by_arithmetic, by_latency = self._device_seconds
        return max((by_memory, "memory"), (by_arithmetic, "arithmetic"), (by_latency, "latency"))[1]

    @property
    def launch_seconds(self) -> float:
        """Seconds that the host needs to launch a pass, while the device works."""
        per_block = KERNEL_LAUNCH_SECONDS if self.is_one_kernel else PRODUCTS_LAUNCH_SECONDS
        return PASS_LAUNCH_SECONDS + self.n_blocks * per_block

    @property
    def moved_bytes(self) -> int:
        """Bytes that a pass reads and writes, but for params and losses."""
        return sum(n_bytes for _, n_bytes in self._stages)

    @property
    def _device_seconds(self) -> tuple[float, float, float]:
        """Seconds on the device bound by memory, by arithmetic, and by latency: stages come one after the other."""
        by_memory = by_arithmetic = by_latency = 0.0
        for arithmetic, n_bytes in self._stages:
            memory = self.facts.memory_seconds(n_bytes)
            if self.is_one_kernel:  # whose few warps wait where they load
                by_memory, by_arithmetic = by_memory + memory, by_arithmetic + arithmetic
            elif memory > arithmetic:
                by_memory += memory
            else:
                by_arithmetic += arithmetic
        if self.is_one_kernel:
            by_latency = self._rounds * ROUND_SECONDS
        return by_memory, by_arithmetic, by_latency

    @property
    def _stages(self) -> list[tuple[float, int]]:
        """Return the seconds of arithmetic and the bytes moved of each stage of a pass."""
        size, n_rows = self.dtype.itemsize, self.n_rows
        X, Z = n_rows * self.n_features * size, n_rows * self.n_columns * size
        targets = n_rows * (self.n_classes * size if self.is_soft else 4)
        weight = (self.n_features + 1) * self.n_columns
        parts = 2 * self.n_parts * weight * size  # written, and read to be added
        gradient = self.n_blocks * (parts + 2 * weight * self.gradient_dtype.itemsize)
        converted = 0 if self.is_direct else 2 * X
        if self.is_one_kernel:
            peak = KERNEL_EFFICIENCY * self.facts.flops(self.dtype)
            return [(4 * X // size * self.n_columns / peak * self._unevenness, X + converted + targets + gradient)]
        columns, features = max(self.n_columns, NARROW_TILE), max(self.n_features, NARROW_TILE)
        peak = GEMM_EFFICIENCY * self.facts.product_flops(self.dtype)
        return [
            (2 * n_rows * self.n_features * columns / peak, X + converted + Z),
            (0.0, 2 * Z + targets),  # residual
            (2 * n_rows * features * columns / peak, X + converted + Z + gradient),
            (0.0, Z),  # sums of its columns
        ]

    @property
    def _unevenness(self) -> float:
        """How much longer a grid takes than if all multiprocessors had equal shares of it."""
        n, grid = self.facts.n_multiprocessors, self.n_parts
        return -(-grid // n) * n / grid

    @property
    def _rounds(self) -> int:
        """Rounds of the one kernel that some multiprocessor does one after the other."""
        per_round = launches.fused_rows_per_round(*self.kernel_sizes)
        tiles = -(-launches.n_tiles(self.block_rows) // self.n_parts)
        blocks_each = -(-self.n_parts // self.facts.n_multiprocessors)
        return self.n_blocks * blocks_each * tiles * (launches.TILE_ROWS // per_round)

    def explain(self) -> str:
        """Return the choices in words, with bytes, flops and the modelled time of a pass."""
        flops = 4 * self.n_rows * self.n_features * self.n_problems * self.n_classes
        if self.is_one_kernel:
            design = f"one kernel, {launches.fused_small(self.block_rows, *self.kernel_sizes).name}"
        else:
            kernel = launches.residual(self.block_rows, self.n_classes, self.n_problems, self.dtype).name
            design = f"two products around {kernel}, XᵀG in {self.n_splits} part{'s' * (self.n_splits > 1)}"
        return (
            f"{self.n_rows:,} rows in {self.n_blocks:,} block{'s' * (self.n_blocks > 1)} of {self.block_rows:,}: "
            f"{design}; {self.dtype.name}, gradient summed in {self.gradient_dtype.name}; workspace "
            f"{self.workspace_bytes / 1e6:.1f} MB; {flops / 1e9:.3g} GFLOP and {self.moved_bytes / 1e9:.3g} GB moved, "
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
    gradient_dtype: np.dtype | None = None,
) -> CudaPlan:
    """Choose design, blocks and parts for one pass; parameters and errors are those of `plan.plan_pass`.

    `may_be_one_kernel` is False where logits are wanted for themselves, or X is not row-major. `gradient_dtype` is
    chosen by the gradient's size unless it is given. A budget that is too small for two products is an error even
    where the one kernel would fit, since predictions need them.
    """
    is_small = 8 * (n_features + 1) * n_problems * n_classes <= SMALL_GRADIENT_BYTES
    products = CudaPlan(
        n_rows=n_rows,
        n_features=n_features,
        n_problems=n_problems,
        n_classes=n_classes,
        dtype=dtype,
        gradient_dtype=gradient_dtype or (np.dtype(np.float64) if is_small else dtype),
        block_rows=min(_whole_tiles(n_rows), MAX_ROWS),
        is_one_kernel=False,
        n_splits=1,
        is_soft=is_soft,
        is_direct=is_direct,
        facts=facts,
        budget_bytes=budget_bytes,
        reserved_bytes=reserved_bytes,
    )
    plan = _shrink(_cut(products))
    if not _fits(plan) and budget_bytes is not None:
        raise WorkspaceError(
            f"memory_budget={budget_bytes} bytes is too small for 64 rows of {n_features} features, "
            f"{n_problems} problems and {n_classes} classes on a GPU: "
            f"give at least memory_budget={plan.workspace_bytes + reserved_bytes}."
        )
    per_round = launches.fused_rows_per_round(n_features, n_classes, n_problems, dtype, facts.shared_bytes)
    if not may_be_one_kernel or per_round is None:
        return plan
    one = _shrink(replace(products, is_one_kernel=True))
    return one if _fits(one) and one.seconds < plan.seconds else plan


def _fits(plan: CudaPlan) -> bool:
    """Say whether a plan keeps its budget; without one, whether its blocks stay small."""
    if plan.budget_bytes is not None:
        return plan.workspace_bytes + plan.reserved_bytes <= plan.budget_bytes
    share = int(WORKSPACE_SHARE * plan.facts.free_bytes)
    return plan.block_bytes <= max(WORKSPACE_FLOOR, min(WORKSPACE_BYTES, share))


def _shrink(plan: CudaPlan) -> CudaPlan:
    """Halve blocks until they fit, or cannot be smaller."""
    while not _fits(plan) and plan.block_rows > launches.TILE_ROWS:
        plan = plan.halved()
    return plan


def _cut(plan: CudaPlan) -> CudaPlan:
    """Return a plan of two products in equal blocks, each large enough, with XᵀG split where it has few tiles."""
    n_blocks = max(-(-plan.n_rows // MAX_ROWS), plan.n_rows // _fewest_rows(plan), 1)
    rows = min(_whole_tiles(-(-plan.n_rows // n_blocks)), MAX_ROWS)
    n_tiles = -(-plan.n_features // TILE) * -(-plan.n_columns // TILE)
    return replace(plan, n_splits=plan.facts.n_multiprocessors // n_tiles)._with_rows(rows)


def _fewest_rows(plan: CudaPlan) -> int:
    """Return the fewest rows of a block that hide its launches, its traffic of the gradient, and uneven waves."""
    hide_launches = BLOCK_LAUNCHES * PRODUCTS_LAUNCH_SECONDS * plan.n_rows / sum(plan._device_seconds)
    traffic_seconds = plan.facts.memory_seconds(2 * plan.dtype.itemsize)  # of one number of the gradient
    hide_gradient = traffic_seconds * plan.facts.product_flops(plan.dtype) / 2 / GRADIENT_TRAFFIC
    fill_waves = WAVES * plan.facts.n_multiprocessors * TILE / -(-plan.n_columns // TILE)
    return int(max(hide_launches, hide_gradient, fill_waves)) + 1


def _whole_tiles(rows: int) -> int:
    return launches.TILE_ROWS * max(1, -(-rows // launches.TILE_ROWS))
