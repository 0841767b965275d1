"""The simulated machine: its devices, whose turn it is, and what is counted.

One `Machine` exists per `installed(...)`; everything else asks `machine()` for it.
"""

import itertools
import threading
from dataclasses import dataclass, field

from .errors import CUDARuntimeError

KIB = 1024
# Opt-in shared memory per block, in KiB, by compute capability (CUDA programming guide, table of limits).
SHARED_OPTIN = {"75": 64, "80": 163, "86": 99, "87": 163, "89": 99, "90": 227, "100": 227, "103": 227, "110": 227}
SHARED_DEFAULT = 48 * KIB


@dataclass(frozen=True)
class Facts:
    """What the driver says about a device.

    Parameters
    ----------
    name : str
    compute_capability : str
        Without the dot: "90".  Kernels are compiled for it.
    n_multiprocessors : int
    total_memory : int
        Bytes; the pool raises OutOfMemoryError beyond it.
    shared_per_block_optin : int, optional
        Bytes; by default what the compute capability has.
    l2_cache : int
        Bytes.
    """

    name: str = "Imitated GPU"
    compute_capability: str = "90"
    n_multiprocessors: int = 4
    total_memory: int = 2**32
    shared_per_block_optin: int | None = None
    l2_cache: int = 4 * 2**20
    max_threads_per_multiprocessor: int = 2048

    @property
    def shared_limit(self):
        if self.shared_per_block_optin is not None:
            return self.shared_per_block_optin
        return KIB * SHARED_OPTIN.get(self.compute_capability, 99)

    @property
    def architecture(self):
        return f"compute_{self.compute_capability}"


@dataclass
class Counters:
    """What happened since `reset`; tests read these as attributes.

    transfers: copies from device to host, each of which waits for the device (a copy with
    ``blocking=False`` is counted too).  uploads: copies from host to device.  silent_copies: copies of
    device memory that the caller did not ask for (reshape, ravel, matmul of a padded view).
    """

    transfers: int = 0
    uploads: int = 0
    launches: int = 0
    gemms: int = 0
    allocations: int = 0
    silent_copies: int = 0
    transferred_bytes: int = 0
    uploaded_bytes: int = 0

    def reset(self):
        self.__init__()

    def __getitem__(self, name):
        return getattr(self, name)


class PerThread(threading.local):
    """Current device and, per device, the stack of current streams."""

    def __init__(self):
        self.device = 0
        self.streams = {}


@dataclass
class Machine:
    """Devices and books of one `installed(...)`."""

    facts: tuple
    driver_error: int | None = None
    counters: Counters = field(default_factory=Counters)
    linalg_errors: str = "ignore"
    driver_version: int = 13000
    compiler_error: str | None = None

    def __post_init__(self):
        from .memory import MemoryPool
        from .streams import Stream

        self.local = PerThread()
        self.pool = MemoryPool()
        self.host_clock = {}
        self.stream_numbers = itertools.count(1)
        self.streams = []
        self.null_streams = [Stream._null(self, index) for index in range(len(self.facts))]
        self.math_modes = {}

    def check_driver(self):
        """Every call that needs the driver comes through here first."""
        if self.driver_error is not None:
            raise CUDARuntimeError(self.driver_error)
        if not self.facts:
            raise CUDARuntimeError(100)

    @property
    def device(self):
        self.check_driver()
        return self.local.device

    @device.setter
    def device(self, index):
        self.check_driver()
        if not 0 <= index < len(self.facts):
            raise CUDARuntimeError(101)
        self.local.device = index

    @property
    def stream(self):
        return self.stream_of(self.device)

    def stream_of(self, device):
        stack = self.local.streams.get(device)
        return stack[-1] if stack else self.null_streams[device]


_machines = []


def machine():
    """Return the machine of the innermost `installed(...)`."""
    if not _machines:
        raise RuntimeError("the stand-in works inside `with installed():` only")
    return _machines[-1]


def push(new):
    _machines.append(new)


def pop():
    _machines.pop()
