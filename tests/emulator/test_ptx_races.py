"""The race check against its definition: compare every pair of accesses."""

import numpy as np
import pytest

from emulator.ptx.races import BLOCK, EPOCH, WARP_SYNC, Shadow

GRANULES = 6


class History:
    """Random accesses of a few blocks of two warps, with barriers; each knows what is ordered before it."""

    def __init__(self, rng, n_blocks, warp_order):
        self.rng, self.n_blocks, self.warp_order = rng, n_blocks, warp_order
        self.epoch = np.zeros(n_blocks, int)
        self.syncs = np.zeros((n_blocks, 2), int)
        self.seen = []  # (granule, block, epoch, warp, syncs, thread, writes, atomic)

    def step(self):
        """Synchronise somebody, or return the lanes of one instruction: [(block, thread, granule), ...]."""
        rng, block = self.rng, int(self.rng.integers(self.n_blocks))
        choice = rng.random()
        if choice < 0.15:
            self.epoch[block] += 1
            self.syncs[block] = 0
            return None
        if choice < 0.35 and self.warp_order:
            self.syncs[block, rng.integers(2)] += 1
            return None
        threads = rng.permutation(64)[: rng.integers(1, 5)]
        return [(block, int(thread), int(rng.integers(GRANULES))) for thread in threads]

    def code(self, block, thread):
        return block * BLOCK + self.epoch[block] * EPOCH + self.syncs[block, thread // 32] * WARP_SYNC + thread

    def races(self, lanes, writes, atomic):
        """Whether an access of this instruction is unordered with an earlier one, or with another of its own."""
        now = []
        for block, thread, granule in lanes:
            warp = thread // 32
            mine = (granule, block, self.epoch[block], warp, self.syncs[block, warp], thread, writes, atomic)
            if any(self._clash(mine, other) for other in (*self.seen, *now)):
                return True
            now.append(mine)
        self.seen += now
        return False

    @staticmethod
    def _clash(a, b):
        (granule, block, epoch, warp, syncs, thread, writes, atomic) = a
        (granule_b, block_b, epoch_b, warp_b, syncs_b, thread_b, writes_b, atomic_b) = b
        if granule != granule_b or not (writes or writes_b) or (atomic and atomic_b):
            return False
        if block != block_b:
            return True
        if epoch != epoch_b or thread == thread_b:
            return False
        return warp != warp_b or syncs == syncs_b


@pytest.mark.parametrize("warp_order", [False, True])
@pytest.mark.parametrize("n_blocks", [1, 3])
def test_a_race_is_seen_exactly_when_two_accesses_are_unordered(n_blocks, warp_order):
    outcomes = {True: 0, False: 0}
    for seed in range(800):
        rng = np.random.default_rng(seed)
        history = History(rng, n_blocks, warp_order)
        shadow = Shadow(GRANULES, warp_order, several_blocks=n_blocks > 1)
        write_share, atomic_share = rng.choice([0.1, 0.3, 0.6]), rng.choice([0.3, 0.9])
        for _ in range(40):
            lanes = history.step()
            if lanes is None:
                continue
            writes = bool(rng.random() < write_share)
            atomic = bool(writes and rng.random() < atomic_share)
            index = np.array([granule for _, _, granule in lanes])
            codes = np.array([history.code(block, thread) for block, thread, _ in lanes])
            racing = shadow.write(index, codes, atomic)[0] if writes else shadow.read(index, codes)
            found = racing is not None and bool(racing.any())
            wanted = history.races(lanes, writes, atomic)
            outcomes[wanted] += 1
            assert found == wanted, (seed, lanes, writes)
            if found:
                break
    assert min(outcomes.values()) > 100  # both happen


def test_an_instruction_of_many_lanes_is_remembered_as_such():
    """Three lanes of two warps add to one granule; a fourth reads it behind a __syncwarp."""
    shadow = Shadow(1, True, several_blocks=False)
    assert shadow.write(np.array([0, 0, 0]), np.array([45, 1, 0]), True)[0] is None
    assert shadow.read(np.array([0]), np.array([WARP_SYNC + 6])).all()


def test_atomics_of_two_threads_race_with_a_plain_write_of_one():
    shadow = Shadow(1, False)
    for thread in (3, 7):
        assert shadow.write(np.array([0]), np.array([thread]), True)[0] is None
    assert shadow.write(np.array([0]), np.array([7]), False)[0].all()


def test_shadows_grow_with_their_memory():
    shadow = Shadow(2, False)
    assert shadow.write(np.array([1]), np.array([BLOCK + 5]), False)[0] is None
    shadow.grow(4)
    assert shadow.read(np.array([3]), np.array([5])) is None
    assert shadow.read(np.array([1]), np.array([5])).all()
