"""State spaces: turn addresses into storage, and check every access on the way.

Each space has `locate`, which checks bounds and alignment, and `load` and `store`, which check validity
and races and then move the data.  Granularity is the smallest access the kernel makes to that space.
"""

import numpy as np

from .program import LOCAL_WINDOW, SHARED_WINDOW

BUFFER_BITS = 40  # buffer number i starts at address (i + 1) << 40
OFFSET_MASK = (1 << BUFFER_BITS) - 1


class Access:
    """What one load, store or atomic instruction does."""

    __slots__ = ("dtype", "ins", "nbytes", "read_only", "vector")

    def __init__(self, dtype, vector, ins, read_only=False):
        self.dtype, self.vector, self.ins, self.read_only = dtype, vector, ins, read_only
        self.nbytes = dtype.itemsize * vector


STEPS = {n: np.arange(n)[:, np.newaxis] for n in (1, 2, 4, 8, 16, 32)}


def granules(position, nbytes, granule):
    """Numbers of the granules that each access covers: (n,) or (granules per access, n).

    The threads are the last axis, here and for the values of vectors: NumPy is fast along it.
    """
    first = position >> (granule.bit_length() - 1)  # sizes are powers of two
    if nbytes == granule:
        return first
    return first + STEPS[max(1, nbytes // granule)]


def elements(position, access):
    """Numbers of the elements that each access moves: (n,) or (vector, n)."""
    return granules(position, access.nbytes, access.dtype.itemsize)


def first_bad(mask):
    """Position of the first access that has a bad granule."""
    return int((mask if mask.ndim == 1 else mask.any(0)).argmax())


def check_alignment(machine, address, lanes, access):
    crooked = address & np.uint64(access.nbytes - 1)
    if np.count_nonzero(crooked):
        machine.fault("alignment", lanes[crooked.argmax()], access.ins)


class PrivateSpace:
    """Memory in equal parts: one part per block (shared) or per thread (local)."""

    def __init__(self, machine, name, part_bytes, owner, n_parts, shadow):
        self.machine, self.name, self.part_bytes = machine, name, part_bytes
        self.stride = -(-part_bytes // 16) * 16
        self.granule = machine.program.granules.get(name, 4)
        self.storage = np.full(self.stride * n_parts, 0xFF, "u1")
        self.valid = np.zeros(len(self.storage) // self.granule, bool)
        self.shadow = shadow(len(self.storage) // self.granule) if shadow else None
        self.end = np.uint64(part_bytes)
        self.first = owner * self.stride  # where each thread's part begins
        self.gaps = machine.program.shared.gaps if name == "shared" else ()
        self._places, self._typed = {}, {}

    def typed(self, dtype):
        if dtype not in self._typed:
            self._typed[dtype] = self.storage.view(dtype)
        return self._typed[dtype]

    def places(self, nbytes):
        """Flags of the addresses where `nbytes` may be accessed, and a False behind them for all that are beyond."""
        if nbytes not in self._places:
            flags = self._places[nbytes] = np.zeros(self.part_bytes + 1, bool)
            flags[: max(0, self.part_bytes - nbytes + 1) : nbytes] = True
            for start, stop in self.gaps:
                flags[max(0, start - nbytes + 1) : stop] = False
        return self._places[nbytes]

    def locate(self, address, lanes, access):
        good = self.places(access.nbytes).take(np.minimum(address, self.end).view(np.int64))
        if np.count_nonzero(good) < good.size:
            self._refuse(address, lanes, access)
        return address.view(np.int64) + self.machine.of(lanes, self.first)

    def _refuse(self, address, lanes, access):
        machine, nbytes = self.machine, access.nbytes
        check_alignment(machine, address, lanes, access)
        bad = address > np.uint64(max(self.part_bytes - nbytes, 0))
        if self.part_bytes < nbytes:
            bad[:] = True
        if bad.any():
            at = bad.argmax()
            text = f" {self.name} byte {int(address[at])} of {self.part_bytes}"
            machine.fault("bounds", lanes[at], access.ins, text)
        bad = ~self.places(nbytes).take(address.view(np.int64))
        machine.fault("bounds", lanes[bad.argmax()], access.ins, " behind a shared array")

    def load(self, address, lanes, access):
        position = self.locate(address, lanes, access)
        index = granules(position, access.nbytes, self.granule)
        valid = self.valid.take(index)
        if np.count_nonzero(valid) < valid.size:
            self.machine.fault("uninitialised", lanes[first_bad(~valid)], access.ins, f" ({self.name})")
        if self.shadow is not None:
            racing = self.shadow.read(index, self.machine.of(lanes, self.machine.codes))
            if racing is not None:
                self.machine.fault("race", lanes[first_bad(racing)], access.ins, f" ({self.name})")
        whole = access.dtype.itemsize == self.granule
        return self.typed(access.dtype).take(index if whole else elements(position, access))

    def store(self, address, lanes, values, access, atomic=False):
        position = self.locate(address, lanes, access)
        index = granules(position, access.nbytes, self.granule)
        if self.shadow is not None:
            racing, inside = self.shadow.write(index, self.machine.of(lanes, self.machine.codes), atomic)
            if racing is not None:
                text = f" ({self.name}{', same instruction' if inside else ''})"
                self.machine.fault("race", lanes[first_bad(racing)], access.ins, text)
        self.valid[index] = True
        whole = access.dtype.itemsize == self.granule
        self.typed(access.dtype)[index if whole else elements(position, access)] = values

    def peek(self, address, lanes, access):
        """Read for an atomic: no race check, the write that follows makes it."""
        position = self.locate(address, lanes, access)
        if not self.valid[granules(position, access.nbytes, self.granule)].all():
            self.machine.fault("uninitialised", lanes[0], access.ins, f" ({self.name})")
        return self.typed(access.dtype).take(elements(position, access))


class GlobalSpace:
    """The buffers of a launch, found by the upper bits of an address."""

    def __init__(self, machine, buffers):
        self.machine, self.buffers = machine, buffers

    def parts(self, address, lanes, access):
        """Yield (buffer, positions in `lanes` or None for all, positions in its storage)."""
        check_alignment(self.machine, address, lanes, access)
        number = (address >> np.uint64(BUFFER_BITS)).view(np.int64) - 1
        if np.count_nonzero(number == number[0]) == number.size:
            yield self._part(int(number[0]), address, lanes, None, access)
            return
        for index in np.unique(number):
            where = np.nonzero(number == index)[0]
            yield self._part(int(index), address[where], lanes[where], where, access)

    def _part(self, index, address, lanes, where, access):
        buffer = self.buffers[index] if 0 <= index < len(self.buffers) else None
        if buffer is None:
            text = " null pointer" if index < 0 else ""
            self.machine.fault("bounds", lanes[0], access.ins, f" address {int(address[0]):#x}{text}")
        offset = (address & np.uint64(OFFSET_MASK)).view(np.int64) - buffer.lead
        position, bad = buffer.locate(offset, access.nbytes)
        if np.count_nonzero(bad):
            at = bad.argmax()
            text = f" argument {index} byte {int(offset[at])} of {buffer.size}"
            self.machine.fault("bounds", lanes[at], access.ins, text)
        return buffer, where, lanes, position

    def load(self, address, lanes, access):
        shape = (len(lanes),) if access.vector == 1 else (access.vector, len(lanes))
        result = None
        for buffer, where, own, position in self.parts(address, lanes, access):
            self._check_valid(buffer, own, position, access)
            self._check_read(buffer, own, position, access)
            values = buffer.typed(access.dtype).take(elements(position, access))
            if where is None:
                return values
            result = np.empty(shape, access.dtype) if result is None else result
            result[..., where] = values
        return result

    def store(self, address, lanes, values, access, atomic=False):
        for buffer, where, own, position in self.parts(address, lanes, access):
            self._check_write(buffer, own, position, access, atomic)
            if buffer.valid is not None:
                buffer.valid[granules(position, access.nbytes, buffer.valid_granule)] = True
            part = values if where is None else values[..., where]
            buffer.typed(access.dtype)[elements(position, access)] = part

    def peek(self, address, lanes, access):
        result = np.empty(len(lanes), access.dtype)
        for buffer, where, own, position in self.parts(address, lanes, access):
            self._check_valid(buffer, own, position, access)
            result[... if where is None else where] = buffer.typed(access.dtype).take(elements(position, access))
        return result

    def _check_valid(self, buffer, lanes, position, access):
        if buffer.valid is None:
            return
        valid = buffer.valid.take(granules(position, access.nbytes, buffer.valid_granule))
        if np.count_nonzero(valid) < valid.size:
            self.machine.fault("uninitialised", lanes[first_bad(~valid)], access.ins, " (global)")

    def _check_read(self, buffer, lanes, position, access):
        index = granules(position, access.nbytes, buffer.granule)
        if access.read_only:
            if buffer.shadow.read_through_cache(index):
                self.machine.fault("read-only", lanes[0], access.ins, " reads memory this kernel wrote")
            return
        racing = buffer.shadow.read(index, self.machine.of(lanes, self.machine.codes))
        if racing is not None:
            self.machine.fault("race", lanes[first_bad(racing)], access.ins, " (global)")

    def _check_write(self, buffer, lanes, position, access, atomic):
        fault = self.machine.fault
        if buffer.aliased:
            fault("alias", lanes[0], access.ins, " writes memory that two arguments share")
        if not buffer.writeable:
            fault("read-only", lanes[0], access.ins, " writes a read-only array")
        index = granules(position, access.nbytes, buffer.granule)
        racing, inside = buffer.shadow.write(index, self.machine.of(lanes, self.machine.codes), atomic)
        if racing is not None:
            text = f" (global{', same instruction' if inside else ''})"
            fault("race", lanes[first_bad(racing)], access.ins, text)
        if buffer.shadow.cached(index):
            fault("read-only", lanes[0], access.ins, " writes memory read through the read-only path")


class GenericSpace:
    """Addresses that may point into any space; the window says into which."""

    def __init__(self, spaces):
        self.spaces = spaces  # by window

    def _split(self, address):
        window = np.where(address >= np.uint64(LOCAL_WINDOW), 2, np.where(address >= np.uint64(SHARED_WINDOW), 1, 0))
        for number in np.unique(window):
            where = np.nonzero(window == number)[0]
            yield self.spaces[number], where, address[where] - np.uint64((0, SHARED_WINDOW, LOCAL_WINDOW)[number])

    def load(self, address, lanes, access):
        shape = (len(lanes),) if access.vector == 1 else (access.vector, len(lanes))
        result = np.empty(shape, access.dtype)
        for space, where, local in self._split(address):
            result[..., where] = space.load(local, lanes[where], access)
        return result

    def store(self, address, lanes, values, access, atomic=False):
        for space, where, local in self._split(address):
            space.store(local, lanes[where], values[..., where], access, atomic)

    def peek(self, address, lanes, access):
        result = np.empty(len(lanes), access.dtype)
        for space, where, local in self._split(address):
            result[where] = space.peek(local, lanes[where], access)
        return result


class ParameterSpace:
    """The argument bytes, the same for every thread."""

    def __init__(self, machine, storage):
        self.machine, self.storage = machine, storage

    def uniform(self, offset, access):
        """Read at one place for all threads: one value, or `access.vector` of them."""
        values = self.storage[offset : offset + access.nbytes].view(access.dtype)
        return values[0] if access.vector == 1 else values

    def load(self, address, lanes, access):
        if (address > np.uint64(len(self.storage) - access.nbytes)).any():
            self.machine.fault("bounds", lanes[0], access.ins, " outside the parameters")
        view = np.lib.stride_tricks.sliding_window_view(self.storage, access.nbytes)
        values = view[address.view(np.int64)].view(access.dtype)
        return values[:, 0] if access.vector == 1 else values.T


def atomic(space, address, lanes, values, function, access):
    """Apply one atomic per lane, in the order of the lanes; return what each found."""
    if len(np.unique(address)) == len(address):
        old = space.peek(address, lanes, access).copy()
        space.store(address, lanes, function(old, *values), access, atomic=True)
        return old
    old = np.empty(len(lanes), access.dtype)
    for i in range(len(lanes)):
        one = slice(i, i + 1)
        old[one] = space.peek(address[one], lanes[one], access)
        new = function(old[one], *(value[one] for value in values))
        space.store(address[one], lanes[one], new, access, atomic=True)
    return old
