"""Which kernel instantiation and launch shape belong to a problem shape: pure arithmetic, no CuPy.

Names are NVRTC name expressions of the templates in the .cu files of this folder. Grids and blocks are one-dimensional:
where a kernel covers rows and problems, the problems of a row, or of a tile of 64 rows, are neighbours.
"""

from collections.abc import Iterator
from math import ceil
from typing import NamedTuple

import numpy as np

TILE_ROWS = 64  # rows of one loss partial: blocks whose size is a multiple of this give the same bits
MODES = ("GRADIENT", "LOSS", "PROBABILITIES", "LOG_PROBABILITIES", "HESSIAN")
SIXTEEN_BIT_MODES = ("GRADIENT", "HESSIAN")  # whose output a product of matrices takes next
ROW_SHAPES = ((2, 4), (4, 4), (8, 4), (16, 4), (32, 4), (32, 8), (32, 16))  # lanes per row, classes per lane
BLOCK_THREADS = 256  # of residual_block
SUM_THREADS = 256  # of the kernels in sums.cu that say so
COLUMN_SUM_ROWS = 512  # rows that one block of column_sums adds
COLUMN_SUM_COLUMNS = 64  # and columns

MAX_GRID = 2**31 - 1
C_TYPES = {"float32": "float", "float64": "double", "float16": "float16", "bfloat16": "bfloat16", "int32": "int"}


class Launch(NamedTuple):
    """How to start a kernel: its name expression, blocks, threads per block, and dynamic shared memory in bytes."""

    name: str
    grid: int
    block: int
    shared_bytes: int = 0


def c_type(dtype) -> str:
    """Return the C++ type of a dtype, or of "bfloat16", which NumPy does not have."""
    name = dtype if dtype == "bfloat16" else np.dtype(dtype).name
    if name not in C_TYPES:
        raise ValueError(f"kernels take {', '.join(C_TYPES)}; got {name}")
    return C_TYPES[name]


def itemsize(dtype) -> int:
    """Return the bytes of one number of a dtype, or of "bfloat16"."""
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def padded(count: int, itemsize: int) -> int:
    """Return the smallest multiple of 16 bytes that holds `count` numbers, in numbers.

    >>> padded(10, 4), padded(10, 8), padded(10, 2)
    (12, 10, 16)
    """
    pack = 16 // itemsize
    return -(-count // pack) * pack


def n_tiles(rows: int) -> int:
    """Return how many tiles of 64 rows, the last one partly filled, a number of rows has."""
    return -(-rows // TILE_ROWS)


def _launch(name: str, grid: int, block: int, shared_bytes: int = 0) -> Launch:
    if not 1 <= grid <= MAX_GRID:
        raise ValueError(f"{name} would need {grid} blocks; CUDA takes 1 to {MAX_GRID}: use fewer rows per block")
    return Launch(name, grid, block, shared_bytes)


# ---------------------------------------------------------------- residual.cu


def residual(rows: int, classes: int, problems: int, dtype, mode: str = "GRADIENT", out=None) -> Launch:
    """Return the launch of the residual kernel: rows in registers up to 512 classes, else a block per row.

    `dtype` is that of the logits, `out` that of the residual if it is another. After a block kernel (see
    `needs_row_losses`), `tile_losses` must follow in the modes that have a loss.

    >>> residual(1000, 10, 3, "float32")
    Launch(name='residual_rows<float, float, GRADIENT, 4, 4>', grid=48, block=256, shared_bytes=0)
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode}")
    out = dtype if out is None or mode == "LOSS" else out
    if itemsize(out) == 2 and (mode not in SIXTEEN_BIT_MODES or itemsize(dtype) != 4):
        raise ValueError(f"16-bit output comes from float32 in {' or '.join(SIXTEEN_BIT_MODES)}; got {dtype}, {mode}")
    types = f"{c_type(dtype)}, {c_type(out)}, {mode}"
    shape = row_shape(classes, out)
    if shape is None:
        return _launch(f"residual_block<{types}, {BLOCK_THREADS}>", rows * problems, BLOCK_THREADS)
    lanes, values = shape
    grid, block = n_tiles(rows) * problems, min(256, 64 * lanes)
    return _launch(f"residual_rows<{types}, {lanes}, {values}>", grid, block)


def row_shape(classes: int, out) -> tuple[int, int] | None:
    """Return lanes per row and classes per lane for an output of type `out`; None where a row needs a block."""
    needed = padded(classes, itemsize(out))
    return next((shape for shape in ROW_SHAPES if needed <= shape[0] * shape[1]), None)


def needs_row_losses(classes: int, out) -> bool:
    """Return whether the residual kernel gives a loss per row, for `tile_losses` to add up."""
    return row_shape(classes, out) is None


def residual_launches() -> Iterator[Launch]:
    """Yield every residual kernel that `residual` can choose, with a grid for one tile."""
    classes = [*(lanes * values for lanes, values in ROW_SHAPES), BLOCK_THREADS * 16]
    for dtype, outs in (("float32", ("float32", "float16", "bfloat16")), ("float64", ("float64",))):
        for out in outs:
            for mode in MODES if out == dtype else SIXTEEN_BIT_MODES:
                yield from (residual(TILE_ROWS, n, 1, dtype, mode, out) for n in classes)


# ---------------------------------------------------------------- sums.cu


def tile_losses(rows: int, problems: int) -> Launch:
    """Return the launch that adds row losses to tile losses: one warp per tile and problem."""
    return _launch("tile_losses", n_tiles(rows) * problems, 32)


def sum_losses(problems: int) -> Launch:
    """Return the launch that adds each problem's tile losses: one block per problem."""
    return _launch("sum_losses", problems, SUM_THREADS)


def sum_parts(length: int, part, out) -> Launch:
    """Return the launch that adds partial results of `length` numbers each: one thread per number."""
    return _launch(f"sum_parts<{c_type(part)}, {c_type(out)}>", ceil(length / SUM_THREADS), SUM_THREADS)


def column_sum_parts(rows: int) -> int:
    """Return how many partial sums per column `column_sums` leaves for `sum_parts`."""
    return -(-rows // COLUMN_SUM_ROWS)


def column_sums(rows: int, columns: int, dtype) -> Launch:
    """Return the launch that adds up rows of a matrix in groups of 512: one block per group and 64 columns."""
    groups = -(-columns // COLUMN_SUM_COLUMNS)
    return _launch(f"column_sums<{c_type(dtype)}>", column_sum_parts(rows) * groups, SUM_THREADS)


def pad_classes(rows: int, classes: int, problems: int, dtype, out) -> Launch:
    """Return the launch that copies rows x problems x classes into padded storage: a thread per two numbers."""
    pairs = rows * problems * padded(classes, itemsize(out)) // 2
    return _launch(f"pad_classes<{c_type(dtype)}, {c_type(out)}>", ceil(pairs / SUM_THREADS), SUM_THREADS)


def unpad_classes(rows: int, classes: int, problems: int, dtype, out) -> Launch:
    """Return the launch that copies padded storage to rows x problems x classes: a thread per number."""
    name = f"unpad_classes<{c_type(dtype)}, {c_type(out)}>"
    return _launch(name, ceil(rows * problems * classes / SUM_THREADS), SUM_THREADS)


# ---------------------------------------------------------------- fused_small.cu

FUSED_THREADS = 256
FUSED_GRID = 128  # constant on every device, because the bits of the gradient depend on it
FUSED_ROUNDS = (64, 32, 16)  # rows per barrier, the most first
FUSED_REGISTER_TILES = 6  # 16-byte by 16-byte pieces of the gradient that a thread may hold without spilling
DEFAULT_SHARED_BYTES = 96 * 1024  # of one block; every architecture since sm_80 has it, sm_75 has 64 KiB


def fused_shared_bytes(features: int, columns: int, rows_per_round: int, dtype) -> int:
    """Return the dynamic shared memory of fused_small: W, and `rows_per_round` rows of X and of the residual."""
    size = itemsize(dtype)
    pack = 16 // size
    d, k = padded(features, size), padded(columns, size)
    stride = d if d // pack % 2 else d + pack
    return size * (d * k + rows_per_round * (stride + k))


def fused_rows_per_round(features: int, classes: int, problems: int, dtype, shared_limit=DEFAULT_SHARED_BYTES):
    """Return how many rows fused_small takes per round, or None where the problem is too large for it."""
    size, columns = itemsize(dtype), classes * problems
    pack = 16 // size
    pieces = padded(features, size) // pack * (padded(columns, size) // pack)
    if columns > FUSED_THREADS or pieces > FUSED_REGISTER_TILES * FUSED_THREADS or problems > TILE_ROWS:
        return None
    static = problems * TILE_ROWS * 8
    fits = (n for n in FUSED_ROUNDS if static + fused_shared_bytes(features, columns, n, dtype) <= shared_limit)
    return next(fits, None)


def fused_small(rows, features, classes, problems, dtype, shared_limit=DEFAULT_SHARED_BYTES) -> Launch:
    """Return the launch of the kernel that does the whole pass; the caller checked `fused_rows_per_round`."""
    per_round = fused_rows_per_round(features, classes, problems, dtype, shared_limit)
    if per_round is None:
        raise ValueError(
            f"fused_small cannot hold {features} features x {problems} problems x {classes} classes of {dtype} "
            f"in {shared_limit} bytes of shared memory; use the residual kernel between two products"
        )
    name = f"fused_small<{c_type(dtype)}, {features}, {classes}, {problems}, {per_round}>"
    shared = fused_shared_bytes(features, classes * problems, per_round, dtype)
    return _launch(name, min(FUSED_GRID, n_tiles(rows)), FUSED_THREADS, shared)
