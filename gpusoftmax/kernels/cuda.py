"""Host side of the CUDA kernels: compile a .cu file's template on first use, check what it relies on, and launch it.

Every method takes device arrays that the caller owns and allocates nothing. Launches go to CuPy's current stream.
CuPy arrays have no bfloat16: arrays of uint16 stand for it. Which launch belongs to which shape is in `launches`;
what a kernel computes is at the head of its .cu file.
"""

from importlib.resources import files
from typing import Any

import numpy as np

from gpusoftmax.kernels import launches
from gpusoftmax.kernels.launches import Launch

OPTIONS = ("--std=c++17",)
SOURCES = {
    "residual": ("residual_rows", "residual_block"),
    "fused_small": ("fused_small",),
    "sums": ("tile_losses", "sum_losses", "sum_parts", "column_sums", "pad_classes", "unpad_classes"),
}

# cudaDataType_t and cublasGemmAlgo_t, whose values CUDA keeps between releases
CUDA_TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
GEMM_DEFAULT = -1
C_INT_MAX = 2**31 - 1
PRECISIONS = {  # name: (name of cuBLAS's compute type, dtype of alpha and beta)
    "float64": ("CUBLAS_COMPUTE_64F", np.float64),
    "float32": ("CUBLAS_COMPUTE_32F", np.float32),
    "float32_pedantic": ("CUBLAS_COMPUTE_32F_PEDANTIC", np.float32),  # whatever math mode the handle is in
    "tf32": ("CUBLAS_COMPUTE_32F_FAST_TF32", np.float32),
    "bfloat16": ("CUBLAS_COMPUTE_32F_FAST_16BF", np.float32),
}


def source(file: str) -> str:
    """Return the CUDA C++ of a file of this folder, without ending, with what the kernels share in front of it."""
    folder = files("gpusoftmax.kernels")
    shared = (folder / "numerics.cuh").read_text(encoding="utf-8")
    own = (folder / f"{file}.cu").read_text(encoding="utf-8")
    return f'{shared}\n#line 1 "{file}.cu"\n{own}'


def file_of(name: str) -> str:
    """Return the file, without ending, that defines the kernel of a name expression."""
    template = name.split("<", maxsplit=1)[0]
    return next(file for file, kernels in SOURCES.items() if template in kernels)


def storage(array) -> str:
    """Return what an array's numbers are to a kernel: its dtype's name, and "bfloat16" for uint16."""
    return "bfloat16" if array.dtype == np.uint16 else array.dtype.name


def _leading(name: str, array, bytes_aligned: int = 1) -> np.int64:
    """Return the row stride of a row-major matrix in numbers; check that 128-bit access to its rows is possible."""
    size = array.itemsize
    if array.ndim != 2 or array.strides[1] != size or array.strides[0] % size:
        raise ValueError(
            f"{name} must be a matrix with contiguous rows; got shape {array.shape}, {array.strides} bytes"
        )
    if array.data.ptr % bytes_aligned or (array.shape[0] > 1 and array.strides[0] % bytes_aligned):
        raise ValueError(
            f"the rows of {name} must start at multiples of {bytes_aligned} bytes; it starts at {array.data.ptr:#x} "
            f"and has {array.strides[0]} bytes a row: pad its columns with launches.padded"
        )
    return np.int64(array.strides[0] // size)


def _strides(weights, rows: int, problems: int) -> tuple[np.int64, np.int64]:
    """Return the steps in numbers to the next row and the next problem of weights (rows,), (rows, 1) or (rows, P)."""
    if weights is None:
        return np.int64(0), np.int64(0)
    size = weights.itemsize
    shared = weights.ndim == 1 or weights.shape[1] == 1
    if weights.shape[0] != rows or not (shared or weights.shape[1] == problems):
        raise ValueError(f"weights must have {rows} rows and 1 or {problems} columns; got shape {weights.shape}")
    return np.int64(weights.strides[0] // size), np.int64(0 if shared else weights.strides[1] // size)


def _check_dtypes(dtype, **arrays) -> None:
    """Raise where a kernel would read an array's bytes as another type: a pointer has none."""
    for name, array in arrays.items():
        if array is not None and array.dtype != dtype:
            raise TypeError(f"{name} must be {np.dtype(dtype).name}; got {array.dtype.name}")


def _check_contiguous(**arrays) -> None:
    for name, array in arrays.items():
        if array is not None and not array.flags.c_contiguous:
            raise ValueError(f"{name} must be contiguous; got shape {array.shape}, {array.strides} bytes")


def _check_shapes(**expected) -> None:
    """Raise where an array has not the shape given with it: a kernel would read behind its end."""
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} must have shape {shape}; got {array.shape}")


def _check_columns(problems: int, classes: int, **matrices) -> None:
    """Raise where a matrix is too narrow for its problems' padded classes."""
    for name, matrix in matrices.items():
        if matrix is not None and matrix.shape[1] < problems * launches.padded(classes, matrix.itemsize):
            raise ValueError(
                f"{name} needs {problems} x {launches.padded(classes, matrix.itemsize)} columns, its classes padded "
                f"to 16 bytes; got {matrix.shape[1]}"
            )


class Kernels:
    """The CUDA kernels, compiled on first use; CuPy keeps the result on disk.

    Parameters
    ----------
    cupy : module
        CuPy, or a stand-in for it; imported by the caller, who chose the device.
    """

    def __init__(self, cupy: Any):
        self._cupy = cupy
        self._functions: dict[str, Any] = {}

    def function(self, name: str):
        """Return the compiled kernel of a name expression."""
        if name not in self._functions:
            module = self._cupy.RawModule(code=source(file_of(name)), options=OPTIONS, name_expressions=(name,))
            self._functions[name] = module.get_function(name)
        return self._functions[name]

    def _run(self, launch: Launch, *args) -> None:
        function = self.function(launch.name)
        if launch.shared_bytes:  # beside static shared memory it may not fit into what a kernel has unasked
            function.max_dynamic_shared_size_bytes = launch.shared_bytes
        function((launch.grid,), (launch.block,), args, shared_mem=launch.shared_bytes)

    # ------------------------------------------------------------ residual.cu

    def residual(
        self,
        z,
        g,
        classes: int,
        problems: int,
        *,
        mode: str = "GRADIENT",
        bias=None,
        labels=None,
        targets=None,
        label_smoothing: float = 0.0,
        weights=None,
        tile_loss=None,
        row_loss=None,
        direction=None,
        direction_bias=None,
    ) -> None:
        """Turn logits into ``s ⊙ (Y - T)`` and losses, or what else `mode` names; see residual.cu.

        Overwrites g, which may be z, and tile_loss. One read and one write of the logits; the block kernel, for more
        than 512 classes, reads them twice.

        Parameters
        ----------
        z : array of shape (rows, ≥ problems · padded classes), float32 or float64
            Logits; problem p starts at column ``p * launches.padded(classes, z.itemsize)``. Pads are initialised.
        g : array of shape (rows, ≥ problems · padded classes), of z's dtype, float16, or uint16 for bfloat16
            Padded by its own item size; its pads become 0. None in mode "LOSS".
        bias, direction_bias : array of shape (problems, padded classes), optional
        labels : array of shape (rows,), int32, or None where `targets` (rows, classes) are soft
        weights : array of shape (rows,), (rows, 1) or (rows, problems), optional
        tile_loss : array of shape (problems, tiles of 64 rows), float64; rows may be strided
        row_loss : array of shape (problems, rows), float64
            Scratch for the block kernel, where ``launches.needs_row_losses``.
        direction : array laid out like z
            For mode "HESSIAN".
        """
        rows = z.shape[0]
        tiles, stride = launches.n_tiles(rows), launches.padded(classes, z.itemsize)
        out = z.dtype if g is None else storage(g)
        launch = launches.residual(rows, classes, problems, z.dtype, mode, out)
        _check_dtypes(z.dtype, bias=bias, targets=targets, weights=weights, direction=direction)
        _check_dtypes(np.int32, labels=labels)
        _check_dtypes(np.float64, tile_loss=tile_loss, row_loss=row_loss)
        _check_contiguous(labels=labels, bias=bias, direction_bias=direction_bias)
        _check_columns(problems, classes, z=z, g=g, direction=direction)
        _check_shapes(bias=(bias, (problems, stride)), direction_bias=(direction_bias, (problems, stride)))
        _check_shapes(labels=(labels, (rows,)), targets=(targets, (rows, classes)))
        _check_shapes(tile_loss=(tile_loss, (problems, tiles)), row_loss=(row_loss, (problems, rows)))
        ld_z = _leading("z", z, 16)
        if direction is not None and _leading("direction", direction, 16) != ld_z:
            raise ValueError("direction must have the row stride of z")
        has_loss = mode in ("GRADIENT", "LOSS")
        by_row = has_loss and launches.needs_row_losses(classes, out)
        losses = (row_loss if by_row else tile_loss) if has_loss else None
        if has_loss and losses is None:
            raise ValueError(f"mode {mode} with {classes} classes needs {'row_loss and ' if by_row else ''}tile_loss")
        self._run(
            launch,
            z,
            ld_z,
            g,
            np.int64(0) if g is None else _leading("g", g, 16),
            direction,
            np.int32(rows),
            np.int32(classes),
            np.int32(problems),
            bias,
            direction_bias,
            labels,
            targets,
            np.int64(0) if targets is None else _leading("targets", targets),
            z.dtype.type(label_smoothing),
            weights,
            *_strides(weights, rows, problems),
            losses,
            np.int64(0) if losses is None else _leading("losses", losses),
        )
        if by_row:
            self.tile_losses(row_loss, tile_loss)

    # ------------------------------------------------------------ sums.cu

    def tile_losses(self, row_loss, tile_loss) -> None:
        """Add row losses (problems, rows) to tile losses (problems, tiles), both float64, in a fixed order."""
        problems, rows = row_loss.shape
        steps = _leading("row_loss", row_loss), _leading("tile_loss", tile_loss)
        self._run(
            launches.tile_losses(rows, problems),
            row_loss,
            steps[0],
            np.int32(rows),
            np.int32(problems),
            tile_loss,
            steps[1],
        )

    def sum_losses(self, tile_loss, total, *, accumulate: bool = False) -> None:
        """Set total (problems,) to the sums of tile_loss (problems, tiles), or add them to it; both float64."""
        problems, tiles = tile_loss.shape
        step = _leading("tile_loss", tile_loss)
        self._run(launches.sum_losses(problems), tile_loss, step, np.int64(tiles), np.int32(accumulate), total)

    def sum_parts(self, parts, out, *, scale: float = 1.0, accumulate: bool = False) -> None:
        """Set `out` to ``scale * Σ_n parts[n]``, or add that to it, summed in order in float64.

        `parts` has one more axis than `out`, in front; both are contiguous behind it, float32 or float64.
        """
        length = out.size
        if parts[0].size != length or not out.flags.c_contiguous or not parts[0].flags.c_contiguous:
            raise ValueError(f"parts {parts.shape} must be contiguous arrays of the shape of out {out.shape}")
        self._run(
            launches.sum_parts(length, parts.dtype, out.dtype),
            parts,
            np.int32(len(parts)),
            np.int64(parts.strides[0] // parts.itemsize),
            np.int64(length),
            np.float64(scale),
            np.int32(accumulate),
            out,
        )

    def column_sums(self, g, parts, out, *, scale: float = 1.0, accumulate: bool = False) -> None:
        """Set out (columns,) to ``scale * 1ᵀG``, or add that to it, in a fixed order and in float64.

        Overwrites `parts`, float64 scratch of shape (launches.column_sum_parts(rows), columns). One read of g
        (rows, an even number of columns).
        """
        rows, columns = g.shape
        if columns % 2 or parts.shape != (launches.column_sum_parts(rows), columns):
            raise ValueError(f"column_sums of {g.shape} needs an even number of columns; got parts {parts.shape}")
        _check_dtypes(np.float64, parts=parts)
        launch = launches.column_sums(rows, columns, storage(g))
        self._run(launch, g, _leading("g", g, 2 * g.itemsize), np.int64(rows), np.int64(columns), parts)
        self.sum_parts(parts, out, scale=scale, accumulate=accumulate)

    def pad_classes(self, array, classes: int, problems: int, out) -> None:
        """Copy (rows, problems · classes) to padded storage, rounding to its dtype; gaps become 0.

        With one problem this copies a matrix to another leading dimension or 16-bit storage (uint16 for bfloat16).
        """
        rows = array.shape[0]
        launch = launches.pad_classes(rows, classes, problems, array.dtype, storage(out))
        steps = _leading("array", array), _leading("out", out, 16)
        self._run(launch, array, steps[0], np.int64(rows), np.int32(problems), np.int32(classes), out, steps[1])

    def unpad_classes(self, array, classes: int, problems: int, stride: int, out, *, scale=None) -> None:
        """Copy padded storage to (rows, problems · classes), times scale[problem], float64, if given.

        `stride` is the number of columns from one problem to the next: `launches.padded` for the dtype of G.
        """
        rows = array.shape[0]
        _check_dtypes(np.float64, scale=scale)
        launch = launches.unpad_classes(rows, classes, problems, array.dtype, out.dtype)
        steps = _leading("array", array), _leading("out", out)
        shape = np.int64(rows), np.int32(problems), np.int32(classes), np.int32(stride)
        self._run(launch, array, steps[0], *shape, scale, out, steps[1])

    # ------------------------------------------------------------ fused_small.cu

    def fused_small(
        self,
        X,
        params,
        parts,
        tile_loss,
        *,
        labels=None,
        targets=None,
        label_smoothing: float = 0.0,
        weights=None,
        has_intercept: bool = True,
        shared_limit: int = launches.DEFAULT_SHARED_BYTES,
    ) -> None:
        """Do the whole pass over X for a small weight matrix: X is read once, nothing of size rows · classes is kept.

        Overwrites `parts` and tile_loss; ``sum_parts(parts, gradient)`` finishes the gradient.

        Parameters
        ----------
        X : array of shape (rows, n_features), float32 or float64; rows may be strided
        params : array of shape (n_features + 1, problems, classes), contiguous, of X's dtype
        parts : array of shape (launches.fused_small(…).grid, n_features + 1, problems, classes), of X's dtype
        tile_loss : array of shape (problems, tiles of 64 rows), float64; rows may be strided
        labels, targets, label_smoothing, weights : as for `residual`
        has_intercept : bool
            Whether the last row of params is added; the gradient has that row anyway.
        """
        rows, features = X.shape
        _, problems, classes = params.shape
        launch = launches.fused_small(rows, features, classes, problems, X.dtype, shared_limit)
        _check_dtypes(X.dtype, params=params, parts=parts, targets=targets, weights=weights)
        _check_dtypes(np.int32, labels=labels)
        _check_dtypes(np.float64, tile_loss=tile_loss)
        _check_contiguous(labels=labels, params=params, parts=parts)
        _check_shapes(params=(params, (features + 1, problems, classes)), parts=(parts, (launch.grid, *params.shape)))
        _check_shapes(labels=(labels, (rows,)), targets=(targets, (rows, classes)))
        _check_shapes(tile_loss=(tile_loss, (problems, launches.n_tiles(rows))))
        self._run(
            launch,
            X,
            _leading("X", X),
            np.int32(rows),
            params,
            params[-1] if has_intercept else None,
            labels,
            targets,
            np.int64(0) if targets is None else _leading("targets", targets),
            X.dtype.type(label_smoothing),
            weights,
            *_strides(weights, rows, problems),
            parts,
            tile_loss,
            _leading("tile_loss", tile_loss),
        )


# ---------------------------------------------------------------- cuBLAS


def _operand(name: str, array, n_axes: int) -> tuple[int, int, int]:
    """Return an operand's address, cudaDataType and leading dimension as cuBLAS takes them."""
    size = array.itemsize
    if array.ndim != n_axes or (array.shape[-1] > 1 and array.strides[-1] != size):
        raise ValueError(
            f"{name} must have {n_axes} axes, the last contiguous; got {array.shape}, {array.strides} bytes"
        )
    kind = storage(array)
    if kind not in CUDA_TYPES:
        raise TypeError(f"{name} must be {', '.join(CUDA_TYPES)} (as uint16); got {array.dtype.name}")
    # cuBLAS wants a leading dimension of at least the row's length even where there is one row.
    leading = array.strides[-2] // size if array.shape[-2] > 1 else array.shape[-1]
    return array.data.ptr, CUDA_TYPES[kind], max(leading, 1)


def _product_shape(a, b, c, transpose_a: bool, transpose_b: bool) -> tuple[int, int, int]:
    """Return (m, n, k) of ``c = op(a) op(b)``; check that the shapes agree and fit cuBLAS's C ints."""
    m, k = a.shape[-2:][::-1] if transpose_a else a.shape[-2:]
    k_b, n = b.shape[-2:][::-1] if transpose_b else b.shape[-2:]
    if k != k_b or c.shape[-2:] != (m, n) or not a.shape[:-2] == b.shape[:-2] == c.shape[:-2]:
        raise ValueError(
            f"shapes do not fit: a {a.shape}{' transposed' * transpose_a}, b {b.shape}{' transposed' * transpose_b}, "
            f"c {c.shape}"
        )
    return m, n, k


def _check_c_ints(**sizes) -> None:
    for name, size in sizes.items():
        if size > C_INT_MAX:
            raise ValueError(
                f"cuBLAS takes sizes up to {C_INT_MAX} (a C int); {name} is {size}: use fewer rows per block"
            )


def gemm(
    handle: int,
    a,
    b,
    c,
    *,
    alpha: float = 1.0,
    beta: float = 0.0,
    transpose_a: bool = False,
    transpose_b: bool = False,
    precision: str = "float32",
) -> None:
    """Overwrite row-major c by ``alpha · op(a) op(b) + beta · c`` with an explicit compute type.

    Three axes make a strided batch: one product per leading index, for a product whose rows are split between
    multiprocessors. cuBLAS is column-major and sees every matrix transposed, so this computes cᵀ = op(b)ᵀ op(a)ᵀ.

    Parameters
    ----------
    handle : int
        ``cupy.cuda.device.get_cublas_handle()`` of this thread, in host pointer mode (CuPy's default).
    a, b, c : device arrays with 2 axes, or all with 3
        The last axis is contiguous, rows may be strided. float64; or float32, float16 and bfloat16 (as uint16), whose
        products are added in float32. c may be wider than a and b. Not overlapping.
    alpha, beta : float
        Rounded to the compute type. With beta = 0, c may be uninitialised.
    transpose_a, transpose_b : bool
        Whether op transposes.
    precision : {"float64", "float32", "float32_pedantic", "tf32", "bfloat16"}
        "tf32" rounds float32 inputs to 10 bits of mantissa and is fast, "bfloat16" to 7 bits and faster.
    """
    from cupy_backends.cuda.libs import cublas

    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision}")
    compute_name, scalar = PRECISIONS[precision]
    is_double = precision == "float64"
    if any((array.dtype == np.float64) != is_double for array in (a, b, c)):
        kinds = ", ".join(array.dtype.name for array in (a, b, c))
        raise TypeError(f"precision {precision} does not go with arrays of {kinds}")
    m, n, k = _product_shape(a, b, c, transpose_a, transpose_b)
    first, second, result = (_operand(name, x, c.ndim) for name, x in (("a", a), ("b", b), ("c", c)))
    _check_c_ints(m=m, n=n, k=k, lda=first[2], ldb=second[2], ldc=result[2])
    scalars = np.array(
        [alpha, beta], scalar
    )  # alive until cuBLAS has read them: host pointer mode reads during the call
    alpha_at, beta_at = scalars.ctypes.data, scalars.ctypes.data + scalars.itemsize
    operations = [cublas.CUBLAS_OP_T if flag else cublas.CUBLAS_OP_N for flag in (transpose_b, transpose_a)]
    compute = getattr(cublas, compute_name)
    if c.ndim == 2:
        cublas.gemmEx(
            handle, *operations, n, m, k, alpha_at, *second, *first, beta_at, *result, compute, GEMM_DEFAULT
        )  # fmt: skip
        return
    steps = [array.strides[0] // array.itemsize for array in (a, b, c)]
    _check_c_ints(batches=len(c))
    cublas.gemmStridedBatchedEx(
        handle, *operations, n, m, k, alpha_at, *second, steps[1], *first, steps[0], beta_at, *result, steps[2],
        len(c), compute, GEMM_DEFAULT,
    )  # fmt: skip
