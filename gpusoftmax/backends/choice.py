"""The one place where a device is chosen, by name and by where the data already is."""

from contextlib import suppress

from gpusoftmax.backends.base import Backend
from gpusoftmax.backends.cpu import NumpyBackend
from gpusoftmax.backends.cuda import CupyBackend, may_have_gpu
from gpusoftmax.exceptions import DeviceError


def get_backend(device: str, cuda_device: int | None = None) -> Backend:
    """Return the backend of a device.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}
        "auto" is where X already is; else a CUDA GPU where there is one that can be used, else the CPU.
    cuda_device : int or None
        Number of the CUDA device that holds X; None where X is in the host's memory.

    Raises
    ------
    ValueError
        The device is unknown, or it is not where X is.
    DeviceError
        There is no CUDA GPU that can be used; the message says why.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={device!r} is unknown: give 'auto', 'cpu' or 'cuda'.")
    if device == "cpu":
        if cuda_device is not None:
            raise ValueError(
                f"device='cpu', but X is on CUDA device {cuda_device}: give device='auto' to compute there, or copy X "
                "to the host first (cupy.asnumpy(X), tensor.cpu())."
            )
        return NumpyBackend()
    if device == "cuda" or cuda_device is not None:
        return CupyBackend(cuda_device)
    if may_have_gpu():
        with suppress(DeviceError):
            return CupyBackend()
    return NumpyBackend()
