"""Device memory: a pool as CuPy keeps one, bytes that remember whether anybody wrote them, pinned memory.

Addresses are never used twice, so a pointer into freed memory is always seen.
"""

import bisect
import threading
import weakref

import numpy as np

from emulator.ptx import Fault

from .errors import OutOfMemoryError
from .state import machine

UNIT = 512  # CuPy's pool rounds sizes up to this
POISON = 0xFF  # not a number, for floats


class Allocation:
    """Bytes on one device, and which of them hold values."""

    __slots__ = ("__weakref__", "accesses", "address", "data", "device", "nbytes", "valid")

    def __init__(self, address, nbytes, device):
        self.address, self.nbytes, self.device = address, nbytes, device
        self.data = np.full(nbytes, POISON, "u1")
        self.valid = np.zeros(nbytes, bool)
        self.accesses = {}  # of streams, see streams.py

    def view(self, offset, shape, dtype, strides=None):
        """Elements as an array."""
        if strides is None:
            strides = np.ndarray(shape, dtype, buffer=b"" if 0 in shape else None).strides if shape else ()
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.ndarray(shape, dtype, self.data, offset, strides)

    def flags_of(self, array):
        """Validity of an array's bytes: its shape, and one more axis for the bytes of an element."""
        shape = (*array.shape, array.itemsize)
        if not array.size:
            return np.zeros(shape, bool)
        offset = array.__array_interface__["data"][0] - self.data.__array_interface__["data"][0]
        strides = (*array.strides, 1)
        return np.lib.stride_tricks.as_strided(self.valid[offset:], shape, strides)


class MemoryPointer:
    """As cupy.cuda.MemoryPointer: a place in an allocation."""

    def __init__(self, mem, offset):
        self.mem, self._offset = mem, offset
        self.device_id = mem.device
        self.ptr = mem.address + offset

    @property
    def device(self):
        from .devices import Device

        return Device(self.device_id)

    def __int__(self):
        return self.ptr

    def __add__(self, offset):
        return MemoryPointer(self.mem, self._offset + offset)

    __radd__ = __add__

    def __sub__(self, offset):
        return self + -offset


class _Arena:
    """The pool of one device."""

    def __init__(self):
        self.used, self.limit, self.free = 0, 0, []  # sizes of free blocks, sorted

    @property
    def total(self):
        return self.used + sum(self.free)


class MemoryPool:
    """As cupy.cuda.MemoryPool, all devices in one; figures are of the current device."""

    def __init__(self, allocator=None):
        self._lock = threading.RLock()
        self._arenas = {}
        self._live, self._starts, self._next_address = {}, [], 0x7F0000000000

    def _arena(self, device=None):
        device = machine().device if device is None else device
        return self._arenas.setdefault(device, _Arena())

    def used_bytes(self):
        return self._arena().used

    def free_bytes(self):
        return sum(self._arena().free)

    def total_bytes(self):
        return self._arena().total

    def n_free_blocks(self):
        return len(self._arena().free)

    def get_limit(self):
        return self._arena().limit

    def set_limit(self, size=None, fraction=None):
        if (size is None) == (fraction is None) and fraction is not None:
            raise ValueError("size and fraction cannot be specified at one time")
        if fraction is not None:
            if not 0 <= fraction <= 1:
                raise ValueError(f"memory limit fraction out of range: {fraction}")
            size = int(fraction * machine().facts[machine().device].total_memory)
        if size is None or size < 0:
            raise ValueError(f"memory limit size out of range: {size}")
        self._arena().limit = size

    def free_all_blocks(self, stream=None):
        self._arena().free.clear()

    def malloc(self, size):
        """Return a MemoryPointer to `size` new bytes on the current device."""
        here = machine()
        device = here.device
        arena, rounded = self._arena(device), -(-size // UNIT) * UNIT
        with self._lock:
            self._take(arena, rounded, here.facts[device].total_memory)
            here.counters.allocations += 1
            block = Allocation(self._next_address, size, device)
            self._next_address += rounded + UNIT  # leave room, so that an overrun finds nobody
            self._live[block.address] = weakref.ref(block)
            bisect.insort(self._starts, block.address)
        weakref.finalize(block, self._release, arena, block.address, rounded)
        return MemoryPointer(block, 0)

    def _take(self, arena, rounded, memory):
        """Book a block: the smallest free one that is large enough, else new memory."""
        at = bisect.bisect_left(arena.free, rounded)
        if rounded and at < len(arena.free):
            rest = arena.free.pop(at) - rounded
            if rest:
                bisect.insort(arena.free, rest)
        else:
            limit = min(arena.limit or memory, memory)
            if arena.total + rounded > limit:
                arena.free.clear()
            if arena.total + rounded > limit:
                raise OutOfMemoryError(rounded, arena.total, arena.limit)
        arena.used += rounded

    def _release(self, arena, key, rounded):
        with self._lock:
            arena.used -= rounded
            if rounded:
                bisect.insort(arena.free, rounded)
            del self._live[key]
            del self._starts[bisect.bisect_left(self._starts, key)]

    def find(self, address, nbytes):
        """Return the allocation around an address, and the offset in it."""
        at = bisect.bisect_right(self._starts, address) - 1
        block = self._live[self._starts[at]]() if at >= 0 else None
        if block is None or address >= block.address + max(block.nbytes, 1):
            raise Fault("bounds", f"address {address:#x} is not in device memory, or was freed")
        if address + nbytes > block.address + block.nbytes:
            offset = address - block.address
            raise Fault("bounds", f"{nbytes} bytes at offset {offset} of a {block.nbytes}-byte allocation")
        return block, address - block.address


class PinnedMemoryPool:
    """As cupy.cuda.PinnedMemoryPool; it keeps nothing."""

    def n_free_blocks(self):
        return 0

    def free_all_blocks(self):
        machine().check_driver()


def alloc(size):
    """As cupy.cuda.alloc."""
    return machine().pool.malloc(size)


class PinnedMemory(bytearray):
    """Page-locked host memory: copies to and from it are asynchronous."""

    @property
    def ptr(self):
        return np.frombuffer(self, "u1").__array_interface__["data"][0]


def alloc_pinned_memory(size):
    """As cupy.cuda.alloc_pinned_memory; filled with poison."""
    machine().check_driver()
    return PinnedMemory(b"\xff" * size)


def is_pinned(array):
    """Say whether a NumPy array lies in pinned memory."""
    while isinstance(array, np.ndarray):
        array = array.base
        if isinstance(array, memoryview):
            array = array.obj
    return isinstance(array, PinnedMemory)


def empty_pinned(shape, dtype=float, order="C"):
    """As cupyx.empty_pinned."""
    shape = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    memory = alloc_pinned_memory(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return np.ndarray(shape, dtype, memory, order=order)


def zeros_pinned(shape, dtype=float, order="C"):
    """As cupyx.zeros_pinned."""
    result = empty_pinned(shape, dtype, order)
    result[...] = 0
    return result


def empty_like_pinned(a, dtype=None, order="K", subok=None, shape=None):
    """As cupyx.empty_like_pinned, in C order."""
    return empty_pinned(a.shape if shape is None else shape, dtype or a.dtype)
