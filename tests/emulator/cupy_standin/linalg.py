"""cupy.linalg and cupyx.scipy.linalg.

As in CuPy a failed factorisation is silent: the result is not a number, unless
``cupyx.errstate(linalg="raise")`` asks for LinAlgError (and a synchronisation).
"""

import contextlib

import numpy as np

from .array import ndarray, new, started
from .errors import Refused
from .state import machine


def _floats(*arrays):
    for a in arrays:
        if not isinstance(a, ndarray):
            raise TypeError(f"cupy.linalg only supports cupy.ndarray, not {type(a)}")
        if a.dtype == np.float16:
            raise TypeError("float16 is not supported by cupy.linalg")
    started()
    return [a._read().astype(np.result_type(a.dtype, np.float32) if a.dtype.kind == "f" else "f8") for a in arrays]


def _square(a):
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise np.linalg.LinAlgError("Last 2 dimensions of the array must be square")


def _solved(function, arrays, shape):
    """Run a LAPACK routine, matrix by matrix, so that one failure leaves the others alone."""
    if machine().linalg_errors == "raise":
        machine().counters.transfers += 1
        return new(function(*arrays))
    result = np.empty(shape, np.result_type(*arrays))
    for index in np.ndindex(shape[: arrays[0].ndim - 2]):
        try:
            result[index] = function(*(a[index] for a in arrays))
        except np.linalg.LinAlgError:
            result[index] = np.nan
    return new(result)


def cholesky(a):
    (values,) = _floats(a)
    _square(a)
    return _solved(np.linalg.cholesky, [values], a.shape)


def inv(a):
    (values,) = _floats(a)
    _square(a)
    return _solved(np.linalg.inv, [values], a.shape)


def solve(a, b):
    left, right = _floats(a, b)
    _square(a)
    if b.ndim == 1:
        return _solved(np.linalg.solve, [left, right], b.shape) if a.ndim == 2 else _bad_rhs()
    if a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        raise ValueError("a and b have incompatible shapes")
    return _solved(np.linalg.solve, [left, right], b.shape)


def _bad_rhs():
    raise ValueError("a stack of matrices needs a stack of right-hand sides")


def eigh(a, UPLO="L"):
    (values,) = _floats(a)
    _square(a)
    return tuple(new(part) for part in np.linalg.eigh(values, UPLO))


def eigvalsh(a, UPLO="L"):
    (values,) = _floats(a)
    _square(a)
    return new(np.linalg.eigvalsh(values, UPLO))


def norm(x, ord=None, axis=None, keepdims=False):  # noqa: A002 - CuPy's name
    started()
    return new(np.linalg.norm(x._read(), ord, axis, keepdims))


def svd(a, full_matrices=True, compute_uv=True):
    (values,) = _floats(a)
    result = np.linalg.svd(values, full_matrices, compute_uv)
    return tuple(new(part) for part in result) if compute_uv else new(result)


def qr(a, mode="reduced"):
    (values,) = _floats(a)
    return tuple(new(part) for part in np.linalg.qr(values, mode))


def slogdet(a):
    (values,) = _floats(a)
    return tuple(new(part) for part in np.linalg.slogdet(values))


def solve_triangular(a, b, trans=0, lower=False, unit_diagonal=False, overwrite_b=False, check_finite=False):
    """As cupyx.scipy.linalg.solve_triangular: stacks are supported."""
    left, right = _floats(a, b)
    if a.ndim == 2 and len(a) != len(b):
        raise ValueError("incompatible dimensions")
    if a.ndim > 2 and a.shape[:-2] != b.shape[: a.ndim - 2]:
        raise ValueError("incompatible dimensions")
    _square(a)
    triangle = np.tril(left) if lower else np.triu(left)
    if unit_diagonal:
        triangle[..., np.arange(a.shape[-1]), np.arange(a.shape[-1])] = 1
    if trans in (1, 2, "T", "C"):
        triangle = triangle.swapaxes(-1, -2)
    result = _solved(np.linalg.solve, [triangle, right], b.shape)
    if overwrite_b:
        b._store(result._data.astype(b.dtype))
        return b
    return result


def seterr(*, divide=None, over=None, under=None, invalid=None, linalg=None):
    """As cupyx.seterr: only `linalg` can be set."""
    if any(value is not None for value in (divide, over, under, invalid)):
        raise Refused("of the error state only linalg, 'ignore' or 'raise', can be set")
    old = geterr()
    if linalg is not None:
        if linalg not in ("ignore", "raise"):
            raise Refused("of the error state only linalg, 'ignore' or 'raise', can be set")
        machine().linalg_errors = linalg
    return old


def geterr():
    return {"divide": None, "over": None, "under": None, "invalid": None, "linalg": machine().linalg_errors}


@contextlib.contextmanager
def errstate(*, divide=None, over=None, under=None, invalid=None, linalg=None):
    old = seterr(divide=divide, over=over, under=under, invalid=invalid, linalg=linalg)
    try:
        yield
    finally:
        seterr(**old)


EXPORTED = (cholesky, inv, solve, eigh, eigvalsh, norm, svd, qr, slogdet)
