"""cupy.cuda.Device and cupy.cuda.runtime: what the driver says, and what it says when it is missing."""

from .cublas import CUDA_R_16BF, CUDA_R_16F, CUDA_R_32F, CUDA_R_64F, get_cublas_handle
from .errors import CUDARuntimeError
from .state import SHARED_DEFAULT, machine


class Device:
    """As cupy.cuda.Device."""

    def __init__(self, device=None):
        self.id = machine().device if device is None else int(device)
        self._before = []

    def _facts(self):
        here = machine()
        here.check_driver()
        if not 0 <= self.id < len(here.facts):
            raise CUDARuntimeError(101)
        return here.facts[self.id]

    compute_capability = property(lambda self: self._facts().compute_capability)
    mem_info = property(lambda self: _on(self.id, memGetInfo))
    cublas_handle = property(lambda self: _on(self.id, get_cublas_handle))
    pci_bus_id = property(lambda self: f"0000:{self.id:02X}:00.0")

    @property
    def attributes(self):
        facts = self._facts()
        return {
            "MaxSharedMemoryPerBlock": SHARED_DEFAULT,
            "MaxSharedMemoryPerBlockOptin": facts.shared_limit,
            "MultiProcessorCount": facts.n_multiprocessors,
            "WarpSize": 32,
            "MaxThreadsPerBlock": 1024,
            "L2CacheSize": facts.l2_cache,
            "ClockRate": 1_500_000,
            "MemoryClockRate": 1_000_000,
            "GlobalMemoryBusWidth": 4096,
            "ComputeCapabilityMajor": int(facts.compute_capability[:-1]),
            "ComputeCapabilityMinor": int(facts.compute_capability[-1]),
        }

    def use(self):
        machine().device = self.id
        return self

    def synchronize(self):
        self._facts()
        here = machine()
        for stream in (here.null_streams[self.id], *here.streams):
            if stream.device_id == self.id:
                stream.synchronize()

    def __enter__(self):
        self._before.append(machine().device)
        return self.use()

    def __exit__(self, *exc):
        machine().device = self._before.pop()

    def __int__(self):
        return self.id

    def __eq__(self, other):
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self):
        return hash(self.id)

    def __repr__(self):
        return f"<CUDA Device {self.id}>"


def _on(device, function):
    with Device(device):
        return function()


def getDeviceCount():  # noqa: N802 - CuPy's names here and below
    machine().check_driver()
    return len(machine().facts)


def getDevice():  # noqa: N802
    return machine().device


def setDevice(device):  # noqa: N802
    machine().device = device


def deviceSynchronize():  # noqa: N802
    Device().synchronize()


def memGetInfo():  # noqa: N802
    """Return (free, total) bytes of the current device; what the pool keeps is not free."""
    total = machine().facts[machine().device].total_memory
    return total - machine().pool.total_bytes(), total


def driverGetVersion():  # noqa: N802
    return machine().driver_version


def runtimeGetVersion():  # noqa: N802
    return 13000


def getDeviceProperties(device):  # noqa: N802
    facts = Device(device)._facts()
    return {
        "name": facts.name.encode(),
        "totalGlobalMem": facts.total_memory,
        "multiProcessorCount": facts.n_multiprocessors,
        "major": int(facts.compute_capability[:-1]),
        "minor": int(facts.compute_capability[-1]),
        "sharedMemPerBlock": SHARED_DEFAULT,
        "sharedMemPerBlockOptin": facts.shared_limit,
        "sharedMemPerMultiprocessor": facts.shared_limit + 1024,
        "reservedSharedMemPerBlock": 1024,
        "regsPerBlock": 65536,
        "regsPerMultiprocessor": 65536,
        "warpSize": 32,
        "maxThreadsPerBlock": 1024,
        "maxThreadsPerMultiProcessor": facts.max_threads_per_multiprocessor,
        "maxThreadsDim": (1024, 1024, 64),
        "maxGridSize": (2**31 - 1, 65535, 65535),
        "l2CacheSize": facts.l2_cache,
    }


def streamSynchronize(stream):  # noqa: N802
    for known in (*machine().null_streams, *machine().streams):
        if known.ptr == stream:
            known.synchronize()


def compiler_version():
    """As cupy.cuda.nvrtc.getVersion, which is where CuPy first looks for the library."""
    if machine().compiler_error is not None:
        raise RuntimeError(machine().compiler_error)
    return 13, 0


def is_available():
    """As cupy.cuda.is_available: never raises."""
    try:
        return getDeviceCount() > 0
    except Exception:
        return False


def get_device_id():
    return machine().device


CALLS = (
    getDeviceCount, getDevice, setDevice, deviceSynchronize, memGetInfo, driverGetVersion, runtimeGetVersion,
    getDeviceProperties, streamSynchronize,
)  # fmt: skip
RUNTIME = {function.__name__: function for function in CALLS}
RUNTIME.update(CUDARuntimeError=CUDARuntimeError, is_hip=False)
RUNTIME.update(CUDA_R_16BF=CUDA_R_16BF, CUDA_R_16F=CUDA_R_16F, CUDA_R_32F=CUDA_R_32F, CUDA_R_64F=CUDA_R_64F)
__all__ = ["RUNTIME", "Device", "get_device_id", "is_available"]
