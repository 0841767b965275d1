from dataclasses import replace

import numpy as np
import pytest
from cuda_device import cuda
from oracle import make_data
from test_solvers import Separate, quadratic, zeros

from gpusoftmax import SoftmaxRegression
from gpusoftmax.backends.cuda import CupyBackend
from gpusoftmax.solvers.base import Progress, Status
from gpusoftmax.solvers.ladder import _UntilRounding, climb
from gpusoftmax.solvers.lbfgs import LBFGS
from gpusoftmax.sources import ArraySource


def rounded(function, rounding):
    """Return a function whose gradient carries an error of a relative size."""

    def coarse(x):
        value, g = function(x)
        return value, g + rounding * np.abs(g).max() * np.cos(1e6 * x) + 0.1 * rounding

    return coarse


ROUNDING = 1e-3
EXACT, MINIMUM = quadratic(3)


def objectives(*, coarse=ROUNDING, n_problems=1):
    exact = Separate([EXACT] * n_problems)
    return [Separate([rounded(EXACT, coarse)] * n_problems, precision=coarse), exact]


def solve(levels, tol=1e-8, **options):
    return climb(LBFGS(tol=tol, max_iter=options.pop("max_iter", 100)), levels, zeros(1), **options)


def count(objective, kind):
    return [name for name, _ in objective.log].count(kind)


def test_the_exact_objective_finishes_what_a_coarse_one_began():
    coarse, exact = objectives()
    alone = LBFGS(tol=1e-8).minimize(replace(exact, log=[]), zeros(1))
    solution = solve([coarse, exact])
    assert solution.status == [Status.CONVERGED]
    np.testing.assert_allclose(solution.params.ravel(), MINIMUM, atol=1e-7)
    assert count(coarse, "evaluate") > 3
    assert count(exact, "evaluate") < alone.n_passes[0]


def test_passes_and_steps_of_all_levels_count():
    coarse, exact = objectives()
    solution = solve([coarse, exact])
    evaluations = count(coarse, "evaluate") + count(exact, "evaluate")
    metrics = count(coarse, "metric") + count(exact, "metric")
    assert solution.n_passes == [evaluations + 0.25 * metrics]
    assert solution.n_iter[0] <= evaluations


def test_a_coarse_level_is_never_reported_converged():
    coarse, exact = objectives()
    solution = solve([coarse, exact], is_exact=False)
    assert solution.status == [Status.PRECISION_REACHED]
    assert count(exact, "evaluate") == 1
    x = solution.params.ravel()
    assert solution.value == [EXACT(x)[0]]
    assert solution.gradient_norm == [np.abs(EXACT(x)[1]).max()]


def test_a_coarse_level_that_suffices_is_converged_by_the_exact_judge():
    coarse, exact = objectives(coarse=1e-9)
    solution = solve([coarse, exact], tol=1e-4, is_exact=False)
    assert solution.status == [Status.CONVERGED]
    assert count(exact, "evaluate") == 1


def test_without_coarse_levels_the_exact_one_takes_its_steps_whatever_was_allowed():
    *_, exact = objectives()
    assert solve([exact], is_exact=False).status == [Status.CONVERGED]


@pytest.mark.parametrize("max_iter", [0, 1, 4])
@pytest.mark.parametrize("is_exact", [False, True])
def test_the_step_limit_is_for_all_levels_together(max_iter, is_exact):
    solution = solve(objectives(), max_iter=max_iter, is_exact=is_exact)
    assert solution.n_iter == [max_iter]
    assert solution.status == [Status.ITERATION_LIMIT]


def test_a_callback_hears_of_all_levels_as_of_one_solve():
    heard = []
    solution = solve(objectives(), callback=lambda progress: heard.append((progress.n_passes, progress.n_iter[0])))
    assert heard == sorted(heard)
    assert heard[-1] == (solution.n_passes[0], solution.n_iter[0])


@pytest.mark.parametrize("n_calls", [1, 3])
def test_a_callback_stops_the_whole_climb(n_calls):
    coarse, exact = objectives()
    calls = iter(range(1, 100))
    solution = solve([coarse, exact], callback=lambda progress: next(calls) == n_calls)
    assert solution.status == [Status.STOPPED]
    assert exact.log == []


def test_a_coarse_level_that_ends_as_it_is_stopped_is_not_converged():
    coarse, exact = objectives(coarse=1e-9)
    solution = solve([coarse, exact], tol=1e-4, callback=lambda progress: progress.n_finished == 1)
    assert solution.status == [Status.STOPPED]
    assert exact.log == []


def stops_after(norms, rounding=1e-2):
    """Return how many evaluations with the given gradient norms a coarse level takes."""
    stop = _UntilRounding(rounding, None)
    for n, row in enumerate(np.transpose(norms), 1):
        if stop(Progress(n, float(n), np.zeros(len(row), int), np.zeros(len(row)), row, 0, list)):
            return n
    return None


def test_a_coarse_level_ends_where_every_gradient_is_down_to_its_rounding():
    assert stops_after([[1.0, 0.5, 0.02, 0.01, 0.005]]) == 4
    assert stops_after([[1.0, 0.5, 0.02, 0.01, 0.005], [2.0, 1.0, 0.5, 0.1, 0.02]]) == 5


def test_a_coarse_level_ends_where_no_gradient_falls_any_more():
    assert stops_after([[1.0, 0.5, 0.49, 0.48, 0.6, 0.47, 0.1]]) == 6
    assert stops_after([[1.0, 0.5, 0.49, 0.48, 0.6, 0.47, 0.1], [1.0, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]]) is None


class SlowBackend(CupyBackend):
    """A device that computes by products and is slow at something."""

    def __init__(self, slow):
        super().__init__()
        self.slow = slow

    def fused_pass(self, source, plan):
        facts = replace(plan.facts, **{self.slow: 1.0})
        return super().fused_pass(source, replace(plan, is_one_kernel=False, facts=facts))


def fit_on_cuda(monkeypatch, precision, dtype=np.float32, slow="clock_hz", **machine):
    """Return the precisions of a fit's products, in order and each once in a row, and the fit."""
    from gpusoftmax.backends import cuda as module

    used = []
    original = module.gemm

    def gemm(*args, precision, **options):
        if used[-1:] != [precision]:
            used.append(precision)
        return original(*args, precision=precision, **options)

    rng = np.random.default_rng(0)
    X = rng.normal(size=(130, 4)).astype(dtype)
    y = (X @ rng.normal(size=(4, 3)) + rng.gumbel(size=(130, 3))).argmax(axis=1)
    with cuda(**machine):
        backend = SlowBackend(slow)
        monkeypatch.setattr(module, "gemm", gemm)
        monkeypatch.setattr("gpusoftmax.estimator.get_backend", lambda *device: backend)
        clf = SoftmaxRegression(precision=precision, device="cuda", tol=1e-5).fit(X, y)
    return used, clf


@pytest.mark.filterwarnings("ignore:The fit reached")
@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("auto", ["tf32", "float32_pedantic"]),
        ("highest", ["float32_pedantic"]),
        ("high", ["tf32", "float32_pedantic"]),
        ("medium", ["bfloat16", "float32_pedantic"]),
    ],
)
def test_precision_names_the_products_of_a_fit(precision, expected, monkeypatch):
    used, clf = fit_on_cuda(monkeypatch, precision)
    assert used == expected
    assert clf.status_ == (Status.CONVERGED if precision in ("auto", "highest") else Status.PRECISION_REACHED)


def test_auto_takes_exact_products_where_memory_bounds_a_pass(monkeypatch):
    assert fit_on_cuda(monkeypatch, "auto", slow="bytes_per_second")[0] == ["float32_pedantic"]


def test_float64_is_never_rounded(monkeypatch):
    assert fit_on_cuda(monkeypatch, "medium", dtype=np.float64)[0] == ["float64"]


def test_a_card_without_tensor_cores_for_float32_is_exact(monkeypatch):
    pytest.importorskip("emulator.cupy_standin")
    from emulator.cupy_standin import Facts

    turing = Facts(compute_capability="75")
    assert fit_on_cuda(monkeypatch, "high", device=turing)[0] == ["float32_pedantic"]


def test_problems_that_leave_take_no_precision_with_them():
    data = make_data(70, 3, 2, 4)
    with cuda():
        backend = SlowBackend("clock_hz")
        source = backend.place(ArraySource(data.X, data.targets, data.weights, data.X.dtype))
        plan = backend.facts().plan_pass(70, 3, 2, 4, data.X.dtype)
        coarse = backend.fused_pass(source, plan)._with_products("tf32")
        chosen = coarse.select(np.array([1]))
        assert chosen._forward.precision == "tf32"
        assert chosen.rounding == coarse.rounding == 2.0**-11
