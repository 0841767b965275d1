import numpy as np
import pytest
from oracle import assert_close

from gpusoftmax.backends.cpu import NumpyBackend
from gpusoftmax.solvers.continuation import LENGTH, Trail

RNG = np.random.default_rng(0)
START, WAY = RNG.normal(size=(2, 5, 3, 4))
TIMES = np.array([[0.0, 1.0, -2.0], [1.0, 1.5, 0.0], [3.0, 2.2, 1.0], [4.0, 4.0, 1.5]])  # of 3 problems


def trail_of(path, times=TIMES[:3]):
    trail = Trail(NumpyBackend())
    for time in times:
        trail = trail.extended(path(time), time)
    return trail


@pytest.mark.parametrize("rate", [0.0, 0.3, -0.2], ids=["even", "settling", "growing"])
def test_a_path_whose_velocity_changes_at_a_rate_is_met(rate):
    """Exactly where steps are even; where they are not, the rate is taken between their middles."""

    def path(time):
        length = time if rate == 0 else (1 - np.exp(-rate * time)) / rate
        return START + length[:, np.newaxis] * WAY

    even = np.arange(4.0)[:, np.newaxis] * [1.0, 0.5, 0.2]
    step = trail_of(path, even[:3]).step_to(even[3])
    assert_close(path(even[2]) + step, path(even[3]), 1e-12)
    uneven = path(TIMES[2]) + trail_of(path).step_to(TIMES[3])
    missed = np.abs(uneven - path(TIMES[3])).max()
    assert missed < 0.15 * np.abs(path(TIMES[3]) - path(TIMES[2])).max()


def test_no_step_without_three_solutions():
    trail = Trail(NumpyBackend())
    for time in TIMES[: LENGTH - 1]:
        assert trail.step_to(TIMES[3]) is None
        trail = trail.extended(START, time)
    assert trail.step_to(TIMES[3]) is None


def test_only_the_last_three_count():
    trail = trail_of(lambda time: START + time[:, np.newaxis] * WAY)
    longer = trail_of(lambda time: START + time[:, np.newaxis] * WAY, [TIMES[0] - 7, *TIMES[:3]])
    np.testing.assert_array_equal(longer.step_to(TIMES[3]), trail.step_to(TIMES[3]))


@pytest.mark.parametrize(
    "times",
    [
        [[0.0] * 3, [0.0] * 3, [1.0] * 3, [2.0] * 3],
        [[0.0] * 3, [1.0] * 3, [1.0] * 3, [2.0] * 3],
        [[0.0] * 3, [1.0] * 3, [2.0] * 3, [np.inf] * 3],
        [[0.0] * 3, [1.0] * 3, [np.inf] * 3, [np.inf] * 3],
        [[0.0] * 3, [0.003] * 3, [0.006] * 3, [9.2] * 3],
    ],
    ids=["the oldest twice", "the middle twice", "to no penalty", "from no penalty", "far away"],
)
def test_no_guess_where_times_give_none(times):
    times = np.array(times)
    trail = Trail(NumpyBackend())
    for i, time in enumerate(times[:3]):
        trail = trail.extended(START + i * WAY, time)
    np.testing.assert_array_equal(trail.step_to(times[3]), 0.0)


def test_a_path_that_has_turned_round_or_stood_still_gives_no_guess():
    trail = Trail(NumpyBackend())
    for time, place in zip(TIMES, [0.0, 1.0, 0.5], strict=False):
        trail = trail.extended(START + place * WAY, time)
    np.testing.assert_array_equal(trail.step_to(TIMES[3]), 0.0)
    np.testing.assert_array_equal(trail_of(lambda _: START).step_to(TIMES[3]), 0.0)


def test_problems_are_apart_and_can_be_chosen():
    trail = trail_of(lambda time: START + time[:, np.newaxis] * WAY)
    kept = np.array([0, 2])
    some = trail.select(kept, kept).step_to(TIMES[3][kept])
    assert_close(some, trail.step_to(TIMES[3])[:, kept], 1e-14)
