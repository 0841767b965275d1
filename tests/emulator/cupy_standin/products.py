"""matmul, dot, tensordot, einsum: products that go through cuBLAS, with its precision."""

import os

import numpy as np

from . import rounding
from .array import ndarray, new, started
from .errors import Refused
from .functions import _space, into
from .state import machine


def _operand(x):
    if not isinstance(x, ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    return x


def _count_copy(x):
    """CuPy copies an operand whose rows are padded, or whose axes have neither order, before cuBLAS sees it."""
    if x.ndim >= 2 and x.size:
        inner = x._data[(0,) * (x.ndim - 2)]
        if not (inner.flags.c_contiguous or inner.flags.f_contiguous):
            machine().counters.silent_copies += 1


def _tf32():
    return os.environ.get("CUPY_TF32", "0") not in ("", "0")


def _rounded(x, kind):
    values = x._read()
    if kind == np.float32 and _tf32():
        return rounding.mantissa(values, rounding.TF32_BITS).astype("f8")
    return values.astype("f8") if kind.kind == "f" else values


def _product(function, operands, out=None, casting="same_kind"):
    operands = [_operand(x) for x in operands]
    started()
    kind = np.result_type(*(x.dtype for x in operands))
    for x in operands:
        _count_copy(x)
    with np.errstate(all="ignore"):
        values = np.asarray(function(*(_rounded(x, kind) for x in operands))).astype(kind)
    machine().counters.gemms += 1
    if out is not None:
        if out.shape != values.shape:
            raise ValueError(f"out has shape {out.shape}, the product {values.shape}")
        if not np.can_cast(kind, out.dtype, casting):
            raise TypeError(f"Cannot cast {kind} to {out.dtype} in {casting} casting mode")
    return into(out, values)


def matmul(x1, x2, /, out=None, *, casting="same_kind", dtype=None):
    if dtype is not None:
        x1, x2 = _operand(x1).astype(dtype, copy=False), _operand(x2).astype(dtype, copy=False)
    return _product(np.matmul, (x1, x2), out, casting)


def dot(a, b, out=None):
    if not (isinstance(a, ndarray) and isinstance(b, ndarray)):
        raise TypeError("dot of device arrays only")
    if a.ndim == 0 or b.ndim == 0:
        return a * b
    return _product(np.dot, (a, b), out)


def inner(a, b):
    return _product(np.inner, (a, b))


def vdot(a, b):
    return _product(np.vdot, (a, b))


def outer(a, b, out=None):
    started()
    return into(out, np.outer(_operand(a)._read(), _operand(b)._read(), out=_space(out)))


def tensordot(a, b, axes=2):
    return _product(lambda x, y: np.tensordot(x, y, axes), (a, b))


def einsum(*operands, **kwargs):
    subscripts, *arrays = operands
    if not isinstance(subscripts, str):
        raise Refused("einsum with subscript lists")
    unknown = kwargs.keys() - {"dtype", "optimize"}
    if unknown:
        raise TypeError(f"Did not understand the following kwargs: {sorted(unknown)}")
    if kwargs.get("dtype") is not None:
        arrays = [_operand(x).astype(kwargs["dtype"], copy=False) for x in arrays]
    if len(arrays) == 1:
        started()
        return new(np.einsum(subscripts, _operand(arrays[0])._read()))
    return _product(lambda *values: np.einsum(subscripts, *values), arrays)
