import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import FLOAT32

from gpusoftmax.exceptions import WorkspaceError
from gpusoftmax.plan import DeviceFacts, plan_fit
from gpusoftmax.plan_cuda import CudaFacts
from gpusoftmax.plan_sweep import SWEEP_BYTES, plan_sweep

CPU = DeviceFacts(2)
H100 = CudaFacts(90, 132, 1.98e9, 3.35e12, 70 << 30, 227 << 10)


def plan(n_rows=200_000, n_features=784, n_folds=1, Cs=16, n_classes=10, facts=CPU, vectors=120, **options):
    strengths = np.logspace(-4, 4, Cs) if isinstance(Cs, int) else np.array(Cs)
    return plan_sweep(n_rows, n_features, n_folds, strengths, n_classes, FLOAT32, facts, vectors=vectors, **options)


@given(st.integers(1, 10**6), st.integers(1, 7), st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=40), st.data())
def test_every_problem_runs_once_and_paths_rise(n_rows, n_folds, Cs, data):
    n_at_once = data.draw(st.integers(1, 50))
    budget = 120 * 7 * 3 * 4 * 2 * n_at_once + 50_000
    made = plan(n_rows, 6, n_folds, Cs, 3, budget_bytes=budget)
    waves = made.waves()
    assert all(len(wave) <= made.n_at_once for wave in waves)
    problems = np.concatenate(waves)
    assert sorted(problems[problems >= 0]) == list(range(len(Cs) * n_folds))
    for path in problems:
        running = path[path >= 0]
        assert (path[len(running) :] == -1).all()
        assert len(set(running % n_folds)) == 1
        assert (np.diff(np.array(Cs)[running // n_folds]) >= 0).all()


def test_long_passes_follow_one_path_a_fold():
    assert plan().paths.shape == (1, 16)
    assert plan(n_folds=5).paths.shape == (5, 16)


def test_short_passes_run_several_paths_a_fold():
    assert len(plan(n_rows=1797, n_features=64, Cs=20).paths) == 2
    assert len(plan(n_rows=1797, n_features=64, Cs=20, n_folds=5).paths) == 10
    assert len(plan(n_rows=10, n_features=2, Cs=3).paths) == 1


def test_a_fast_device_runs_more_at_once():
    assert len(plan(n_rows=20_000, facts=H100).paths) > len(plan(n_rows=20_000).paths)


def test_vectors_are_bounded_without_a_budget():
    made = plan(n_rows=1000, n_features=2000, n_classes=1000, n_folds=40)
    assert made.n_at_once == SWEEP_BYTES // (120 * 2001 * 1000 * 4)
    assert made.pass_budget is None
    assert plan(n_rows=1000, n_features=20_000, n_classes=1000, n_folds=40).n_at_once == 1


@pytest.mark.parametrize("facts", [CPU, H100], ids=["CPU", "CUDA"])
def test_a_budget_holds_vectors_and_workspace(facts):
    sizes, one = (5000, 50, 8, 10, 20), 120 * 51 * 20 * 4
    for budget in (3_000_000, 10_000_000, 10**9):
        made = plan(*sizes, facts=facts, budget_bytes=budget)
        assert made.pass_budget + made.n_at_once * one == budget
        fit = plan_fit(5000, 50, made.n_at_once, 20, FLOAT32, facts, budget_bytes=made.pass_budget)
        assert sum(each.workspace_bytes for each in fit) <= made.pass_budget
    assert made.n_at_once == len(made.paths)


def test_the_budget_that_is_named_is_enough_and_no_less_is():
    with pytest.raises(WorkspaceError) as caught:
        plan(budget_bytes=1)
    least = int(str(caught.value).split("memory_budget=")[-1].rstrip("."))
    made = plan(budget_bytes=least)
    assert made.n_at_once == 1
    plan_fit(200_000, 784, 1, 10, FLOAT32, CPU, budget_bytes=made.pass_budget)
    with pytest.raises(WorkspaceError):
        plan(budget_bytes=least - 1)
