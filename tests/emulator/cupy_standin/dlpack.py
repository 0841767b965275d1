"""DLPack between stand-in arrays.  The capsule is a Python object: no library can read this memory."""

from .array import ndarray
from .errors import Refused
from .state import machine


class Capsule:
    """What `__dlpack__` returns; it can be used once."""

    def __init__(self, array):
        self.array, self.used = array, False


def export(array, stream, dl_device, copy):
    if dl_device is not None and tuple(dl_device) != array.__dlpack_device__():
        raise BufferError(f"cannot export to device {dl_device}; use .get()")
    if stream is not None and not isinstance(stream, int):
        raise TypeError("stream must be an integer or None")
    array._check_device()
    return Capsule(array.copy() if copy else array)


def from_dlpack(array, device=None, copy=None):
    """As cupy.from_dlpack: memory of the device is shared, memory of the host is refused."""
    if not hasattr(array, "__dlpack_device__"):
        raise TypeError(f"{type(array)} does not support DLPack")
    kind, _ = array.__dlpack_device__()
    if kind != 2:
        raise TypeError("CPU arrays cannot be directly imported to CuPy. Use `cupy.array(numpy.from_dlpack(input))`")
    capsule = array.__dlpack__(stream=machine().stream.ptr or 1)
    if not isinstance(capsule, Capsule):
        raise Refused("the stand-in imports its own arrays only")
    if capsule.used:
        raise ValueError("a DLPack tensor object cannot be consumed multiple times")
    capsule.used = True
    source = capsule.array
    return source.copy() if copy else ndarray._view(source._block, source._data)
