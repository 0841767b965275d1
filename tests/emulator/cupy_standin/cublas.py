"""cupy_backends.cuda.libs.cublas: gemmEx and gemmStridedBatchedEx on raw pointers, as cuBLAS takes them.

Operands are checked for bounds and validity; compute types act by rounding the operands.
"""

import ctypes
from typing import NamedTuple

import numpy as np

from emulator.ptx import Fault

from . import rounding
from .errors import CUBLASError
from .state import machine
from .streams import touch

CUDA_R_32F, CUDA_R_64F, CUDA_R_16F, CUDA_R_16BF = 0, 1, 2, 14
CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_OP_C = 0, 1, 2
CUBLAS_GEMM_DEFAULT, CUBLAS_GEMM_DFALT, CUBLAS_GEMM_DEFAULT_TENSOR_OP = -1, -1, 99
CUBLAS_DEFAULT_MATH, CUBLAS_TENSOR_OP_MATH, CUBLAS_PEDANTIC_MATH, CUBLAS_TF32_TENSOR_OP_MATH = 0, 1, 2, 3
CUBLAS_POINTER_MODE_HOST, CUBLAS_POINTER_MODE_DEVICE = 0, 1
CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_PEDANTIC = 68, 69
CUBLAS_COMPUTE_64F, CUBLAS_COMPUTE_64F_PEDANTIC = 70, 71
CUBLAS_COMPUTE_32F_FAST_16F, CUBLAS_COMPUTE_32F_FAST_16BF, CUBLAS_COMPUTE_32F_FAST_TF32 = 74, 75, 77

NOT_INITIALIZED, INVALID_VALUE, NOT_SUPPORTED = 1, 7, 15
STORAGE = {CUDA_R_32F: "f4", CUDA_R_64F: "f8", CUDA_R_16F: "f2", CUDA_R_16BF: "u2"}
SINGLE = (CUDA_R_32F,) * 3
HALVES = {
    (CUDA_R_16F, CUDA_R_16F, CUDA_R_32F),
    (CUDA_R_16F,) * 3,
    (CUDA_R_16BF, CUDA_R_16BF, CUDA_R_32F),
    (CUDA_R_16BF,) * 3,
}
SUPPORTED = {
    CUBLAS_COMPUTE_64F: {(CUDA_R_64F,) * 3},
    CUBLAS_COMPUTE_64F_PEDANTIC: {(CUDA_R_64F,) * 3},
    CUBLAS_COMPUTE_32F: {SINGLE, *HALVES},
    CUBLAS_COMPUTE_32F_PEDANTIC: {SINGLE, *HALVES},
    CUBLAS_COMPUTE_32F_FAST_16F: {SINGLE},
    CUBLAS_COMPUTE_32F_FAST_16BF: {SINGLE},
    CUBLAS_COMPUTE_32F_FAST_TF32: {SINGLE},
}


class _Matrix(NamedTuple):
    """A column-major operand in device memory."""

    name: str
    pointer: int
    kind: int
    ld: int
    rows: int
    columns: int

    def at(self, offset):
        """Return (elements, validity of their bytes, allocation) `offset` elements behind the pointer."""
        if self.ld < max(1, self.rows):
            raise CUBLASError(INVALID_VALUE)
        dtype = np.dtype(STORAGE[self.kind])
        pointer = self.pointer + offset * dtype.itemsize
        if pointer % dtype.itemsize:
            raise Fault("alignment", f"gemm operand {self.name} at {pointer:#x}")
        count = self.ld * (self.columns - 1) + self.rows if self.rows and self.columns else 0
        if not count:
            return np.empty((self.rows, self.columns), dtype), None, None
        block, start = machine().pool.find(pointer, count * dtype.itemsize)
        if block.device != machine().device:
            raise Fault("bounds", f"gemm operand {self.name} is on device {block.device}, not the current one")
        strides = (dtype.itemsize, self.ld * dtype.itemsize)
        view = block.view(start, (self.rows, self.columns), dtype, strides)
        return view, block.flags_of(view), block

    def values(self, offset, compute):
        view, valid, block = self.at(offset)
        if block is not None:
            if not valid.all():
                raise Fault("uninitialised", f"gemm operand {self.name} has elements that nobody wrote")
            touch(block, view, False)
        return _rounded(_decoded(view, self.kind), compute).astype("f8")


def _decoded(view, kind):
    return rounding.from_bfloat16(view) if kind == CUDA_R_16BF else view


def _rounded(values, compute):
    if compute == CUBLAS_COMPUTE_32F_FAST_TF32:
        return rounding.mantissa(values, rounding.TF32_BITS)
    if compute == CUBLAS_COMPUTE_32F_FAST_16BF:
        return rounding.mantissa(values, rounding.BFLOAT16_BITS)
    if compute == CUBLAS_COMPUTE_32F_FAST_16F:
        return rounding.float16(values)
    return values


def get_cublas_handle():
    """As cupy.cuda.device.get_cublas_handle: one per device."""
    return 0xC0B1A5000 + machine().device


def _check_handle(handle):
    if handle != get_cublas_handle():
        raise CUBLASError(NOT_INITIALIZED)


def getMathMode(handle):  # noqa: N802 - CuPy's name
    _check_handle(handle)
    return machine().math_modes.get(handle, CUBLAS_DEFAULT_MATH)


def setMathMode(handle, mode):  # noqa: N802
    _check_handle(handle)
    machine().math_modes[handle] = mode


def setStream(handle, stream):  # noqa: N802
    """Have no effect that lasts: CuPy sets the current stream before every call."""
    _check_handle(handle)


def getStream(handle):  # noqa: N802
    _check_handle(handle)
    return machine().stream.ptr


def getPointerMode(handle):  # noqa: N802
    _check_handle(handle)
    return CUBLAS_POINTER_MODE_HOST


def gemmEx(  # noqa: N802
    handle, transa, transb, m, n, k, alpha, A, Atype, lda, B, Btype, ldb, beta, C, Ctype, ldc, computeType, algo
):
    """C = alpha op(A) op(B) + beta C, column-major."""
    a, b = (A, Atype, lda, 0), (B, Btype, ldb, 0)
    _gemm(handle, (transa, transb), (m, n, k), (alpha, beta), a, b, (C, Ctype, ldc, 0), 1, computeType, algo)


def gemmStridedBatchedEx(  # noqa: N802
    handle, transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB, beta, C, Ctype, ldc,
    strideC, batchCount, computeType, algo,
):  # fmt: skip
    """The same for a stack; strides count elements."""
    a, b = (A, Atype, lda, strideA), (B, Btype, ldb, strideB)
    c = (C, Ctype, ldc, strideC)
    _gemm(handle, (transa, transb), (m, n, k), (alpha, beta), a, b, c, batchCount, computeType, algo)


def _gemm(handle, trans, sizes, scalars, a, b, c, count, compute, algo):
    _check_handle(handle)
    (transa, transb), (m, n, k) = trans, sizes
    numbers = (transa, transb, m, n, k, a[1], a[2], b[1], b[2], c[1], c[2], count, compute, algo)
    _check_ints(numbers)
    if min(m, n, k, count) < 0 or not {transa, transb} <= {0, 1, 2}:
        raise CUBLASError(INVALID_VALUE)
    if (a[1], b[1], c[1]) not in SUPPORTED.get(compute, ()):
        raise CUBLASError(NOT_SUPPORTED)
    if compute == CUBLAS_COMPUTE_32F and a[1] == CUDA_R_32F and getMathMode(handle) == CUBLAS_TF32_TENSOR_OP_MATH:
        compute = CUBLAS_COMPUTE_32F_FAST_TF32
    scalar = ctypes.c_double if c[1] == CUDA_R_64F else ctypes.c_float
    alpha, beta = (_scalar(scalar, pointer) for pointer in scalars)
    left = _Matrix("A", *a[:3], *((k, m) if transa else (m, k)))
    right = _Matrix("B", *b[:3], *((n, k) if transb else (k, n)))
    goal = _Matrix("C", *c[:3], m, n)
    if count > 1 and c[3] < c[2] * (n - 1) + m and m and n:
        raise Fault("race", f"the stack's results overlap: {c[3]} elements apart")
    machine().stream._begin()
    for i in range(count):
        x, y = left.values(i * a[3], compute), right.values(i * b[3], compute)
        with np.errstate(all="ignore"):
            product = alpha * ((x.T if transa else x) @ (y.T if transb else y))
        _add(goal, i * c[3], product, beta)
    machine().counters.gemms += 1


def _check_ints(numbers):
    for number in numbers:
        if isinstance(number, (float, np.floating)):
            raise TypeError("an integer is required")
        if not -(2**31) <= int(number) < 2**31:
            raise OverflowError("value too large to convert to int")


def _scalar(kind, pointer):
    """Value behind a host pointer."""
    if not isinstance(pointer, (int, np.integer)):
        raise TypeError("alpha and beta are addresses of host memory: scalar.ctypes.data")
    if (pointer >= 0x57E000000000 and pointer < 0x57F000000000) or machine_owns(pointer):
        raise Fault("bounds", "alpha and beta are read by the host; this address is on the device")
    return kind.from_address(pointer).value


def machine_owns(pointer):
    try:
        machine().pool.find(pointer, 1)
    except Fault:
        return False
    return True


def _add(goal, offset, product, beta):
    view, valid, block = goal.at(offset)
    if block is None:
        return
    if beta != 0:  # with beta = 0 cuBLAS does not read C
        if not valid.all():
            raise Fault("uninitialised", "beta != 0 and C has elements that nobody wrote")
        product = product + beta * _decoded(view, goal.kind).astype("f8")
    touch(block, view, True)
    with np.errstate(over="ignore"):
        view[...] = rounding.to_bfloat16(product) if goal.kind == CUDA_R_16BF else product
    valid[...] = True
