"""Execution: many threads, one instruction at a time.

All threads of a group of blocks are one NumPy vector.  Each step executes one instruction for the
runnable threads with the smallest program counter, so divergent threads rejoin as soon as possible.
"""

import threading

import numpy as np

from .arguments import bind
from .faults import Fault, Unsupported
from .memory import GenericSpace, GlobalSpace, ParameterSpace, PrivateSpace
from .program import load_program
from .races import BLOCK, EPOCH, MAX_BLOCKS, MAX_EPOCHS, MAX_WARP_SYNCS, WARP_SYNC, Shadow
from .warps import WARP, Warps

AT_BARRIER, AT_WARP = 1, 2
MAX_BLOCK, MAX_GRID = (1024, 1024, 64), (2**31 - 1, 65535, 65535)


class _Scratch(threading.local):
    """Memory for registers, and the views of it that a launch needs, kept for the next launch of the same shape.

    Touching new pages costs more than the arithmetic, and making hundreds of views more than a short kernel.
    """

    MOST_FRAMES = 64

    def __init__(self):
        self.storage, self.frames = np.empty(0, "u1"), {}

    def frame(self, key, nbytes, make):
        """Return `make(storage)`, perhaps of an earlier launch with that key; its first `nbytes` are zero."""
        if self.storage.size < nbytes:
            self.storage, self.frames = np.empty(2 * nbytes, "u1"), {}
        self.storage[:nbytes] = 0
        if key not in self.frames:
            if len(self.frames) >= self.MOST_FRAMES:
                self.frames.clear()
            self.frames[key] = make(self.storage)
        return self.frames[key]


_scratch = _Scratch()


class Machine:
    """State of the blocks that run together."""

    def __init__(self, program, bound, grid, block, shared_bytes, blocks, ordinal, issue_limit):
        self.program, self.issue_limit = program, issue_limit
        self.block_shape = block
        threads = block[0] * block[1] * block[2]
        count = len(blocks) * threads
        self.threads, self.blocks = threads, tuple(blocks)
        self.everyone = np.arange(count)
        self.block_index = np.repeat(np.arange(len(blocks)), threads)
        self.block_id = np.repeat(np.asarray(blocks, np.int64), threads)
        self.tid = np.tile(np.arange(threads), len(blocks))
        self.grid = grid
        self.warps = Warps(self, self.tid, self.block_index, threads)
        self.epoch = np.zeros(len(blocks), np.int64)
        self.codes = (self.block_index + ordinal) * BLOCK + self.tid  # replaced, never changed in place
        self.views = self._make_views(bound.symbols)
        self.spaces = self._make_spaces(bound, shared_bytes, len(blocks), count)
        self.pc = np.zeros(count, np.int32)
        self.resume = np.zeros(count, np.int32)
        self.state = np.zeros(count, np.int8)
        self.left_behind, self.desperate, self.stuck_at = None, False, None
        self.steps = self.issued = 0

    def _make_spaces(self, bound, shared_bytes, n_blocks, count):
        program = self.program

        def shadow(n):
            return Shadow(n, program.syncs_warps, several_blocks=False)

        spaces = {
            "global": GlobalSpace(self, bound.buffers),
            "shared": PrivateSpace(self, "shared", shared_bytes, self.block_index, n_blocks, shadow),
            "local": PrivateSpace(self, "local", program.local.nbytes, self.everyone, count, None),
            "param": ParameterSpace(self, bound.parameters),
        }
        spaces["generic"] = GenericSpace([spaces["global"], spaces["shared"], spaces["local"]])
        return spaces

    def _make_views(self, symbols):
        """One array per slot: parts of one block of zeros, constants broadcast, special registers."""
        registers, count = self.program.registers, self.everyone.size
        nbytes = sum(_padded(count * kind.itemsize) for kind in registers.values())
        key = self.program, self.block_shape, self.grid, self.blocks
        views = _scratch.frame(key, nbytes, self._frame)
        if self.program.constants:  # a launch binds them anew
            views = views.copy()
            for i, (kind, *what) in enumerate(self.program.slots):
                if kind == "symbol":
                    views[i] = np.broadcast_to(np.asarray(symbols[what[0]], what[1]), count)
        return views

    def _frame(self, storage):
        count, registers = self.everyone.size, self.program.registers
        rows, start = {}, 0
        for name, kind in registers.items():
            rows[name] = storage[start : start + count * kind.itemsize].view(f"u{kind.itemsize}")
            start += _padded(count * kind.itemsize)
        special = self._special()
        views = []
        for kind, *what in self.program.slots:
            if kind == "register":
                name, dtype = what
                views.append(rows[name].view(dtype)[:: registers[name].itemsize // dtype.itemsize])
            elif kind == "part":
                name, dtype, i = what
                views.append(rows[name].view(dtype)[i :: registers[name].itemsize // dtype.itemsize])
            elif kind == "special":
                views.append(special[what[0]].astype(what[1]))
            elif kind == "sink":
                views.append(np.zeros(count, what[0]))
            else:
                views.append(None if kind == "symbol" else np.broadcast_to(np.asarray(what[0], what[1]), count))
        return views

    def _special(self):
        ones = np.ones(self.everyone.size, np.int64)
        values = {"%laneid": self.tid % WARP, "%warpid": self.tid // WARP}
        lane = self.tid % WARP
        values["%lanemask_eq"] = 1 << lane
        values["%lanemask_lt"] = (1 << lane) - 1
        values["%lanemask_le"] = (2 << lane) - 1
        values["%lanemask_gt"] = 0xFFFFFFFF ^ values["%lanemask_le"]
        values["%lanemask_ge"] = 0xFFFFFFFF ^ values["%lanemask_lt"]
        for name, number, shape in (("tid", self.tid, self.block_shape), ("ctaid", self.block_id, self.grid)):
            for axis, size, step in zip("xyz", shape, (1, shape[0], shape[0] * shape[1]), strict=True):
                values[f"%{name}.{axis}"] = number // step % size
                values[f"%n{name}.{axis}"] = ones * size
        return values

    # ---- defects ------------------------------------------------------------------------------

    def fault(self, kind, lane, ins, extra=""):
        block = _coordinates(self.block_id[lane], self.grid)
        thread = _coordinates(self.tid[lane], self.block_shape)
        raise Fault(kind, f"{self.program.name} block {block} thread {thread}: {ins}{extra}")

    def of(self, lanes, values):
        """Values of some threads, of an array over all."""
        return values if len(lanes) == len(values) else values.take(lanes)  # lanes ascend: all of them are in order

    # ---- scheduling ---------------------------------------------------------------------------

    def run(self):
        end = len(self.program.code)
        while True:
            current = int(self.pc.min())
            if current >= end:
                if not self._wake():
                    return
                continue
            here = self.pc == current
            n_here = int(np.count_nonzero(here))
            if n_here == here.size:
                at, stop = slice(None), end
            else:
                at, stop = self._choose(here, n_here), int(self.pc[~here].min())
            self._run_together(at, n_here, current, min(stop, end))

    def _choose(self, here, count):
        """Threads as a slice where they are neighbours: slices cost nothing."""
        first = int(here.argmax())
        if here[first : first + count].all():
            return slice(first, first + count)
        return np.nonzero(here)[0]

    def _run_together(self, at, count, current, stop):
        """Execute until the threads part, meet others, or wait."""
        code, plain = self.program.code, self.program.plain
        while current < stop:
            together = plain[current]
            if together:  # nothing here parts or stops the threads
                together = together[: stop - current]
                for run in together:
                    run(self, at)
                current += len(together)
                self.steps += count * len(together)
                self.issued += len(together)
                continue
            ins = code[current]
            self.steps += count
            self.issued += 1
            if self.issued > self.issue_limit:
                self.fault("hang", self.everyone[at][0], ins)
            chosen = at if ins.guard is None else self._guarded(ins, at)
            if chosen is None:
                current += 1
            elif ins.control is None:
                ins.run(self, chosen)
                current += 1
                if self.left_behind is not None:
                    self._park_left_behind(at, current)
                    return
            elif ins.control == "branch" and chosen is at:
                current = ins.target
            else:
                self._part(ins, at, chosen, current)
                return
        self.pc[at] = current

    def _guarded(self, ins, at):
        """Threads whose guard holds: `at` itself when all do, None when none does."""
        holds = self.views[ins.guard][at]
        if ins.negated:
            holds = ~holds
        n_holds = np.count_nonzero(holds)
        if n_holds == holds.size:
            return at
        return self.everyone[at][holds] if n_holds else None

    def _part(self, ins, at, chosen, current):
        self.pc[at] = current + 1
        if ins.control == "branch":
            self.pc[chosen] = ins.target
        elif ins.control == "table":
            self.pc[chosen] = ins.run(self, chosen)
        elif ins.control == "leave":
            self.pc[chosen] = len(self.program.code)
        else:
            count = ins.target[1]
            if count not in (None, self.threads):
                raise Unsupported(f"{ins}: a barrier for {count} of {self.threads} threads")
            self._park(chosen, current + 1, AT_BARRIER)

    def _park(self, lanes, resume, state):
        self.resume[lanes] = resume
        self.state[lanes] = state
        self.pc[lanes] = len(self.program.code) + 1

    def leave_behind(self, lanes, ins):
        """Called by a warp instruction: these lanes wait at it for others."""
        self.left_behind, self.stuck_at = lanes, ins

    def _park_left_behind(self, at, following):
        self.pc[at] = following
        self._park(self.left_behind, following - 1, AT_WARP)
        self.left_behind = None

    def _wake(self):
        """Nobody can run: let waiting threads go on, or say why they never will."""
        if not self.state.any():
            return False
        waiting = np.nonzero(self.state == AT_WARP)[0]
        if waiting.size:
            if self.desperate:
                self.fault("divergence", waiting[0], self.stuck_at, " not all lanes of the mask get here")
            self.desperate = True
            self.pc[waiting] = self.resume[waiting]
            self.state[waiting] = 0
        else:
            self._release_barriers()
        return True

    def _release_barriers(self):
        waits = (self.state == AT_BARRIER).reshape(-1, self.threads)
        resume = self.resume.reshape(-1, self.threads)
        some = waits.any(1)
        partial = some & (~waits.all(1) | (resume != resume[:, :1]).any(1))
        if partial.any():
            block = int(partial.argmax())
            first = int(waits[block].argmax())
            ins = self.program.code[int(resume[block, first]) - 1]
            text = f" {int(waits[block].sum())} of {self.threads} threads wait at a barrier, or at different ones"
            self.fault("divergence", block * self.threads + first, ins, text)
        self.epoch[some] += 1
        if self.epoch.max() >= MAX_EPOCHS:
            raise Unsupported(f"more than {MAX_EPOCHS} barriers in a block")
        moved = np.repeat(some, self.threads)
        fresh = self.codes // BLOCK * BLOCK + self.epoch[self.block_index] * EPOCH + self.tid
        self.codes = np.where(moved, fresh, self.codes)
        self.pc[moved] = self.resume[moved]
        self.state[moved] = 0

    def sync_warp(self, mask, at, ins):
        running = np.nonzero(self.pc != len(self.program.code))[0]
        lanes = self.warps.synchronise(mask, at, ins, running)
        codes = self.codes.copy()
        codes[lanes] += WARP_SYNC
        if lanes.size and (codes[lanes] // WARP_SYNC % MAX_WARP_SYNCS == 0).any():
            raise Unsupported(f"more than {MAX_WARP_SYNCS} __syncwarp between two barriers")
        self.codes = codes


def _padded(nbytes):
    return -(-nbytes // 64) * 64


def _coordinates(number, shape):
    x, y, z = number % shape[0], number // shape[0] % shape[1], number // (shape[0] * shape[1])
    return int(x) if shape[1] == shape[2] == 1 else (int(x), int(y), int(z))


def _shape(size, name):
    shape = (size,) if isinstance(size, (int, np.integer)) else tuple(size)
    if not 1 <= len(shape) <= 3:
        raise TypeError(f"{name} needs one to three numbers, not {size}")
    return tuple(int(n) for n in (*shape, 1, 1)[:3])


def _check_shapes(program, grid, block):
    threads = block[0] * block[1] * block[2]
    if any(not 1 <= n <= limit for n, limit in zip(block, MAX_BLOCK, strict=True)) or threads > 1024:
        raise Fault("launch", f"{program.name}: a block of {block} threads")
    if threads > program.max_threads:
        raise Fault("launch", f"{program.name}: {threads} threads, compiled for {program.max_threads}")
    if program.exact_block not in (None, block):
        raise Fault("launch", f"{program.name}: block {block}, compiled for {program.exact_block}")
    if any(not 1 <= n <= limit for n, limit in zip(grid, MAX_GRID, strict=True)):
        raise Fault("launch", f"{program.name}: a grid of {grid} blocks")


def launch(ptx, name, grid, block, args, shared=0, *, order=None, threads_at_once=4096, issue_limit=2_000_000):
    """Run a kernel.

    Parameters
    ----------
    ptx, name : str
        Text of a module and the (mangled) name of one of its kernels.
    grid, block : int or tuple of up to three int
    args : sequence
        One value per parameter: an array or a `Buffer` for a pointer (changed in place), None for a null
        pointer, a NumPy scalar for a number, a structured scalar or bytes for a struct.
    shared : int
        Bytes of dynamic shared memory.
    order : iterable of int, optional
        The blocks to run, by linear number, in this order; a subset is allowed.  Default: all.
    threads_at_once : int
        Blocks run in groups of at most this many threads, one group after the other.
    issue_limit : int
        Instructions issued for one group before it counts as hanging.

    Returns
    -------
    int
        Number of instructions executed, summed over threads.

    Raises
    ------
    Fault
        At the first defect.
    Unsupported
        The kernel uses something that the interpreter does not know.
    """
    program = load_program(ptx, name)
    grid, block = _shape(grid, "grid"), _shape(block, "block")
    _check_shapes(program, grid, block)
    total = grid[0] * grid[1] * grid[2]
    blocks = range(total) if order is None else [int(b) for b in order]
    if len(blocks) > MAX_BLOCKS:
        raise Unsupported(f"{len(blocks)} blocks; name those of interest with order=")
    if order is not None and any(not 0 <= b < total for b in blocks):
        raise ValueError(f"order names a block outside the grid {grid}")
    bound = bind(program, args)
    group = max(1, threads_at_once // (block[0] * block[1] * block[2]))
    steps = 0
    try:
        with np.errstate(all="ignore"):
            for start in range(0, len(blocks), group):
                part = blocks[start : start + group]
                shared_bytes = program.shared.nbytes + shared
                machine = Machine(program, bound, grid, block, shared_bytes, part, start, issue_limit)
                machine.run()
                steps += machine.steps
    finally:
        bound.finish()
    return steps
