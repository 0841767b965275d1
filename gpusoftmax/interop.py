"""What kind of array came in, which device it asks for, and how results go back to where it lives.

Nobody else asks what an array is: past this file it is NumPy's, CuPy's, or something that scikit-learn makes NumPy's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn._config import get_config  # sklearn.get_config, whose re-export mypy does not see
from sklearn.externals import array_api_compat
from sklearn.utils import check_array

from gpusoftmax.backends.cuda import load_cupy

HOST_KINDS = {1, 3}  # DLPack's device types: the CPU, and memory of the CPU that CUDA has pinned
CUDA_KINDS = {2, 13}  # CUDA's memory, and memory that it moves by itself
CHECKED_NUMBERS = 1 << 24  # of an array on a device that are looked at together: 16 MB of flags


@dataclass(frozen=True)
class Home:
    """Where an array lives, to which results go back.

    xp : its namespace; NumPy's for lists, frames and all else that scikit-learn makes NumPy arrays of
    device : its device, as the namespace means it; None for NumPy
    cuda_device : number of the CUDA device that holds it; None on the host
    """

    xp: Any = np
    device: Any = None
    cuda_device: int | None = None

    def __reduce__(self):
        return Home, ()  # what is pickled holds NumPy arrays, and loads where there is neither a GPU nor this library

    @property
    def is_cuda(self) -> bool:
        return self.cuda_device is not None

    def empty(self, shape, dtype):
        """Return memory for a result that `send` will send."""
        return _cupy().empty(shape, dtype) if self.is_cuda else np.empty(shape, dtype)

    def send(self, array):
        """Return a NumPy or CuPy array as one of this place."""
        if not self.is_cuda:
            array = to_host(array)
            return array if self.xp is np else self.xp.asarray(array, device=self.device)
        cupy = _cupy()
        with cupy.cuda.Device(self.cuda_device):
            array = cupy.asarray(array)
            return array if self.xp is cupy else self.xp.from_dlpack(array)

    def send_exactly(self, array):
        """Return an array as `send` does; as it is, NumPy's, where this place cannot hold it: JAX has 32 bits."""
        if self.xp is np:
            return array
        try:
            sent = self.send(_native(array))
        except TypeError:
            return array
        return sent if self.is_cuda or np.array_equal(to_host(sent), array) else array

    def send_labels(self, labels):
        """Return labels as `send_exactly` does; as they are where they are no numbers."""
        return self.send_exactly(labels) if labels.dtype.kind in "biuf" else labels

    def take_labels(self, classes: np.ndarray, indices):
        """Return ``classes[indices]`` in this place; see `send_labels`."""
        if self.is_cuda and classes.dtype.kind in "biuf":
            return self.send(_cupy().asarray(_native(classes))[indices])
        labels = classes[to_host(indices)]
        return labels if self.send_labels(classes) is classes else self.send(_native(labels))


HOST = Home()


def receive(array, name: str = "X") -> tuple[Any, Home]:
    """Return an array as NumPy or CuPy see it, without a copy where they can, and where it lives.

    CuPy sees what is on a CUDA device, through DLPack or ``__cuda_array_interface__``. Of the rest, NumPy sees what
    follows the array API; what does not, lists and frames for instance, is returned as it is.

    Raises
    ------
    DeviceError
        The array is on a CUDA device and CuPy cannot be used; the message says why.
    TypeError, ValueError
        Neither can see it; the message names the array and says why.
    """
    if isinstance(array, np.ndarray | np.generic):
        return array, HOST
    if hasattr(array, "to_cupy"):  # cuDF's: columns apart, so this is the one copy that there must be
        array = array.to_cupy()
    kind, number = _dlpack_device(array)
    if kind in CUDA_KINDS or (kind is None and hasattr(array, "__cuda_array_interface__")):
        return _receive_cuda(array, number, name)
    if kind is None or not array_api_compat.is_array_api_obj(array):
        return array, HOST
    if kind not in HOST_KINDS:
        raise ValueError(
            f"{name} is on {array_api_compat.device(array)}; gpusoftmax computes on CUDA devices and on the host: "
            "move it to one of them."
        )
    xp, device = array_api_compat.array_namespace(array), array_api_compat.device(array)
    return _seen(array, name, np.from_dlpack, np.asarray), Home(xp, device)


def receive_beside(array, home: Home, name: str) -> tuple[Any, Home]:
    """Return an array as `receive` does, but on the host unless it is on the CUDA device of X, whose home is given."""
    array, own = receive(array, name)
    return (array, own) if own.cuda_device == home.cuda_device else (to_host(array), HOST)


def to_host(array):
    """Return an array's values on the host, NumPy's; lists, frames and the like as they are."""
    array, home = receive(array, "the array")
    if not home.is_cuda:
        return array
    cupy = _cupy()
    with cupy.cuda.Device(home.cuda_device):
        return cupy.asnumpy(array)


def validate(array, home: Home, check: Callable, **names):
    """Return what `check` does, one of scikit-learn's functions; what is on a CUDA device stays there.

    Of such an array, `check` sees the shape and dtype, and values only where some are not finite: its words for it
    are scikit-learn's.

    Parameters
    ----------
    array : array
    home : Home
    check : callable
        Takes an array and ``ensure_all_finite``; returns an array, or a tuple that starts with it.
    names : input_name and estimator, for messages
    """
    if not home.is_cuda:
        return check(array)
    checked = check(shadow(array), ensure_all_finite=False)
    if not get_config()["assume_finite"]:
        _check_finite(array, names)
    return (array, *checked[1:]) if isinstance(checked, tuple) else array


def shadow(array) -> np.ndarray:
    """Return zeros of an array's shape and dtype that take no memory."""
    return np.broadcast_to(np.zeros((), array.dtype), array.shape)


def _native(array: np.ndarray) -> np.ndarray:
    """Return the array in the byte order of this machine, which is all that other libraries know."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _cupy() -> Any:
    """Return CuPy, which `receive` has found in order."""
    import cupy

    return cupy


def _dlpack_device(array) -> tuple[int | None, int | None]:
    """Return DLPack's type and number of an array's device, or None for both where it does not say."""
    if not hasattr(array, "__dlpack_device__") or not hasattr(array, "__dlpack__"):
        return None, None
    kind, number = array.__dlpack_device__()
    return int(kind), int(number)


def _receive_cuda(array, number: int | None, name: str) -> tuple[Any, Home]:
    cupy = load_cupy(f"{name} on a CUDA device", number)
    if isinstance(array, cupy.ndarray):
        return array, Home(cupy, array.device.id, array.device.id)
    with cupy.cuda.Device(number):
        seen = _seen(array, name, cupy.asarray if number is None else cupy.from_dlpack)
    index = seen.device.id
    if array_api_compat.is_array_api_obj(array):
        return seen, Home(array_api_compat.array_namespace(array), array_api_compat.device(array), index)
    return seen, Home(cupy, index, index)


def _seen(array, name: str, *views: Callable):
    """Return the first view of an array that can be had."""
    for view in views:
        try:
            return view(array)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            reason = error
    raise TypeError(f"{name}, a {type(array).__name__} of {array.dtype}, cannot be read: {reason}") from reason


def _check_finite(array, names) -> None:
    """Raise as scikit-learn does unless all numbers of an array on a CUDA device are finite: one small copy."""
    if array.dtype.kind != "f" or not array.size:
        return
    cupy = _cupy()
    step = max(1, CHECKED_NUMBERS * len(array) // array.size)
    blocks = [array[start : start + step] for start in range(0, len(array), step)]
    if not cupy.asnumpy(cupy.stack([cupy.isfinite(block).all() for block in blocks]).all()):
        is_nan = cupy.asnumpy(cupy.stack([cupy.isnan(block).any() for block in blocks]).any())
        check_array(np.full((1, 1), np.nan if is_nan else np.inf, array.dtype), **names)
