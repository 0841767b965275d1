"""`Kernels` without a GPU: a stand-in for the few parts of CuPy that it uses, which sends launches to the emulator.

The real NVRTC compiles the kernels; the emulator runs the PTX and checks memory while it does. Arrays are NumPy arrays
that look like CuPy's; those made by `empty` know which of their numbers have been written. Under ``--device cuda`` a
`Card` takes the emulator's place.
"""

from types import SimpleNamespace

import cuda_device
import numpy as np
import pytest
from emulator.ptx import Buffer, SparseBuffer, launch, load_program
from emulator.toolchain import compile_ptx, why_missing

from gpusoftmax.kernels import launches
from gpusoftmax.kernels.cuda import Kernels

NO_NVRTC = why_missing()
ALIGNED_BYTES = 256  # CuPy's allocations


class DeviceArray(np.ndarray):
    """A NumPy array that looks to `Kernels` like an array on the device; `valid` flags what is initialised, or None."""

    valid = None

    @property
    def data(self):
        return SimpleNamespace(ptr=self.__array_interface__["data"][0])


class GiantArray:
    """A matrix of any size of which only the touched pages exist; values come from `fill(element numbers)`."""

    ndim = 2
    data = SimpleNamespace(ptr=0)
    valid = None

    def __init__(self, shape, dtype, fill=None):
        _need_emulator()
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.itemsize = self.dtype.itemsize
        self.strides = (shape[1] * self.itemsize, self.itemsize)
        self.flags = SimpleNamespace(c_contiguous=True)
        self.buffer = SparseBuffer(shape[0] * shape[1], self.dtype, fill)


class StretchedArray:
    """A matrix whose rows lie `row_bytes` apart as a kernel sees them; touching what lies between is a fault."""

    ndim = 2
    data = SimpleNamespace(ptr=0)

    def __init__(self, array, row_bytes):
        _need_emulator()
        wide = np.zeros((len(array), launches.padded(array.shape[1], array.itemsize)), array.dtype)
        self.array = wide[
            :, : array.shape[1]
        ]  # the emulator moves 16 bytes at once: real rows start at multiples of it
        self.array[...] = array
        self.shape, self.dtype, self.itemsize = array.shape, array.dtype, array.itemsize
        self.strides = (row_bytes, array.itemsize)
        self.flags = SimpleNamespace(c_contiguous=False)
        self.buffer = Buffer(self.array, row_stride=row_bytes)


def _aligned(shape, dtype):
    dtype = np.dtype(dtype)
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(n_bytes + ALIGNED_BYTES, "u1")
    start = -memory.__array_interface__["data"][0] % ALIGNED_BYTES
    return memory[start : start + n_bytes].view(dtype).reshape(shape).view(DeviceArray)


def device(array):
    """Return a copy of an array as if on the device; None stays None."""
    if array is None:
        return None
    copy = _aligned(np.shape(array), np.asarray(array).dtype)
    copy[...] = array
    return copy


def empty(shape, dtype="f8"):
    """Return an uninitialised array: a kernel that reads it before writing it is at fault."""
    array = _aligned(shape, dtype)
    array.view("u1")[...] = 0xFF  # NaN in every float
    array.valid = np.zeros(shape, bool)
    return array


class Emulation:
    """What `Kernels` needs of CuPy, for one architecture.

    Parameters
    ----------
    arch : str
        Virtual architecture that NVRTC compiles for.
    reverse_blocks, threads_at_once : bool, int
        Order in which blocks run, and how many run together: results must not depend on it.
    blocks : sequence of int, optional
        Run these blocks only.
    edit : callable, optional
        Changes the source before it is compiled.
    names : tuple of str
        Name expressions to compile together with each other, which is faster than one by one.
    issue_limit : int
        Instructions after which a kernel counts as hanging.
    """

    def __init__(self, arch="compute_90", **options):
        self.arch = arch
        self.options = SimpleNamespace(
            **{"reverse_blocks": False, "threads_at_once": 4096, "blocks": None, "edit": None, "names": ()}
            | {"issue_limit": 2_000_000, "missing_shared": 0}
            | options
        )
        self.launched = []

    def RawModule(self, code, options, name_expressions):  # noqa: N802 - CuPy's name
        """Compile like CuPy; the options must be what the emulator's toolchain adds."""
        assert options == ("--std=c++17",)
        source = code if self.options.edit is None else self.options.edit(code)
        together = [name for name in self.options.names if template(name) + "(" in code]
        names = tuple(dict.fromkeys((*together, *name_expressions)))
        compiled = compile_ptx(source, names, self.arch, ("-lineinfo",))
        return SimpleNamespace(get_function=lambda name: _Function(self, compiled.ptx, compiled.symbols[name]))


def template(name):
    return name.split("<", maxsplit=1)[0]


class _Function:
    """A compiled kernel."""

    def __init__(self, emulation, ptx, symbol):
        self.emulation, self.ptx, self.symbol = emulation, ptx, symbol
        self.max_dynamic_shared_size_bytes = (
            48 * 1024 - load_program(ptx, symbol).static_bytes
        )  # what CUDA gives unasked

    def __call__(self, grid, block, args, shared_mem=0):
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        options, buffers = self.emulation.options, {}
        parameters = load_program(self.ptx, self.symbol).parameters
        bound = [_bind(arg, p, buffers) for arg, p in zip(args, parameters, strict=True)]
        order = options.blocks
        if order is None and options.reverse_blocks:
            order = range(grid[0])[::-1]
        self.emulation.launched.append(self.symbol)
        launch(
            self.ptx,
            self.symbol,
            grid,
            block,
            bound,
            max(0, shared_mem - options.missing_shared),
            order=order,
            threads_at_once=options.threads_at_once,
            issue_limit=options.issue_limit,
        )


def _bind(arg, parameter, buffers):
    """Return an argument as the emulator takes it; an array given twice is one buffer."""
    if arg is None:
        return None
    if isinstance(arg, GiantArray | StretchedArray):
        return arg.buffer
    if isinstance(arg, DeviceArray):
        return buffers.setdefault(id(arg), Buffer(arg.view(np.ndarray), arg.valid))
    assert isinstance(arg, np.generic), f"{type(arg)}: CuPy would pass a Python number as 64 bits"
    assert arg.nbytes == parameter.nbytes, f"{type(arg)} for .{parameter.kind}"
    return arg


def kernels(arch="compute_90", **options):
    """Return `Kernels` that run in the emulator, or on a real card, which has an architecture of its own."""
    if cuda_device.is_real:
        if options:
            _need_emulator()
        return Kernels(Card())
    return Kernels(Emulation(arch, **options))


def _need_emulator():
    if cuda_device.is_real:
        pytest.skip("needs the emulator")


class Card:
    """What `Kernels` needs of CuPy, on a real device: arrays go there before a launch and come back after it."""

    def RawModule(self, **options):  # noqa: N802 - CuPy's name
        import cupy

        module = cupy.RawModule(**options)
        return SimpleNamespace(get_function=lambda name: _OnCard(module.get_function(name)))


class _OnCard:
    """A kernel of a real device."""

    def __init__(self, function):
        object.__setattr__(self, "function", function)

    def __setattr__(self, name, value):
        setattr(self.function, name, value)

    def __call__(self, grid, block, args, shared_mem=0):
        import cupy

        memory = {}

        def place(arg):
            if not isinstance(arg, DeviceArray):
                return arg
            root = arg
            while isinstance(root.base, np.ndarray):
                root = root.base
            if id(root) not in memory:
                memory[id(root)] = root, cupy.asarray(np.asarray(root))
            offset = _address(arg) - _address(root)
            return cupy.ndarray(arg.shape, arg.dtype, memory[id(root)][1].data + offset, arg.strides)

        self.function(grid, block, tuple(place(arg) for arg in args), shared_mem=shared_mem)
        for root, on_card in memory.values():
            root[...] = cupy.asnumpy(on_card)


def _address(array):
    return array.__array_interface__["data"][0]
