"""cupy.RawModule and cupy.RawKernel: the real NVRTC compiles, the PTX interpreter runs."""

import numpy as np

from emulator import toolchain
from emulator.ptx import Buffer, Fault, launch, load_program

from . import signatures
from .array import ndarray
from .errors import CompileException, Refused
from .memory import MemoryPointer
from .state import SHARED_DEFAULT, machine
from .streams import touch

OWN_TYPES = {int: "i8", float: "f8", bool: "?"}  # what CuPy passes for Python numbers
SAME_BITS = {(np.dtype("u2"), np.dtype("f2"))}  # (parameter, array): kernels without cuda_fp16.h take bit patterns


class RawKernel:
    """As cupy.RawKernel."""

    def __init__(
        self, code, name, options=(), backend="nvrtc", translate_cucomplex=False, *,
        enable_cooperative_groups=False, jitify=None,
    ):  # fmt: skip
        _check_options(options, backend)
        machine().check_driver()
        self._set_up(code, name, options, (name,))

    @classmethod
    def _of_module(cls, code, name, options, names):
        self = object.__new__(cls)
        self._set_up(code, name, options, names)
        return self

    def _set_up(self, code, name, options, names):
        self.name, self.code, self.options, self._facts = name, code, options, machine().facts[machine().device]
        compiled = _compile(code, names, self._facts, options)
        self._ptx, self._symbol = compiled.ptx, compiled.symbols[name]
        self._program = load_program(self._ptx, self._symbol)
        self._parameters = signatures.of_kernel(code, name)
        if len(self._parameters) != len(self._program.parameters):
            raise Refused(f"{name}: the parameters could not be read from the source")
        self.shared_size_bytes = self._program.static_bytes
        self._dynamic = SHARED_DEFAULT - self.shared_size_bytes

    max_threads_per_block = property(lambda self: self._program.max_threads)
    local_size_bytes = property(lambda self: self._program.local.nbytes)

    @property
    def max_dynamic_shared_size_bytes(self):
        return self._dynamic

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, nbytes):
        limit = self._facts.shared_limit - self.shared_size_bytes
        if not 0 <= nbytes <= limit:
            raise Fault("launch", f"{self.name}: {nbytes} bytes of dynamic shared memory, the device allows {limit}")
        self._dynamic = nbytes

    @property
    def attributes(self):
        return {
            "max_threads_per_block": self.max_threads_per_block,
            "shared_size_bytes": self.shared_size_bytes,
            "local_size_bytes": self.local_size_bytes,
            "max_dynamic_shared_size_bytes": self._dynamic,
        }

    def compile(self, log_stream=None):
        """Do nothing: the constructor has compiled."""

    def __call__(self, grid, block, args, *, shared_mem=0):
        if not (isinstance(grid, tuple) and isinstance(block, tuple) and isinstance(args, (tuple, list))):
            raise TypeError("grid and block must be tuples, args a tuple or list")
        if len(args) != len(self._parameters):
            raise TypeError(f"{self.name}: {len(args)} arguments for {len(self._parameters)} parameters")
        if shared_mem > self._dynamic:
            text = f"{shared_mem} bytes of dynamic shared memory; set max_dynamic_shared_size_bytes"
            raise Fault("launch", f"{self.name}: {text}")
        here = machine()
        if here.facts[here.device].architecture != self._facts.architecture:
            raise Fault("launch", f"{self.name} was compiled for another device")
        here.stream._begin()
        bound = [_Argument(self, index, arg) for index, arg in enumerate(args)]
        _share(bound)
        here.counters.launches += 1
        launch(self._ptx, self._symbol, grid, block, [argument.value for argument in bound], shared_mem)
        for argument in bound:
            argument.finish()


class _Argument:
    """A launch argument, checked against the C++ parameter."""

    def __init__(self, kernel, index, arg):
        parameter = kernel._parameters[index]
        self.where = f"{kernel.name}: argument {index} ({parameter.label})"
        self.array = self.flags = self.buffer = None
        if parameter.pointer:
            self.value = self._pointer(parameter, arg)
        else:
            self.value = self._scalar(kernel._program.parameters[index], parameter, arg)

    def _pointer(self, parameter, arg):
        if arg is None:
            return None
        if isinstance(arg, MemoryPointer):
            kind = parameter.dtype or np.dtype("u1")
            count = (arg.mem.nbytes - arg._offset) // kind.itemsize
            arg = ndarray(count, kind, arg)
        if not isinstance(arg, ndarray):
            raise TypeError(f"{self.where} needs a device array, not {type(arg)}")
        wanted = parameter.dtype  # comparing a dtype with None would compare it with float64
        if wanted is not None and wanted != arg.dtype and (wanted, arg.dtype) not in SAME_BITS:
            raise TypeError(f"{self.where} points to {parameter.dtype}, the array holds {arg.dtype}")
        arg._check_device()
        self.array, self.flags = arg, arg._valid.all(-1)
        self.buffer = Buffer(arg._data, self.flags)
        return self.buffer

    def _scalar(self, place, parameter, arg):
        if isinstance(arg, ndarray) or arg is None or (isinstance(arg, np.ndarray) and arg.dtype.names is None):
            raise TypeError(f"{self.where} needs a scalar, not {type(arg)}")
        own = np.dtype(OWN_TYPES.get(type(arg), getattr(arg, "dtype", None) or "V1"))
        if parameter.dtype is None:  # a struct
            if own.names is None or own.itemsize != place.nbytes:
                raise TypeError(f"{self.where} is a struct of {place.nbytes} bytes, the host passes {own}")
            return np.asarray(arg).tobytes()
        if own != parameter.dtype:
            raise TypeError(f"{self.where} is {parameter.dtype}, the host passes {own}; wrap it")
        return parameter.dtype.type(arg)

    def finish(self):
        """Hand validity back, and tell the streams what the kernel touched."""
        if self.array is None or not self.array.size:
            return
        self.array._valid[...] |= self.flags[..., np.newaxis]
        shadow = self.buffer.shadow
        if shadow.writer is not None:
            touch(self.array._block, self.array._data, True)
        elif shadow.log or shadow.reader is not None or shadow.read_only is not None:
            touch(self.array._block, self.array._data, False)


def _share(arguments):
    """Let pointers to one and the same array share a buffer: a kernel may work in place."""
    first = {}
    for argument in arguments:
        if argument.buffer is not None and argument.array.size:
            data = argument.array._data
            place = data.__array_interface__["data"][0], data.shape, data.strides, data.dtype
            argument.value = argument.buffer = first.setdefault(place, argument.buffer)


class RawModule:
    """As cupy.RawModule."""

    def __init__(
        self, *, code=None, path=None, options=(), backend="nvrtc", translate_cucomplex=False,
        enable_cooperative_groups=False, name_expressions=None, jitify=None,
    ):  # fmt: skip
        if (code is None) == (path is None):
            raise TypeError("Exactly one of `code` and `path` keyword arguments must be given.")
        if path is not None:
            raise Refused("the stand-in compiles source code only")
        _check_options(options, backend)
        self.code, self.options, self.backend = code, options, backend
        self.name_expressions = name_expressions
        self._names = tuple(name_expressions) if name_expressions is not None else None

    def compile(self, log_stream=None):
        machine().check_driver()
        facts = machine().facts[machine().device]
        _compile(self.code, self._names or (), facts, self.options)

    def get_function(self, name):
        machine().check_driver()
        names = (name,) if self._names is None else self._names
        if name not in names:
            raise KeyError(f"{name} was not given in name_expressions")
        return RawKernel._of_module(self.code, name, self.options, names)


def _compile(code, names, facts, options):
    try:
        return toolchain.compile_ptx(code, names, facts.architecture, options)
    except toolchain.CompileError as error:
        raise CompileException(str(error), code, "kernels.cu", options) from error


def _check_options(options, backend):
    if not isinstance(options, tuple):
        raise TypeError("options must be a tuple")
    if backend != "nvrtc":
        raise Refused("the stand-in has NVRTC only")
