"""Instructions that need several lanes of a warp at once: shuffles, votes, reductions, `__syncwarp`.

A lane waits until every lane of its mask has arrived at the same instruction; if that never happens the
launch ends with a divergence Fault.
"""

import numpy as np

from .faults import Unsupported

WARP = 32


class Warps:
    """Lane bookkeeping for the threads of one machine."""

    def __init__(self, machine, tid, block_index, block_threads):
        self.machine = machine
        per_block = -(-block_threads // WARP)
        self.index = block_index * per_block + tid // WARP
        self.count = per_block * (int(block_index[-1]) + 1)
        self.lane = tid % WARP
        self.whole = block_threads % WARP == 0
        self.full = machine.everyone.size

    def complete(self, mask_slot, at, ins):
        """Return (lanes whose whole mask is here, their masks); the others stay at this instruction."""
        machine = self.machine
        masks, lanes = machine.views[mask_slot][at], machine.everyone[at]
        if self.whole and lanes.size == self.full and (masks == 0xFFFFFFFF).all():
            machine.desperate = False
            return lanes, masks
        members, lane, warp = masks.astype(np.int64), self.lane[lanes], self.index[lanes]
        if ((members >> lane) & 1 == 0).any():
            machine.fault("divergence", lanes[0], ins, " a thread outside the mask takes part")
        missing = members & ~self._present(lanes)[warp] != 0
        if missing.any():
            machine.leave_behind(lanes[missing], ins)
            lanes, masks = lanes[~missing], masks[~missing]
        if lanes.size:
            machine.desperate = False
        return lanes, masks

    def _present(self, lanes):
        bits = np.bincount(self.index[lanes], weights=np.exp2(self.lane[lanes]), minlength=self.count)
        return bits.astype(np.int64)

    def shuffle(self, goal, flag, slots, mode, at, ins):
        machine, views = self.machine, self.machine.views
        data, b, c, mask = slots
        lanes, _ = self.complete(mask, at, ins)
        if not lanes.size:
            return
        lane = self.lane[lanes]
        b, c = views[b][lanes].astype(np.int64) & 31, views[c][lanes].astype(np.int64)
        clamp, segment = c & 31, (c >> 8) & 31
        low, high = lane & segment, (lane & segment) | (clamp & ~segment & 31)
        wanted = {"bfly": lane ^ b, "up": lane - b, "down": lane + b, "idx": low | (b & ~segment & 31)}[mode]
        inside = wanted >= high if mode == "up" else wanted <= high
        wanted = np.where(inside, wanted, lane)
        if lanes.size != self.full and ((self._present(lanes)[self.index[lanes]] >> wanted) & 1 == 0).any():
            machine.fault("divergence", lanes[0], ins, " reads a lane that does not take part")
        views[goal][lanes] = views[data][lanes - lane + wanted]
        views[flag][lanes] = inside

    def vote(self, goal, choice, mask, mode, at, ins):
        views = self.machine.views
        lanes, masks = self.complete(mask, at, ins)
        if not lanes.size:
            return
        yes = self._present(lanes[views[choice][lanes]])[self.index[lanes]]
        masks = masks.astype(np.int64)
        result = {
            "ballot": yes & masks,
            "any": yes & masks != 0,
            "all": yes & masks == masks,
            "uni": (yes & masks == masks) | (yes & masks == 0),
        }
        views[goal][lanes] = result[mode]

    def reduce(self, goal, value, mask, function, at, ins):
        views = self.machine.views
        lanes, masks = self.complete(mask, at, ins)
        if not lanes.size:
            return
        keys = self.index[lanes] << 32 | masks.astype(np.int64)  # disjoint masks of one warp are apart
        _, first, group = np.unique(keys, return_index=True, return_inverse=True)
        values = views[value][lanes]
        result = values[first].copy()
        others = np.ones(lanes.size, bool)
        others[first] = False
        function.at(result, group[others], values[others])
        views[goal][lanes] = result[group]

    def synchronise(self, mask, at, ins, running):
        """`__syncwarp`: return the lanes that have met; masks must name every running lane of the warp."""
        lanes, masks = self.complete(mask, at, ins)
        if lanes.size and (self._present(running)[self.index[lanes]] & ~masks.astype(np.int64) != 0).any():
            raise Unsupported(f"{ins}: __syncwarp of a part of the running lanes")
        return lanes
