"""What the stand-in raises: CuPy's exceptions, and one of its own."""

from typing import ClassVar


class ImplicitTransfer(TypeError):  # noqa: N818 - names what happened, like the message CuPy gives
    """Host code asked for device values without saying so; CuPy would often just synchronise."""


class CUDARuntimeError(RuntimeError):
    """As cupy.cuda.runtime.CUDARuntimeError: the message starts with the name of the status."""

    TEXT: ClassVar = {
        1: "cudaErrorInvalidValue: invalid argument",
        2: "cudaErrorMemoryAllocation: out of memory",
        35: "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version",
        100: "cudaErrorNoDevice: no CUDA-capable device is detected",
        101: "cudaErrorInvalidDevice: invalid device ordinal",
        600: "cudaErrorNotReady: device not ready",
    }

    def __init__(self, status):
        self.status = status
        super().__init__(self.TEXT[status])


class OutOfMemoryError(MemoryError):
    """As cupy.cuda.memory.OutOfMemoryError."""

    def __init__(self, size, total, limit=0):
        text = f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes"
        super().__init__(text + (f", limit set to: {limit:,} bytes)." if limit else ")."))


class CompileException(Exception):  # noqa: N818 - CuPy's name
    """As cupy.cuda.compiler.CompileException: the message is NVRTC's log."""

    def __init__(self, msg, source, name, options, backend="nvrtc"):
        super().__init__(msg)
        self._msg, self.source, self.name, self.options, self.backend = msg, source, name, options, backend

    def get_message(self):
        return self._msg


class CUBLASError(RuntimeError):
    """As cupy_backends.cuda.libs.cublas.CUBLASError."""

    TEXT: ClassVar = {
        1: "CUBLAS_STATUS_NOT_INITIALIZED",
        7: "CUBLAS_STATUS_INVALID_VALUE",
        15: "CUBLAS_STATUS_NOT_SUPPORTED",
    }

    def __init__(self, status):
        self.status = status
        super().__init__(self.TEXT[status])


class Refused(NotImplementedError):  # noqa: N818 - says what became of the call
    """CuPy can do this, the stand-in will not: it would wait for the device in silence, or no trainer needs it."""
