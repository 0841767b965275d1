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
        self.bit = np.exp2(self.lane)

    def complete(self, mask_slot, at, ins):
        """Return (lanes whose whole mask is here, their masks); the others stay at this instruction."""
        machine = self.machine
        masks, lanes = machine.views[mask_slot][at], machine.everyone[at]
        are_whole = self._are_whole_warps(lanes)
        if are_whole and np.count_nonzero(masks == 0xFFFFFFFF) == lanes.size:
            machine.desperate = False
            return lanes, masks
        members, lane = masks.astype(np.int64), machine.of(lanes, self.lane)
        if np.count_nonzero((members >> lane) & 1) < lanes.size:
            machine.fault("divergence", lanes[0], ins, " a thread outside the mask takes part")
        if not are_whole:
            missing = members & ~self._present(lanes)[self.index[lanes]] != 0
            if np.count_nonzero(missing):
                machine.leave_behind(lanes[missing], ins)
                lanes, masks = lanes[~missing], masks[~missing]
        if lanes.size:
            machine.desperate = False
        return lanes, masks

    def _are_whole_warps(self, lanes):
        """Whether nobody of any of these warps is missing; lanes ascend."""
        if not self.whole or lanes.size % WARP:
            return False
        firsts, lasts = lanes[::WARP], lanes[WARP - 1 :: WARP]
        return not np.count_nonzero(firsts % WARP) and np.count_nonzero(lasts - firsts == WARP - 1) == firsts.size

    def _present(self, lanes):
        bits = np.bincount(self.index[lanes], weights=self.bit[lanes], minlength=self.count)
        return bits.astype(np.int64)

    def shuffle(self, goal, flag, slots, mode, at, ins):
        machine, views = self.machine, self.machine.views
        data, b, c, mask = slots
        lanes, _ = self.complete(mask, at, ins)
        if not lanes.size:
            return
        partners, inside = self._find_partners(lanes, views[b][lanes], views[c][lanes], mode)
        if not self._are_whole_warps(lanes):
            there = self._present(lanes)[self.index[lanes]] >> (partners - lanes + self.lane[lanes])
            if np.count_nonzero(there & 1) < lanes.size:
                machine.fault("divergence", lanes[0], ins, " reads a lane that does not take part")
        views[goal][lanes], views[flag][lanes] = views[data][partners], inside

    def _find_partners(self, lanes, b, c, mode):
        """Return whom each thread reads, itself where that would be outside its segment, and whether it is inside."""
        lane = self.lane[lanes]
        b, c = b.astype(np.int64) & 31, c.astype(np.int64)
        clamp, segment = c & 31, (c >> 8) & 31
        low, high = lane & segment, (lane & segment) | (clamp & ~segment & 31)
        wanted = {"bfly": lane ^ b, "up": lane - b, "down": lane + b, "idx": low | (b & ~segment & 31)}[mode]
        inside = wanted >= high if mode == "up" else wanted <= high
        return lanes - lane + np.where(inside, wanted, lane), inside

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
