"""The one place where a device is chosen, by name."""

from gpusoftmax.backends.base import Backend
from gpusoftmax.backends.cpu import NumpyBackend
from gpusoftmax.backends.cuda import CupyBackend


def get_backend(device: str) -> Backend:
    """Return the backend of a device.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}
        "auto" is a CUDA GPU where CuPy has one, else the CPU.

    Raises
    ------
    ValueError
        The device is unknown.
    DeviceError
        There is no CUDA GPU that can be used; the message says why.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={device!r} is unknown: give 'auto', 'cpu' or 'cuda'.")
    if device == "cuda" or (device == "auto" and _has_gpu()):
        return CupyBackend()
    return NumpyBackend()


def _has_gpu() -> bool:
    """Say whether CuPy is installed and has a GPU."""
    try:
        import cupy
    except ImportError:
        return False
    return bool(cupy.is_available())
