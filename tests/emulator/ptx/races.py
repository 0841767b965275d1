"""Who touched which granule of memory last, and whether an access is ordered behind it.

An access is one 63-bit number: block, barrier count of the block, `__syncwarp` count of the warp, and
thread.  Two accesses are ordered when they are of one thread, or of one block with a barrier between, or
of one warp with a `__syncwarp` between.  Nothing else orders them: the check looks at what is unordered,
not at what happened to go wrong in this schedule.
"""

import numpy as np

THREAD_BITS = 12  # ten for the thread, two for "several threads"
WARP_SYNC = 1 << 12
EPOCH = 1 << 28
BLOCK = 1 << 44
MAX_WARP_SYNCS, MAX_EPOCHS, MAX_BLOCKS = 1 << 16, 1 << 16, 1 << 18
SEVERAL_LANES, SEVERAL_WARPS = 1 << 10, 1 << 11
WARP_FIELD = 31 << 5 | SEVERAL_WARPS
MANY_BLOCKS = 1 << 62
NOBODY = -1


class Shadow:
    """Last writer and last readers of each granule.

    Reads are logged until the first write, because most memory is only read.

    Parameters
    ----------
    count : int
        Number of granules.
    warp_order : bool
        Whether the kernel contains `__syncwarp`.
    several_blocks : bool
        Whether several blocks can reach this memory.
    """

    LOG_LIMIT = 1 << 21  # granules in the log before it is folded in

    def __init__(self, count, warp_order, several_blocks=True):
        self.count, self.warp_order, self.several_blocks = count, warp_order, several_blocks
        self.writer = self.reader = self.atomic = self.read_only = None
        self.log, self.logged, self.has_atomics = [], 0, False

    def grow(self, count):
        """Cover more granules."""
        for name, fill in (("writer", NOBODY), ("reader", NOBODY), ("atomic", False), ("read_only", False)):
            old = getattr(self, name)
            if old is not None:
                setattr(self, name, np.concatenate([old, np.full(count - self.count, fill, old.dtype)]))
        self.count = count

    def read(self, index, mine):
        """Record a read; return the accesses that race with it, as a mask or None."""
        if self.writer is None:
            self.log.append((index, mine))
            self.logged += index.size
            if self.logged > self.LOG_LIMIT:
                self._fold()
            return None
        racing = self._unordered(self.writer.take(index), mine)
        self._record(index, mine)
        return racing if racing is not None and np.count_nonzero(racing) else None

    def write(self, index, mine, atomic):
        """Record a write; return (mask of races, whether they are inside this instruction) or (None, _)."""
        self._fold()
        if self.writer is None:
            self.writer = np.full(self.count, NOBODY, np.int64)
            self.atomic = np.zeros(self.count, bool)
        racing = self._unordered(self.writer.take(index), mine)
        if atomic and racing is not None:
            racing &= ~self.atomic[index]
        if self.reader is not None:
            read = self._unordered(self.reader.take(index), mine)
            racing = read if racing is None else racing if read is None else racing | read
        if racing is not None and np.count_nonzero(racing):
            return racing, False
        if atomic:
            self._record_atomic(index, mine)
            return None, True
        self.writer[index] = mine
        if self.has_atomics:
            self.atomic[index] = False
        racing = self.writer.take(index) != mine
        return (racing, True) if np.count_nonzero(racing) else (None, True)

    def read_through_cache(self, index):
        """Record a read through the read-only path; say whether this kernel has written there."""
        if self.read_only is None:
            self.read_only = np.zeros(self.count, bool)
        self.read_only[index] = True
        return self.writer is not None and (self.writer[index] >= 0).any()

    def cached(self, index):
        """Say whether anything there was read through the read-only path."""
        return self.read_only is not None and self.read_only[index].any()

    def _fold(self):
        log, self.log, self.logged = self.log, [], 0
        for index, mine in log:
            self._record(index, mine)

    def _unordered(self, recorded, mine):
        """Return a mask, or None where only the threads themselves were."""
        x = recorded ^ mine  # negative where nobody was
        if not np.count_nonzero(x):
            return None
        racing = self._same_epoch(x)
        if self.several_blocks:
            racing |= x >= BLOCK
        return racing

    def _same_epoch(self, x):
        """Whether another thread of the block was there since the last barrier."""
        same = (x - 1).view(np.uint64) < (1 << THREAD_BITS) - 1
        if self.warp_order:
            same |= (x > 0) & (x < EPOCH) & ((x & WARP_FIELD) != 0)
        return same

    def _record_atomic(self, index, mine):
        """Atomics of several threads stand together; one behind its own thread's plain write counts as plain."""
        self.has_atomics = True
        recorded = self.writer.take(index)
        plain = (recorded == mine) & ~self.atomic.take(index)
        self._add(self.writer, index, mine)
        self.atomic[index] = True
        self.atomic[index[plain]] = False

    def _record(self, index, mine):
        if self.reader is None:
            self.reader = np.full(self.count, NOBODY, np.int64)
        self._add(self.reader, index, mine)

    def _add(self, record, index, mine):
        """Note threads beside those that are there since the last barrier."""
        recorded = record.take(index)
        x = recorded ^ mine
        if not np.count_nonzero(x):
            return  # known already
        same = self._same_epoch(x)
        if np.count_nonzero(same):
            if not self.warp_order and same.all() and (recorded & SEVERAL_WARPS).all():
                return  # known already: several threads since the last barrier
            value = np.where(same, mine | self._flags(x), mine)
        else:
            value = np.broadcast_to(mine, index.shape)
        if self.several_blocks:
            other = x >= BLOCK
            value = np.where(other, MANY_BLOCKS, value) if np.count_nonzero(other) else value
        record[index] = value
        self._add_crowds(record, index, mine, value)

    def _add_crowds(self, record, index, mine, value):
        """Several threads touch one granule in this instruction: only one of them was written down."""
        lost = record.take(index) != value
        if not np.count_nonzero(lost):
            return
        index, mine = index[lost], np.broadcast_to(mine, index.shape)[lost]
        x = record[index] ^ mine
        np.bitwise_or.at(record, index, self._flags(x))
        if self.several_blocks:
            record[index[x >= BLOCK]] = MANY_BLOCKS

    def _flags(self, x):
        both = np.int64(SEVERAL_LANES | SEVERAL_WARPS)
        return np.where(x & WARP_FIELD, both, SEVERAL_LANES) if self.warp_order else both
