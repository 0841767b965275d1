"""Functions of the `cupy` namespace: creation, elementwise, reductions, sorting, joining.

Most are NumPy's function of the same name behind three checks: operands live on the device, the call fits
CuPy's signature (of the installed CuPy, where there is one), and `out=` is a device array.
"""

import inspect

import numpy as np

from emulator.ptx import Fault

from . import real
from .array import host, ndarray, new, started
from .errors import Refused
from .memory import is_pinned
from .state import machine

# ---- creation ---------------------------------------------------------------------------------


def empty(shape, dtype=float, order="C"):
    return ndarray(shape, dtype, order=order)


def _filled(shape, dtype, order, value):
    started()
    result = ndarray(shape, dtype, order=order)
    result._store(value)
    return result


def zeros(shape, dtype=float, order="C"):
    return _filled(shape, dtype, order, 0)


def ones(shape, dtype=float, order="C"):
    return _filled(shape, dtype, order, 1)


def full(shape, fill_value, dtype=None, order="C"):
    if dtype is None:
        dtype = fill_value.dtype if isinstance(fill_value, ndarray) else np.asarray(fill_value).dtype
    started()
    return _filled(shape, dtype, order, host(fill_value))


def _like(a, dtype, order, shape, value):
    """Return an array of the layout of `a`, which CuPy chooses as NumPy does: axes in another order stay so."""
    like = np.empty_like(a._data, dtype, order, shape=shape)
    result = ndarray(like.shape, like.dtype, strides=like.strides)
    if value is not None:
        started()
        result._store(host(value))
    return result


def empty_like(prototype, dtype=None, order="K", subok=None, shape=None):
    return _like(prototype, dtype, order, shape, None)


def zeros_like(a, dtype=None, order="K", subok=None, shape=None):
    return _like(a, dtype, order, shape, 0)


def ones_like(a, dtype=None, order="K", subok=None, shape=None):
    return _like(a, dtype, order, shape, 1)


def full_like(a, fill_value, dtype=None, order="K", subok=None, shape=None):
    return _like(a, dtype, order, shape, fill_value)


def eye(N, M=None, k=0, dtype=float, order="C"):
    started()
    return new(np.eye(N, M, k, dtype, order))


def identity(n, dtype=float):
    return eye(n, dtype=dtype)


def arange(start, stop=None, step=1, dtype=None):
    started()
    return new(np.arange(0 if stop is None else start, start if stop is None else stop, step, dtype))


def linspace(start, stop, num=50, endpoint=True, retstep=False, dtype=None, axis=0):
    if retstep:
        raise Refused("linspace(retstep=True)")
    started()
    return new(np.linspace(start, stop, num, endpoint, False, dtype, axis))


# ---- to the device and back -------------------------------------------------------------------


def _upload(values, order, source, blocking):
    result = ndarray(values.shape, values.dtype, order="F" if order == "F" else "C")
    pinned = isinstance(source, np.ndarray) and is_pinned(source) and source.dtype == values.dtype and not blocking
    result.set(source if pinned else values)
    return result


def _foreign(a):
    """A device array made elsewhere from memory of this pool."""
    from .memory import MemoryPointer

    interface = a.__cuda_array_interface__
    block, offset = machine().pool.find(interface["data"][0], 1)
    return ndarray(interface["shape"], interface["typestr"], MemoryPointer(block, offset), interface.get("strides"))


def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    if isinstance(obj, ndarray):
        kind = obj.dtype if dtype is None else np.dtype(dtype)
        wrong_order = {"C": not obj.flags.c_contiguous, "F": not obj.flags.f_contiguous}.get(order, False)
        result = obj.astype(kind, order=order or "K") if copy or kind != obj.dtype or wrong_order else obj
    elif hasattr(obj, "__cuda_array_interface__"):
        return array(_foreign(obj), dtype, copy, order, subok, ndmin)
    else:
        if isinstance(obj, (list, tuple)) and any(isinstance(part, ndarray) for part in obj):
            return stack([array(part, dtype, False) for part in obj])
        machine().check_driver()
        values = np.asarray(obj, dtype, order="F" if order == "F" else "C")
        if values.dtype.kind not in "biufc":
            raise ValueError(f"Unsupported dtype {values.dtype}")
        result = _upload(values, order, obj, blocking)
    if ndmin > result.ndim:
        result = result.reshape((1,) * (ndmin - result.ndim) + result.shape)
    return result


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    return array(a, dtype, bool(copy), order or "K", blocking=blocking)


def asanyarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    return asarray(a, dtype, order, copy=copy, blocking=blocking)


def ascontiguousarray(a, dtype=None):
    result = array(a, dtype, False, "C")
    return result if result.ndim else result.reshape(1)


def asfortranarray(a, dtype=None):
    return array(a, dtype, False, "F")


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    if isinstance(a, ndarray):
        return a.get(stream, order, out, blocking)
    values = np.asarray(a, order=order if order in ("C", "F") else None)
    if out is None:
        return values
    out[...] = values
    return out


def copyto(dst, src, casting="same_kind", where=None):
    if not isinstance(dst, ndarray):
        raise TypeError(f"dst must be a device array, not {type(dst)}")
    started()
    values = host(src)
    kind = values.dtype if isinstance(src, ndarray) else np.result_type(values, dst.dtype)
    if not np.can_cast(kind, dst.dtype, casting):
        raise TypeError(f"Cannot cast {kind} to {dst.dtype} in {casting} casting mode")
    if where is None:
        dst._store(values)
    else:
        result = dst._data.copy()
        np.copyto(result, values, casting, host(where))
        dst._data[...] = result
        dst._valid[host(where) if np.ndim(host(where)) else ...] = True


def copy(a, order="K"):
    return a.copy()


# ---- shapes -----------------------------------------------------------------------------------


def reshape(a, newshape, order="C", *, copy=None):
    return a.reshape(newshape, order=order, copy=copy)


def ravel(a, order="C"):
    return a.ravel(order)


def transpose(a, axes=None):
    return a.transpose(axes) if axes is not None else a.transpose()


def _view_function(name):
    numpy_function = getattr(np, name)

    def function(a, *args, **kwargs):
        if not isinstance(a, ndarray):
            raise TypeError(f"Unsupported type {type(a)}")
        _check_call(name, (a, *args), kwargs)
        view = numpy_function(a._data, *args, **kwargs)
        if a.size and view.size and not np.shares_memory(view, a._data):
            raise Refused(f"{name} would copy where CuPy gives a view")
        return ndarray._view(a._block, np.lib.stride_tricks.as_strided(view, view.shape, view.strides))

    function.__name__ = name
    return function


def broadcast_to(array, shape):
    view = np.broadcast_to(array._data, shape)
    return ndarray._view(array._block, np.lib.stride_tricks.as_strided(view, view.shape, view.strides))


def broadcast_arrays(*args):
    shape = np.broadcast_shapes(*(a.shape for a in args))
    return [broadcast_to(a, shape) for a in args]


def split(ary, indices_or_sections, axis=0):
    axis %= ary.ndim
    parts = np.split(ary._data, indices_or_sections, axis)
    return [ndarray._view(ary._block, part) for part in parts]


# ---- everything that is NumPy's function of values --------------------------------------------


def _check_call(name, args, kwargs):
    """Raise TypeError when the installed CuPy's function could not be called like this."""
    signature = real.signature(name)
    if signature is not None:
        signature.bind(*args, **kwargs)


def into(out, values):
    """Store a result; without `out` in a new array."""
    if out is None:
        return new(values)
    if not isinstance(out, ndarray):
        raise TypeError(f"out must be a device array, not {type(out)}")
    out._store(values)
    return out


def _space(out):
    """Host memory of the layout of `out`, so that NumPy checks shape and casting."""
    if out is None:
        return None
    if not isinstance(out, ndarray):
        raise TypeError(f"out must be a device array, not {type(out)}")
    return np.empty(out.shape, out.dtype)


def _device_operands(name, args):
    if not any(isinstance(arg, ndarray) for arg in args):
        raise TypeError(f"cupy.{name} without a device array: {', '.join(str(type(arg)) for arg in args)}")


def _ufunc(name):
    numpy_function = getattr(np, name)

    def function(*args, **kwargs):
        unknown = kwargs.keys() - {"out", "dtype", "casting"}
        if unknown:
            raise TypeError(f"cupy.{name} got an unexpected keyword argument {sorted(unknown)}")
        out = kwargs.pop("out", None)
        if len(args) > numpy_function.nin:
            args, out = args[: numpy_function.nin], args[numpy_function.nin]
        out = out[0] if isinstance(out, tuple) else out
        _device_operands(name, args)
        started()
        values = [host(arg) for arg in args]
        with np.errstate(all="ignore"):
            return into(out, numpy_function(*values, out=_space(out), **kwargs))

    function.__name__ = name
    return function


def _plain(name, transfers=0):
    """A function of one array; `transfers` says how often CuPy's synchronises with the host in it."""
    numpy_function = getattr(np, name)

    def function(a, *args, **kwargs):
        _check_call(name, (a, *args), kwargs)
        parts = a if isinstance(a, (list, tuple)) else (a,)
        _device_operands(name, parts)
        started()
        machine().counters.transfers += transfers
        values = [host(part) for part in parts]
        out = kwargs.pop("out", None)
        if out is not None:
            kwargs["out"] = _space(out)
        rest = [host(arg) if isinstance(arg, ndarray) else arg for arg in args]
        named = {key: host(arg) if isinstance(arg, ndarray) else arg for key, arg in kwargs.items()}
        with np.errstate(all="ignore"):
            result = numpy_function(values if isinstance(a, (list, tuple)) else values[0], *rest, **named)
        if isinstance(result, tuple):
            return tuple(new(part) for part in result)
        return into(out, result)

    function.__name__ = name
    return function


def where(condition, x=None, y=None):
    if x is None or y is None:
        raise Refused("where(condition) waits for the number of its elements")
    _device_operands("where", (condition, x, y))
    started()
    return new(np.where(host(condition), host(x), host(y)))


def clip(a, a_min, a_max, out=None):
    _device_operands("clip", (a,))
    started()
    return into(out, np.clip(host(a), host(a_min), host(a_max), out=_space(out)))


def take(a, indices, axis=None, out=None):
    _device_operands("take", (a,))
    started()
    chosen = host(indices)
    length = a.size if axis is None else a.shape[axis]
    if np.size(chosen) and (np.min(chosen) < -length or np.max(chosen) >= length):
        raise Fault("bounds", f"take: index out of bounds for {length} elements; CuPy would wrap it")
    return into(out, np.take(host(a), chosen, axis, out=_space(out)))


def array_equal(a1, a2, equal_nan=False):
    started()
    return new(np.array(np.array_equal(host(a1), host(a2), equal_nan)))


def allclose(a, b, rtol=1e-5, atol=1e-8, equal_nan=False):
    started()
    return new(np.array(np.allclose(host(a), host(b), rtol, atol, equal_nan)))


def bincount(x, weights=None, minlength=None):
    """Two synchronisations: for the sign and the size."""
    started()
    machine().counters.transfers += 2
    values = host(x)
    if values.dtype.kind not in "iu":
        raise TypeError("x must be int array")
    return new(np.bincount(values, None if weights is None else host(weights), minlength or 0))


def searchsorted(a, v, side="left", sorter=None):
    _device_operands("searchsorted", (a, v))
    started()
    return new(np.searchsorted(host(a), host(v), side, None if sorter is None else host(sorter)))


def isin(element, test_elements, assume_unique=False, invert=False):
    started()
    return new(np.isin(host(element), host(test_elements), assume_unique, invert))


def put_along_axis(arr, indices, values, axis):
    started()
    result = arr._read().copy()
    np.put_along_axis(result, host(indices), host(values), axis)
    arr._store(result)


def result_type(*arrays_and_dtypes):
    return np.result_type(*(a.dtype if isinstance(a, ndarray) else a for a in arrays_and_dtypes))


def can_cast(from_, to, casting="safe"):
    return np.can_cast(from_.dtype if isinstance(from_, ndarray) else from_, to, casting)


def shares_memory(a, b, max_work=None):
    return a._block is b._block and bool(np.shares_memory(a._data, b._data))


def may_share_memory(a, b, max_work=None):
    return a._block is b._block and bool(np.may_share_memory(a._data, b._data))


def get_array_module(*args):
    import cupy

    return cupy if any(isinstance(arg, ndarray) for arg in args) else np


UFUNCS = [
    "abs", "absolute", "add", "arctan", "arctan2", "bitwise_and", "bitwise_or", "bitwise_xor", "cbrt", "ceil",
    "conjugate", "copysign", "cos", "cosh", "deg2rad", "divide", "equal", "exp", "exp2", "expm1", "floor",
    "floor_divide", "fmax", "fmin", "fmod", "greater", "greater_equal", "hypot", "invert", "isfinite", "isinf",
    "isnan", "ldexp", "left_shift", "less", "less_equal", "log", "log10", "log1p", "log2", "logaddexp",
    "logaddexp2", "logical_and", "logical_not", "logical_or", "logical_xor", "maximum", "minimum", "mod",
    "multiply", "negative", "nextafter", "not_equal", "positive", "power", "reciprocal", "remainder", "right_shift",
    "rint", "sign", "signbit", "sin", "sinh", "sqrt", "square", "subtract", "tan", "tanh", "true_divide", "trunc",
]  # fmt: skip
PLAIN = [
    "all", "amax", "amin", "any", "argmax", "argmin", "argpartition", "argsort", "concatenate", "count_nonzero",
    "cumprod", "cumsum", "diag", "diff", "flip", "hstack", "isclose", "max", "mean", "median", "min", "nan_to_num",
    "nanmax", "nanmin", "nansum", "partition", "prod", "ptp", "quantile", "repeat", "roll", "rollaxis", "sort",
    "stack", "std", "sum", "take_along_axis", "tile", "trace", "tril", "triu", "var", "vstack",
]  # fmt: skip
SYNCHRONISING = {"unique": 1, "nonzero": 1, "flatnonzero": 1}
VIEWS = ["atleast_1d", "atleast_2d", "diagonal", "expand_dims", "moveaxis", "squeeze", "swapaxes"]

FUNCTIONS = {
    **{name: _ufunc(name) for name in UFUNCS},
    **{name: _plain(name) for name in PLAIN},
    **{name: _plain(name, transfers) for name, transfers in SYNCHRONISING.items()},
    **{name: _view_function(name) for name in VIEWS},
}
stack = FUNCTIONS["stack"]
OWN = (
    empty, zeros, ones, full, empty_like, zeros_like, ones_like, full_like, eye, identity, arange, linspace, array,
    asarray, asanyarray, ascontiguousarray, asfortranarray, asnumpy, copyto, copy, reshape, ravel, transpose,
    broadcast_to, broadcast_arrays, split, where, clip, take, array_equal, allclose, bincount, searchsorted, isin,
    put_along_axis, result_type, can_cast, shares_memory, may_share_memory, get_array_module,
)  # fmt: skip
FUNCTIONS.update({function.__name__: function for function in OWN})


def _method(name):
    function = FUNCTIONS[name]

    def method(self, *args, **kwargs):
        return function(self, *args, **kwargs)

    method.__name__ = name
    return method


METHODS = (
    "all any argmax argmin argsort clip cumsum dot max mean min nonzero prod ptp repeat searchsorted std sum trace var"
)


def install_methods():
    for name in METHODS.split():
        setattr(ndarray, name, _method(name))


def parameters(function):
    """Names of the parameters of a function, for the comparison with CuPy's."""
    return list(inspect.signature(function).parameters)
