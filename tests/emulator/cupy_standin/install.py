"""The tree of modules that `import cupy` finds while the stand-in is installed."""

import contextlib
import sys
import types

import numpy as np

from emulator import toolchain

from . import cublas, devices, dlpack, errors, functions, linalg, memory, modules, products, real, state, streams
from .array import ndarray

PREFIXES = ("cupy", "cupyx", "cupy_backends")
DTYPES = [
    "bool_", "complex64", "complex128", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8",
    "uint16", "uint32", "uint64", "intp", "dtype", "finfo", "iinfo", "inf", "nan", "pi", "e", "newaxis", "generic",
    "integer", "floating", "number", "inexact", "signedinteger", "unsignedinteger",
]  # fmt: skip


class _Module(types.ModuleType):
    """A module that says when it lacks something that CuPy has."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        path = f"{self.__name__}.{name}".split(".")
        if path[0] == "cupy" and real.lookup(".".join(path[1:])) is not None:
            raise errors.Refused(f"{'.'.join(path)} exists, but the stand-in does not have it")
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def _module(name, content):
    module = _Module(name)
    module.__dict__.update(content)
    module.__path__ = []
    return module


def _functions_of(module, *names):
    return {name: getattr(module, name) for name in names}


def _cupy():
    content = {name: getattr(np, name) for name in DTYPES}
    content |= functions.FUNCTIONS | {"ndarray": ndarray, "from_dlpack": dlpack.from_dlpack}
    content |= _functions_of(products, "matmul", "dot", "inner", "vdot", "outer", "tensordot", "einsum")
    content |= {
        "RawModule": modules.RawModule,
        "RawKernel": modules.RawKernel,
        "promote_types": np.promote_types,
        "is_available": devices.is_available,
        "get_default_memory_pool": lambda: state.machine().pool,
        "get_default_pinned_memory_pool": memory.PinnedMemoryPool,
        "__version__": getattr(real.cupy(), "__version__", "14.0.0"),
    }
    return _module("cupy", content)


def _cuda(tree):
    content = _functions_of(streams, "Stream", "Event", "get_current_stream", "get_elapsed_time")
    content |= _functions_of(memory, "MemoryPool", "PinnedMemoryPool", "MemoryPointer", "alloc", "alloc_pinned_memory")
    content |= _functions_of(devices, "Device", "get_device_id", "is_available")
    content |= {"get_cublas_handle": cublas.get_cublas_handle, "cublas": tree["cupy_backends.cuda.libs.cublas"]}
    return _module("cupy.cuda", content)


def _public(module):
    names = [name for name in vars(module) if name.startswith(("CUBLAS_", "gemm", "get", "set"))]
    return _functions_of(module, *names) | {"CUBLASError": errors.CUBLASError}


def module_tree():
    """Return {name: module} for everything below cupy, cupyx and cupy_backends."""
    tree = {
        "cupy_backends.cuda.libs.cublas": _module("cupy_backends.cuda.libs.cublas", _public(cublas)),
        "cupy_backends.cuda.api.runtime": _module("cupy_backends.cuda.api.runtime", devices.RUNTIME),
        "cupy.cuda.nvrtc": _module("cupy.cuda.nvrtc", {"getVersion": devices.compiler_version}),
        "cupy.cuda.runtime": _module("cupy.cuda.runtime", devices.RUNTIME),
        "cupy.cuda.device": _module(
            "cupy.cuda.device",
            {"get_cublas_handle": cublas.get_cublas_handle} | _functions_of(devices, "Device", "get_device_id"),
        ),
        "cupy.cuda.memory": _module(
            "cupy.cuda.memory",
            {"OutOfMemoryError": errors.OutOfMemoryError}
            | _functions_of(memory, "MemoryPool", "MemoryPointer", "alloc"),
        ),
        "cupy.cuda.stream": _module(
            "cupy.cuda.stream", _functions_of(streams, "Stream", "Event", "get_current_stream", "get_elapsed_time")
        ),
        "cupy.cuda.pinned_memory": _module("cupy.cuda.pinned_memory", _functions_of(memory, "alloc_pinned_memory")),
        "cupy.cuda.compiler": _module("cupy.cuda.compiler", {"CompileException": errors.CompileException}),
        "cupy.linalg": _module("cupy.linalg", {function.__name__: function for function in linalg.EXPORTED}),
        "cupyx.scipy.linalg": _module("cupyx.scipy.linalg", {"solve_triangular": linalg.solve_triangular}),
    }
    tree["cupy.cuda"] = _cuda(tree)
    tree["cupy"] = _cupy()
    for name in (
        "cupyx.scipy",
        "cupyx",
        "cupy_backends.cuda.libs",
        "cupy_backends.cuda.api",
        "cupy_backends.cuda",
        "cupy_backends",
    ):
        tree[name] = _module(name, {})
    vars(tree["cupyx"]).update(_functions_of(memory, "empty_pinned", "zeros_pinned", "empty_like_pinned"))
    vars(tree["cupyx"]).update(_functions_of(linalg, "errstate", "seterr", "geterr"))
    for name, module in tree.items():
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(tree[parent], last, module)
    return tree


@contextlib.contextmanager
def installed(device=None, n_devices=1, driver_error=None, driver_version=None, compiler_error=None):
    """Let `import cupy` find the stand-in.

    Parameters
    ----------
    device : Facts or sequence of Facts, optional
        What each device is like.
    n_devices : int
        Number of devices; 0 imitates a machine with a driver and no GPU (cudaErrorNoDevice).
    driver_error : int or str, optional
        Status that every first use of the driver raises: 35 or "cudaErrorInsufficientDriver" is a machine
        without a driver.  `import cupy` works.
    driver_version : int, optional
        The newest CUDA that the driver knows: 12040 is 12.4, 0 is no driver.  CuPy is for 13000.
    compiler_error : str, optional
        What asking NVRTC for its version raises: a machine without it.

    Yields
    ------
    Machine
        With `counters`, `pool`, `facts`; use ``import cupy`` for the module.
    """
    real.cupy()
    toolchain.why_missing()  # loads NVRTC while the real CuPy can be seen
    facts = tuple(device) if isinstance(device, (list, tuple)) else (device or state.Facts(),) * n_devices
    if isinstance(driver_error, str):
        driver_error = next(
            s for s, text in errors.CUDARuntimeError.TEXT.items() if text.startswith(driver_error + ":")
        )
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in PREFIXES}
    if driver_version is None:
        driver_version = 0 if driver_error == 35 else 13000
    new = state.Machine(facts, driver_error, driver_version=driver_version, compiler_error=compiler_error)
    state.push(new)
    sys.modules.update(module_tree())
    try:
        yield new
    finally:
        state.pop()
        for name in [name for name in sys.modules if name.split(".")[0] in PREFIXES]:
            del sys.modules[name]
        sys.modules.update(hidden)
