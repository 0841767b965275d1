import numpy as np
import pytest
from oracle import FLOAT32, FLOAT64

from gpusoftmax.exceptions import WorkspaceError
from gpusoftmax.plan_many import _problem_bytes, plan_waves


def plan(n_rows, n_features=64, n_classes=5, dtype=FLOAT32, n_threads=2, budget=None, is_soft=False, device="cpu"):
    sizes = n_features, n_classes, dtype, device, n_threads
    return plan_waves(np.asarray(n_rows), *sizes, is_soft=is_soft, budget_bytes=budget)


def least(n_rows, n_features=64, n_classes=5, dtype=FLOAT32, is_soft=False):
    return _problem_bytes(n_rows, n_features, n_classes, dtype.itemsize, is_soft)


COUNTS = {
    "one": [100],
    "a thousand": [100] * 1000,
    "ragged": np.random.default_rng(0).integers(1, 1000, 333),
    "one giant": [1_000_000, *[20] * 50],
}


@pytest.mark.parametrize("factor", [None, 1.5, 10])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("n_threads", [1, 2, 7])
def test_waves_hold_every_problem_once_the_largest_first(counts, n_threads, factor):
    counts = np.asarray(counts)
    budget = None if factor is None else int(factor * least(int(counts.max())))
    waves = plan(counts, n_threads=n_threads, budget=budget).waves
    order = np.concatenate(waves)
    np.testing.assert_array_equal(np.sort(order), np.arange(len(counts)))
    assert (np.diff(counts[order]) <= 0).all()


@pytest.mark.parametrize("is_soft", [True, False])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("factor", [1, 1.9, 2.1, 50])
def test_waves_at_once_keep_the_budget(counts, factor, is_soft):
    counts = np.asarray(counts)
    budget = int(factor * least(int(counts.max()), is_soft=is_soft))
    made = plan(counts, budget=budget, is_soft=is_soft)
    factors = made.n_factored * 64 * 65**2
    for wave in made.waves:
        own = len(wave) * least(int(counts[wave[0]]), is_soft=is_soft) + factors
        assert made.n_threads * own <= budget


def test_no_thread_is_idle_where_problems_are_alike():
    for n_threads in (1, 2, 3, 8):
        made = plan([100] * 1000, n_threads=n_threads)
        assert made.n_threads == n_threads
        assert len(made.waves) % n_threads == 0
        assert np.ptp([len(wave) for wave in made.waves]) <= n_threads * len(made.waves)


def test_the_smallest_budget_is_named_and_enough():
    with pytest.raises(WorkspaceError, match=rf"5000 rows, 64 features and 5 .*memory_budget={least(5000)}\.$"):
        plan([10, 5000], budget=least(5000) - 1)
    made = plan([10, 5000], budget=least(5000))
    assert made.n_threads == 1
    assert made.n_factored == 0


@pytest.mark.parametrize("factor", [1, 2.1, 50])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_waves_of_problems_with_classes_of_their_own(counts, factor):
    counts = np.asarray(counts)
    n_classes = np.random.default_rng(1).integers(2, 70, len(counts))
    budget = int(factor * max(least(*sizes) for sizes in zip(counts, [64] * len(counts), n_classes, strict=True)))
    made = plan(counts, n_classes=n_classes, budget=budget)
    np.testing.assert_array_equal(np.sort(np.concatenate(made.waves)), np.arange(len(counts)))
    for wave in made.waves:
        assert counts[wave].max() == counts[wave[0]]
        assert n_classes[wave].max() < 2 * n_classes[wave].min()
        own = len(wave) * least(counts[wave[0]], n_classes=n_classes[wave].max()) + made.n_factored * 64 * 65**2
        assert made.n_threads * own <= budget


def test_the_smallest_budget_is_that_of_the_largest_problem_not_of_the_most_rows_and_classes():
    rows, n_classes = [1000, 10], np.array([2, 400])
    needed = max(least(1000, n_classes=2), least(10, n_classes=400))
    with pytest.raises(WorkspaceError, match=rf"10 rows, 64 features and 400 .*memory_budget={needed}\.$"):
        plan(rows, n_classes=n_classes, budget=needed - 1)
    assert plan(rows, n_classes=n_classes, budget=needed).n_threads == 1


def test_factors_are_made_where_they_fit():
    assert plan([100] * 50).n_factored > 10
    assert plan([3000] * 50, dtype=FLOAT64, n_features=3000).n_factored == 0
    assert plan([1500], n_features=1500).n_factored == 0  # one needs 144 MB
    assert plan([100] * 50, dtype=FLOAT64, n_features=3000).n_factored > 10  # in the span of 100 rows


def test_problems_in_the_span_of_their_rows_share_no_wave_with_others():
    counts = np.array([40, 33, 32, 5])
    waves = plan(counts, n_threads=1).waves
    assert [counts[wave].tolist() for wave in waves] == [[40, 33], [32, 5]]


def test_a_gpu_gets_larger_waves():
    assert len(plan([100] * 5000, n_threads=1, device="cuda").waves) < len(plan([100] * 5000, n_threads=1).waves)
