"""`cupy.ndarray`: device memory with a shape.

Nothing leaves the device without `get` or `item`; nothing that no one wrote can be read; no NumPy array
takes part in an expression.
"""

import numpy as np

from emulator.ptx import Fault

from .errors import ImplicitTransfer, Refused
from .memory import Allocation, MemoryPointer, alloc, is_pinned
from .state import machine
from .streams import touch

NO_TRANSFER = "implicit device-to-host transfer; use .get()"


def _refuse(self, *args, **kwargs):
    raise ImplicitTransfer(NO_TRANSFER)


class Flags:
    """As cupy.ndarray.flags, which has fewer of them than NumPy's."""

    def __init__(self, flags, owndata):
        self.c_contiguous, self.f_contiguous, self.owndata = flags.c_contiguous, flags.f_contiguous, owndata
        self.fnc, self.forc = flags.fnc, flags.forc

    def __getitem__(self, name):
        return getattr(self, {"C_CONTIGUOUS": "c_contiguous", "F_CONTIGUOUS": "f_contiguous"}[name])


class ndarray:  # noqa: N801 - CuPy's name
    """As cupy.ndarray."""

    __hash__ = None
    __array_priority__ = 100

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C"):
        shape = (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(int(n) for n in shape)
        kind = np.dtype(dtype)
        if kind.kind not in "biufc":
            raise ValueError(f"Unsupported dtype {kind}")
        if any(n < 0 for n in shape):
            raise ValueError("Negative dimensions are not allowed")
        if strides is None:
            count, reach = 1, [0] * len(shape)
            for axis in reversed(range(len(shape))) if order in (None, "C") else range(len(shape)):
                reach[axis] = count * kind.itemsize
                count *= shape[axis]
            strides = tuple(reach)
        memptr = alloc(int(np.prod(shape, dtype=object)) * kind.itemsize) if memptr is None else memptr
        self._block: Allocation = memptr.mem
        self._set(memptr.mem.view(memptr._offset, shape, kind, strides))

    def _set(self, data):
        self._data = data
        self._valid = self._block.flags_of(data)

    @classmethod
    def _view(cls, block, data):
        self = object.__new__(cls)
        self._block = block
        self._set(data)
        return self

    # ---- shape and place ----------------------------------------------------------------------

    dtype = property(lambda self: self._data.dtype)
    ndim = property(lambda self: self._data.ndim)
    size = property(lambda self: self._data.size)
    nbytes = property(lambda self: self._data.nbytes)
    itemsize = property(lambda self: self._data.itemsize)
    strides = property(lambda self: self._data.strides)
    flags = property(lambda self: Flags(self._data.flags, self.base is None))
    T = property(lambda self: self.transpose())
    mT = property(lambda self: self.swapaxes(-1, -2))  # noqa: N815
    base = property(lambda self: None if self._data.nbytes == self._block.nbytes else self)

    @property
    def shape(self):
        return self._data.shape

    @property
    def _offset(self):
        if not self._data.size:
            return 0
        return self._data.__array_interface__["data"][0] - self._block.data.__array_interface__["data"][0]

    @property
    def data(self):
        return MemoryPointer(self._block, self._offset)

    @property
    def device(self):
        from .devices import Device

        return Device(self._block.device)

    @property
    def __cuda_array_interface__(self):
        strides = None if self._data.flags.c_contiguous else self.strides
        stream = machine().stream
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "descr": self.dtype.descr,
            "stream": stream.ptr or 1,
            "version": 3,
            "strides": strides,
            "data": (self.data.ptr if self.size else 0, False),
        }

    def __dlpack_device__(self):
        return 2, self._block.device  # kDLCUDA

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        from .dlpack import export

        return export(self, stream, dl_device, copy)

    # ---- what a host must not do by accident --------------------------------------------------

    __float__ = __int__ = __bool__ = __index__ = __iter__ = __complex__ = tolist = __reduce_ex__ = _refuse
    __array_function__ = tobytes = dump = dumps = tofile = _refuse

    def __array__(self, *args, **kwargs):
        raise ImplicitTransfer("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        """A NumPy scalar on the left of an operator arrives here; anything else is np.f(x) on the host."""
        operator = OPERATORS.get(ufunc.__name__)
        others = [x for x in inputs if not isinstance(x, ndarray)]
        if method == "__call__" and not kwargs and operator and all(np.ndim(x) == 0 for x in others):
            return operate(ufunc, *(x if isinstance(x, (ndarray, np.generic)) else x[()] for x in inputs))
        if any(isinstance(x, np.ndarray) for x in others):
            raise TypeError(f"Unsupported type {np.ndarray}")
        raise ImplicitTransfer(f"numpy.{ufunc.__name__} of a device array; use cupy's")

    def __len__(self):
        return len(self._data)

    def __repr__(self):
        return f"<device array {self.shape} {self.dtype}>"

    __str__ = __format__ = lambda self, *spec: repr(self)

    # ---- reading and writing ------------------------------------------------------------------

    def _read(self):
        """Return the values for an operation of the current stream."""
        self._check_device()
        if not self._valid.all():
            raise Fault("uninitialised", f"an array of shape {self.shape} is read before it is written")
        touch(self._block, self._data, False)
        return self._data

    def _store(self, value):
        self._check_device()
        touch(self._block, self._data, True)
        self._data[...] = value
        self._valid[...] = True

    def _check_device(self):
        here = machine().device
        if self._block.device != here:
            raise ValueError(
                "Array device must be same as the current device: "
                f"array device = {self._block.device} while current = {here}"
            )

    def get(self, stream=None, order="C", out=None, blocking=True):
        here = machine()
        stream = here.stream if stream is None else stream
        if out is not None:
            self._check_out(out)
        elif not blocking:
            raise Refused("get(blocking=False) without out= gives memory that is not ready")
        with stream:
            stream._begin()
            values = np.array(self._read(), order=order if order in "CF" else "C")
        here.counters.transfers += 1
        here.counters.transferred_bytes += values.nbytes
        if blocking:
            stream.synchronize()
        if out is None:
            return values
        if blocking:
            out[...] = values
        else:
            _poison(out)  # nothing has arrived yet
            stream._pending.append(lambda: out.__setitem__(..., values))
        return out

    def _check_out(self, out):
        if not isinstance(out, np.ndarray):
            raise TypeError(f"Only numpy.ndarray can be obtained from cupy.ndarray, not {type(out)}")
        if out.dtype != self.dtype:
            raise TypeError(f"{self.dtype} array cannot be obtained from {out.dtype} array")
        if out.shape != self.shape:
            raise ValueError(f"Shape mismatch. Expected shape: {self.shape}, actual shape: {out.shape}")
        if not (out.flags.c_contiguous or out.flags.f_contiguous):
            raise RuntimeError("`out` cannot be specified when copying to non-contiguous ndarray")

    def item(self):
        values = self.get()
        if values.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return values.item()

    def set(self, arr, stream=None):
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if arr.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not (self.flags.c_contiguous or self.flags.f_contiguous):
            raise RuntimeError("Cannot set to non-contiguous array")
        here = machine()
        stream = here.stream if stream is None else stream
        with stream:
            stream._begin()
            self._store(arr)
        here.counters.uploads += 1
        here.counters.uploaded_bytes += arr.nbytes
        if is_pinned(arr):
            before = arr.tobytes()

            def arrived():
                if arr.tobytes() != before:
                    raise Fault("race", "a pinned source changed before its copy was complete")

            stream._pending.append(arrived)

    # ---- indexing -----------------------------------------------------------------------------

    def _plain_key(self, key):
        """Split a key into one without device arrays, and whether it has some (their host values)."""
        keys = key if isinstance(key, tuple) else (key,)
        fancy = False
        plain = []
        for given in keys:
            part = given
            if isinstance(part, (np.ndarray, list, np.bool_, bool)):
                raise TypeError("index with device arrays; a NumPy array or list would be uploaded each time")
            if isinstance(part, ndarray):
                fancy = True
                if part.dtype.kind not in "iub":
                    raise IndexError("arrays used as indices must be of integer or boolean type")
                part = part._read()
            plain.append(part)
        return tuple(plain), fancy

    def _check_fancy(self, key):
        """CuPy wraps indices out of bounds around, silently; here they are a Fault."""
        axis = 0
        for part in key:
            if isinstance(part, np.ndarray):
                if part.dtype.kind == "b":
                    raise Refused("a boolean mask waits for the number of its elements; use where")
                length = self.shape[axis]
                if part.size and (part.min() < -length or part.max() >= length):
                    raise Fault("bounds", f"index out of bounds for axis {axis} of size {length}; CuPy would wrap it")
            if part is Ellipsis:
                axis += self.ndim - sum(1 for k in key if k is not None and k is not Ellipsis)
            elif part is not None:
                axis += 1

    def __getitem__(self, key):
        started()
        key, fancy = self._plain_key(key)
        if fancy:
            self._check_fancy(key)
            return new(self._read()[key])
        return self._view(self._block, self._data[key if Ellipsis in key else (*key, ...)])

    def __setitem__(self, key, value):
        started()
        key, fancy = self._plain_key(key)
        value = host(value)
        if fancy and any(isinstance(part, np.ndarray) and part.dtype.kind == "b" for part in key):
            if np.ndim(value):
                raise Refused("x[mask] = array waits for the number of elements; use where")
        elif fancy:
            self._check_fancy(key)
            self._check_duplicates(key, value)
        self._check_device()
        view = self._data if fancy else self._data[key if Ellipsis in key else (*key, ...)]
        touch(self._block, view, True)
        self._data[key] = value
        self._valid[key] = True

    def _check_duplicates(self, key, value):
        """Two different values for one element: which one stays is undefined on a GPU."""
        numbers = np.arange(self.size).reshape(self.shape)[key]
        values = np.broadcast_to(value, numbers.shape).ravel()
        order = np.argsort(numbers, axis=None, kind="stable")
        numbers, values = numbers.ravel()[order], values[order]
        same = numbers[1:] == numbers[:-1]
        if (same & (values[1:] != values[:-1])).any():
            raise Fault("race", "an index occurs twice with different values")

    def take(self, indices, axis=None, out=None):
        from .functions import take

        return take(self, indices, axis, out)

    # ---- other shapes -------------------------------------------------------------------------

    def reshape(self, *shape, order="C", copy=None):
        started()
        shape = shape[0] if len(shape) == 1 else shape
        data = self._data.reshape(shape, order=order)
        if data.size and not np.shares_memory(data, self._data):
            if copy is False:
                raise ValueError("Unable to avoid creating a copy while reshaping.")
            machine().counters.silent_copies += 1
            self._read()
            return new(data)
        return new(data) if copy else self._view(self._block, data)

    def ravel(self, order="C"):
        return self.reshape(-1, order="C" if order in "KA" else order)

    def flatten(self, order="C"):
        started()
        return new(self._read().flatten(order))

    def transpose(self, *axes):
        axes = axes[0] if len(axes) == 1 else axes
        return self._view(self._block, self._data.transpose(axes or None))

    def swapaxes(self, axis1, axis2):
        return self._view(self._block, self._data.swapaxes(axis1, axis2))

    def squeeze(self, axis=None):
        return self._view(self._block, self._data.squeeze(axis))

    def diagonal(self, offset=0, axis1=0, axis2=1):
        block = self._data
        view = np.lib.stride_tricks.as_strided(block, block.shape, block.strides)
        result = np.diagonal(view, offset, axis1, axis2)
        return self._view(self._block, np.lib.stride_tricks.as_strided(result, result.shape, result.strides))

    def view(self, dtype=None, type=None):  # noqa: A002
        return self._view(self._block, self._data if dtype is None else self._data.view(np.dtype(dtype)))

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        kind = np.dtype(dtype)
        if casting is not None and not np.can_cast(self.dtype, kind, casting):
            raise TypeError(f"Cannot cast array data from {self.dtype} to {kind} according to the rule '{casting}'")
        if not copy and kind == self.dtype:
            return self
        started()
        return new(self._read().astype(kind, order=order))

    def copy(self, order="C"):
        started()
        return new(self._read().copy(order))

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    def fill(self, value):
        started()
        self._store(host(value))

    # ---- operators without a pattern; the others are made below --------------------------------

    def __matmul__(self, other):
        from .products import matmul

        return matmul(self, other) if isinstance(other, ndarray) else NotImplemented


def _poison(out):
    """Fill host memory whose copy is still under way with not-a-number."""
    (out if out.flags.c_contiguous else out.T).reshape(-1).view("u1")[...] = 0xFF


def started():
    """Enqueue an operation on the current stream."""
    machine().stream._begin()


def host(value):
    """Return the NumPy value of an operand of a device expression."""
    if isinstance(value, ndarray):
        return value._read()
    if isinstance(value, (np.ndarray, list, tuple)):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def new(values):
    """Return a new device array with these values (of one already started operation)."""
    values = np.asarray(values)
    fortran = values.flags.f_contiguous and not values.flags.c_contiguous
    result = ndarray(values.shape, values.dtype, order="F" if fortran else "C")
    result._store(values)
    return result


def operate(function, *operands):
    """Run an elementwise function of device arrays and scalars."""
    started()
    values = [host(operand) for operand in operands]
    with np.errstate(all="ignore"):
        return new(function(*values))


OPERATORS = {
    "add": "add",
    "subtract": "sub",
    "multiply": "mul",
    "divide": "truediv",
    "floor_divide": "floordiv",
    "remainder": "mod",
    "power": "pow",
    "bitwise_and": "and",
    "bitwise_or": "or",
    "bitwise_xor": "xor",
    "left_shift": "lshift",
    "right_shift": "rshift",
}
COMPARISONS = {
    "less": "lt",
    "less_equal": "le",
    "greater": "gt",
    "greater_equal": "ge",
    "equal": "eq",
    "not_equal": "ne",
}


def _install_operators():
    def binary(function):
        return lambda self, other: operate(function, self, other)

    def reflected(function):
        return lambda self, other: operate(function, other, self)

    def in_place(function):
        def method(self, other):
            started()
            values = self._read(), host(other)
            with np.errstate(all="ignore"):
                result = function(*values, out=np.empty_like(self._data), casting="same_kind")
            self._store(result)
            return self

        return method

    for name, operator in OPERATORS.items():
        function = getattr(np, name)
        setattr(ndarray, f"__{operator}__", binary(function))
        setattr(ndarray, f"__r{operator}__", reflected(function))
        setattr(ndarray, f"__i{operator}__", in_place(function))
    for name, operator in COMPARISONS.items():
        setattr(ndarray, f"__{operator}__", binary(getattr(np, name)))
    for name, operator in {"negative": "neg", "absolute": "abs", "invert": "invert", "positive": "pos"}.items():
        function = getattr(np, name)
        setattr(ndarray, f"__{operator}__", lambda self, function=function: operate(function, self))


_install_operators()
OPERATORS.update(COMPARISONS)
