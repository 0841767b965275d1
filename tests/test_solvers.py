from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_close, make_data

from gpusoftmax.backends.cpu import NumpyBackend
from gpusoftmax.kernels import reference
from gpusoftmax.solvers.base import Known, Status
from gpusoftmax.solvers.lbfgs import LBFGS, MAX_TRIALS
from gpusoftmax.solvers.line_search import Bracket, is_acceptable, is_too_short, next_step

SHAPE = (3, 4)  # params of one problem: (n_features + 1, n_classes)
SIZE = 12


@dataclass(frozen=True)
class DiagonalMetric:
    """A multiple of the identity for each problem."""

    sizes: np.ndarray
    n_passes: float = 0.25

    def apply(self, gradient):
        assert gradient.shape[1] == len(self.sizes)
        return self.sizes[:, np.newaxis].astype(gradient.dtype) * gradient

    def select(self, active):
        return replace(self, sizes=self.sizes[active])


@dataclass(frozen=True)
class Separate:
    """An objective made of one function per problem, each of a vector; records what is asked of it."""

    functions: list
    inverse_hessian: float = 1.0
    precision: float = 2.0**-52
    arrays: NumpyBackend = field(default_factory=NumpyBackend)
    log: list = field(default_factory=list)

    def value_and_grad(self, params):
        assert params.shape == (SHAPE[0], len(self.functions), SHAPE[1])
        self.log.append(("evaluate", len(self.functions)))
        value, grad = np.empty(len(self.functions)), np.empty(params.shape, params.dtype)
        for p, function in enumerate(self.functions):
            value[p], g = function(params[:, p].ravel())
            grad[:, p] = np.reshape(g, SHAPE)
        return value, grad

    def metric(self, params, *, is_rough):
        assert is_rough == ("metric" not in [kind for kind, _ in self.log])  # only before the first steps
        self.log.append(("metric", len(self.functions)))
        return DiagonalMetric(np.full(len(self.functions), self.inverse_hessian))

    def select(self, active):
        self.log.append(("select", active.tolist()))
        return replace(self, functions=[self.functions[p] for p in active])


def quadratic(seed, condition=30.0):
    """Return ½ (x - m)ᵀ H (x - m) + 3 and its minimum m."""
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))
    H = (Q * np.geomspace(1, condition, SIZE)) @ Q.T
    m = rng.normal(size=SIZE)

    def function(x):
        g = H @ (x - m)
        return 0.5 * (x - m) @ g + 3, g

    return function, m


def rosenbrock(x):
    a, b = x[:-1], x[1:]
    g = np.zeros_like(x)
    g[:-1] = 2 * (a - 1) - 400 * a * (b - a**2)
    g[1:] += 200 * (b - a**2)
    return (100 * (b - a**2) ** 2 + (1 - a) ** 2).sum(), g


def softmax(seed, strength=0.01):
    """Return a small penalised softmax regression."""
    data = make_data(40, SHAPE[0] - 1, 1, SHAPE[1], seed=seed)

    def function(x):
        params = x.astype(float).reshape(SHAPE[0], 1, SHAPE[1])
        loss, grad = reference.loss_and_gradient(data.X, data.targets, data.full_weights(), params)
        grad /= 40
        grad[:-1] += strength * params[:-1]
        return loss[0] / 40 + strength / 2 * (params[:-1] ** 2).sum(), grad.ravel()

    return function


def never_finite(x):
    return np.nan, np.full_like(x, np.nan)


def a_wall_at_once(x):
    """Finite at the origin only."""
    return (1.0, np.ones_like(x)) if not x.any() else (np.inf, np.full_like(x, np.nan))


def a_gradient_that_lies(x):
    """Its gradient points downhill: no step along its negative lowers the value."""
    return 1 + 0.5 * x @ x, -x - 1


def log_barrier(x):
    """Finite only where every entry lies above -0.01."""
    if (x <= -0.01).any():
        return np.inf, np.full_like(x, np.nan)
    return (50 * x - np.log(x + 0.01)).sum(), 50 - 1 / (x + 0.01)


def zeros(n_problems, dtype=float):
    return np.zeros((SHAPE[0], n_problems, SHAPE[1]), dtype)


def minimize(*functions, start=None, callback=None, dtype=float, inverse_hessian=1.0, **options):
    objective = Separate(list(functions), inverse_hessian, float(np.finfo(dtype).eps))
    start = zeros(len(functions), dtype) if start is None else start
    return LBFGS(**{"tol": 1e-8} | options).minimize(objective, start, callback), objective.log


class TestOptimality:
    @pytest.mark.parametrize("condition", [1.0, 30.0, 1e4])
    @pytest.mark.parametrize("inverse_hessian", [1.0, 0.1, 1e3])
    def test_quadratics(self, inverse_hessian, condition):
        functions, minima = zip(*(quadratic(seed, condition) for seed in range(3)), strict=True)
        solution, _ = minimize(*functions, inverse_hessian=inverse_hessian)
        assert (solution.status == Status.CONVERGED).all()
        assert (solution.gradient_norm <= 1e-8).all()
        assert_close(solution.params.transpose(1, 0, 2).reshape(3, -1), np.array(minima), 1e-7)
        assert_close(solution.value, [3, 3, 3], 1e-12)

    @pytest.mark.parametrize("function", [rosenbrock, softmax(0), softmax(1, 1e-4), log_barrier])
    def test_the_gradient_vanishes(self, function):
        solution, _ = minimize(function)
        assert solution.status == [Status.CONVERGED]
        x = solution.params[:, 0].ravel()
        value, gradient = function(x)
        assert np.abs(gradient).max() <= 1e-8
        assert solution.gradient_norm == [np.abs(gradient).max()]
        assert solution.value == [value]
        assert value < function(np.zeros(SIZE))[0]

    @pytest.mark.parametrize("inverse_hessian", [1e-2, 1e2, 1e4])
    @pytest.mark.parametrize("function", [softmax(0), softmax(1, 1e-4), log_barrier])
    def test_first_steps_of_the_wrong_length_do_no_harm(self, function, inverse_hessian):
        solution, _ = minimize(function, inverse_hessian=inverse_hessian)
        assert solution.gradient_norm[0] <= 1e-6
        assert_close(solution.value, minimize(function)[0].value, 1e-10)

    def test_history_beats_steepest_descent(self):
        solution, _ = minimize(quadratic(0, 1e3)[0], n_pairs=12)
        assert solution.n_iter[0] < 60

    def test_a_start_at_the_optimum_stays_there(self):
        function, m = quadratic(0)
        start = m.reshape(SHAPE[0], 1, SHAPE[1])
        solution, log = minimize(function, start=start)
        assert solution.status == [Status.CONVERGED]
        assert solution.n_iter == [0]
        np.testing.assert_array_equal(solution.params, start)
        assert sum(kind == "evaluate" for kind, _ in log) == 1

    def test_a_small_gradient_is_not_enough(self):
        # Gradients within tol on a slope so gentle that the minimum is far below: the decrease decides.
        def function(x):
            return 0.5e-6 * (x - 1e3) @ (x - 1e3), 1e-6 * (x - 1e3)

        solution, _ = minimize(function, tol=1e-2, inverse_hessian=1e6)
        assert solution.value[0] < 1e-3

    def test_start_is_not_modified(self):
        by_problem = np.random.default_rng(0).normal(size=(2, *SHAPE))
        for start in (by_problem.transpose(1, 0, 2), np.ascontiguousarray(by_problem.transpose(1, 0, 2))):
            before = start.copy()
            solution, _ = minimize(rosenbrock, softmax(0), start=start)
            np.testing.assert_array_equal(start, before)
            assert not np.shares_memory(solution.params, start)


FAMILY = [quadratic(0)[0], softmax(0), softmax(1, 1e-4), quadratic(1, 1e3)[0], log_barrier]


class TestBatch:
    def test_problems_together_take_the_steps_that_each_takes_alone(self):
        together, _ = minimize(*FAMILY)
        for p, function in enumerate(FAMILY):
            alone, _ = minimize(function)
            assert alone.n_iter == together.n_iter[p]
            assert alone.status == together.status[p]
            assert_close(alone.params[:, 0], together.params[:, p], 1e-9)
            assert_close(alone.value[0], together.value[p], 1e-13)

    @pytest.mark.parametrize("n_steps", [1, 4, 12])
    def test_their_iterates_agree_on_the_way(self, n_steps):
        together, _ = minimize(*FAMILY, max_iter=n_steps)
        for p, function in enumerate(FAMILY):
            alone, _ = minimize(function, max_iter=n_steps)
            assert_close(alone.params[:, 0], together.params[:, p], 1e-9)

    def test_order_does_not_matter(self):
        forward, _ = minimize(*FAMILY)
        backward, _ = minimize(*FAMILY[::-1])
        np.testing.assert_array_equal(forward.n_iter, backward.n_iter[::-1])
        assert_close(forward.params, backward.params[:, ::-1], 1e-9)

    def test_finished_problems_leave_the_stack(self):
        solution, log = minimize(*FAMILY)
        present, n_running = list(range(len(FAMILY))), []
        for kind, what in log:
            if kind == "select":
                present = [present[p] for p in what]
            else:
                assert what == len(present)
                n_running.append(what)
        assert n_running[-1] < len(FAMILY)
        # Each leaves as soon as it has ended: it is in the stack for its own passes and no others.
        metric_passes = 0.25 * sum(kind == "metric" for kind, _ in log)
        longest = solution.n_passes.max()
        assert sum(kind == "evaluate" for kind, _ in log) + metric_passes == longest
        assert (solution.n_passes < longest).sum() >= len(FAMILY) - 2

    @pytest.mark.parametrize("spoiler", [never_finite, a_wall_at_once, a_gradient_that_lies])
    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_a_hopeless_problem_does_not_spoil_the_others(self, place, spoiler):
        functions = [softmax(0), rosenbrock]
        functions.insert(place, spoiler)
        solution, _ = minimize(*functions)
        others = [p for p in range(3) if p != place]
        assert (solution.status[others] == Status.CONVERGED).all()
        assert solution.status[place] == (
            Status.PRECISION_REACHED if spoiler is a_gradient_that_lies else Status.NON_FINITE
        )
        for p in others:
            alone, _ = minimize(functions[p])
            assert alone.n_iter == solution.n_iter[p]
            assert_close(alone.params[:, 0], solution.params[:, p], 1e-9)


class TestStatus:
    def test_iteration_limit(self):
        for max_iter in (0, 1, 5):
            solution, _ = minimize(rosenbrock, quadratic(0)[0], max_iter=max_iter)
            assert (solution.status == Status.ITERATION_LIMIT).all()
            assert (solution.n_iter == max_iter).all()
        assert (minimize(rosenbrock, max_iter=0)[0].params == 0).all()

    def test_not_finite_at_the_start(self):
        solution, _ = minimize(never_finite)
        assert solution.status == [Status.NON_FINITE]
        assert (solution.params == 0).all()
        assert solution.n_iter == [0]

    def test_not_finite_beyond_the_start(self):
        solution, _ = minimize(a_wall_at_once)
        assert solution.status == [Status.NON_FINITE]
        assert solution.value == [1.0]
        assert (solution.params == 0).all()

    @pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
    def test_a_value_that_is_not_finite_is_never_accepted(self, bad):
        def function(x):
            value, gradient = quadratic(0)[0](x)
            return (value if np.abs(x).max() < 0.5 else bad), gradient

        solution, _ = minimize(function)
        assert np.isfinite(solution.value).all()
        assert np.abs(solution.params).max() < 0.5

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_precision_reached(self, dtype):
        # tol = 0 can never be met: the fit ends where rounding does, and says so.
        function, m = quadratic(3)
        solution, log = minimize(function, dtype=dtype, tol=0.0)
        assert solution.status == [Status.PRECISION_REACHED] or solution.gradient_norm == 0
        assert_close(solution.params[:, 0].ravel(), m, 3e4 * np.finfo(dtype).eps)
        assert len(log) < 300

    def test_stopped_by_a_callback(self):
        seen = []

        def callback(progress):
            seen.append(progress)
            return len(seen) == 3

        solution, _ = minimize(rosenbrock, quadratic(0, 1e4)[0], callback=callback)
        assert (solution.status == Status.STOPPED).all()
        assert len(seen) == 3
        np.testing.assert_array_equal(solution.value, seen[-1].values)
        for p, function in enumerate((rosenbrock, quadratic(0, 1e4)[0])):
            assert function(solution.params[:, p].ravel())[0] == solution.value[p]

    def test_a_stop_leaves_ended_problems_as_they_ended(self):
        solution, _ = minimize(
            quadratic(0, 1.0)[0], rosenbrock, callback=lambda progress: progress.n_finished == 1, tol=1e-6
        )
        assert solution.status.tolist() == [Status.CONVERGED, Status.STOPPED]

    def test_every_status_has_a_sentence(self):
        for status in Status:
            assert len(status.sentence.split()) > 2
            assert str(status) == status.name


class TestProgress:
    def test_problems_that_end_together_are_heard_of(self):
        seen, params = [], []
        f, m = quadratic(0)
        solution, _ = minimize(f, f, callback=lambda one: params.append(one.copy_params()) or seen.append(one))
        assert [progress.n_finished for progress in seen[-2:]] == [0, 2]
        np.testing.assert_array_equal(params[-1], solution.params)
        assert_close(solution.params[:, 1].ravel(), m, 1e-6)

    def test_counts_and_states(self):
        seen = []
        solution, log = minimize(*FAMILY, callback=seen.append)
        assert [progress.n_evaluations for progress in seen] == list(range(1, len(seen) + 1))
        assert sum(kind == "evaluate" for kind, _ in log) == seen[-1].n_evaluations
        assert all(one.n_passes < other.n_passes for one, other in pairwise(seen))
        assert all(one.n_finished <= other.n_finished for one, other in pairwise(seen))
        assert seen[-1].n_finished == len(FAMILY)
        assert seen[-1].n_passes == solution.n_passes.max()
        np.testing.assert_array_equal(seen[-1].values, solution.value)
        np.testing.assert_array_equal(seen[-1].gradient_norms, solution.gradient_norm)
        np.testing.assert_array_equal(seen[-1].n_iter, solution.n_iter)
        values = np.array([progress.values for progress in seen])
        assert values.shape == (len(seen), len(FAMILY))
        assert (np.diff(values, axis=0) <= 1e-9).all()

    def test_records_are_not_changed_later(self):
        seen = []
        minimize(rosenbrock, callback=lambda progress: seen.append((progress, progress.values.copy())))
        for progress, values in seen:
            np.testing.assert_array_equal(progress.values, values)

    def test_params_are_those_that_the_values_belong_to(self):
        seen = []
        solution, _ = minimize(*FAMILY, callback=lambda progress: seen.append((progress, progress.copy_params())))
        for progress, params in seen:
            for problem, function in enumerate(FAMILY):
                value, _ = function(params[:, problem].ravel())
                assert_close(progress.values[problem], value, 1e-12)
        np.testing.assert_array_equal(seen[-1][1], solution.params)

    def test_passes_of_the_metric_count(self):
        solution, log = minimize(rosenbrock)
        kinds = [kind for kind, _ in log]
        assert kinds.count("metric") > 1
        assert solution.n_passes == [kinds.count("evaluate") + 0.25 * kinds.count("metric")]


def test_values_that_are_not_finite_for_a_while_leave_nothing_behind():
    smooth, minimum = quadratic(4)
    n_calls = iter(range(1000))

    def function(x):  # finite for some steps, then nowhere during a whole line search, then again
        return never_finite(x) if 5 <= next(n_calls) < 5 + MAX_TRIALS else smooth(x)

    solution, _ = minimize(function)
    assert solution.status == [Status.CONVERGED]
    assert_close(solution.params.ravel(), minimum, 1e-7)


class TestLineSearch:
    def open(self, value=1.0, slope=-1.0):
        return Bracket.open(np.array([value]), np.array([slope]))

    def accepts(self, value, slope, step=1.0, noise=1e-15, start=1.0):
        answer = is_acceptable(self.open(start), np.array([step]), np.array([value]), np.array([slope]), noise)
        return bool(answer[0])

    def test_armijo(self):
        assert self.accepts(0.5, 0.0)
        assert self.accepts(1 - 1.01e-4, 5.0)
        assert not self.accepts(1 - 0.99e-4, 5.0)
        assert self.accepts(1 - 0.51e-4, 5.0, step=0.5)
        assert not self.accepts(1 - 0.49e-4, 5.0, step=0.5)

    def test_a_line_that_still_falls_at_its_end(self):
        # A convex function has fallen all the way there, whatever rounding makes of its values.
        assert self.accepts(1.1, -0.5)
        assert self.accepts(1.1, 0.0)
        assert not self.accepts(1.1, 0.1)

    def test_approximate_wolfe_where_the_decrease_drowns_in_rounding(self):
        # The value did not fall, or rose by rounding alone; the slope shows that the step went the right way.
        assert self.accepts(1.0, 0.1)
        assert self.accepts(1.0 + 1e-7, 0.1, noise=1e-6)
        assert self.accepts(1.0, 0.99)
        assert not self.accepts(1.0, 1.0)  # as steep uphill: overshot
        assert not self.accepts(1.0 + 1e-5, 0.1, noise=1e-6)
        assert not self.accepts(1.0 + 1e-7, 0.1)

    def test_the_noise_goes_with_the_value(self):
        assert self.accepts(1000 + 1e-4, 0.1, noise=1e-6, start=1000.0)
        assert not self.accepts(1e-3 + 1e-7, 0.1, noise=1e-6, start=1e-3)
        assert self.accepts(-1000 + 1e-4, 0.1, noise=1e-6, start=-1000.0)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_what_is_not_finite_is_rejected(self, bad):
        assert not self.accepts(bad, 0.0)
        assert not self.accepts(0.5, bad)

    def test_too_short(self):
        assert is_too_short(self.open(), np.array([-0.95]))[0]
        assert not is_too_short(self.open(), np.array([-0.85]))[0]
        assert not is_too_short(self.open(), np.array([0.5]))[0]

    def test_problems_are_judged_apart(self):
        bracket = Bracket.open(np.array([1.0, 1.0, 1.0]), np.array([-1.0, -1.0, -1.0]))
        answer = is_acceptable(bracket, np.ones(3), np.array([0.5, np.nan, 2.0]), np.full(3, 0.1), 1e-15)
        assert answer.tolist() == [True, False, False]

    def test_secant_finds_the_minimum_of_a_parabola(self):
        # Slope -1 at 0 and 1 at 4: it vanishes at 2.
        step, bracket = next_step(self.open(), np.array([4.0]), np.array([1.0]), np.array([False]))
        assert_close(step, [2.0], 1e-12)
        assert bracket.low == [0]
        assert bracket.high == [4]

    def test_a_step_that_is_too_short_grows_fourfold_at_most(self):
        step, bracket = next_step(self.open(), np.array([1.0]), np.array([-0.99]), np.array([True]))
        assert step == [4.0]
        assert bracket.low == [1]
        assert bracket.low_slope == [-0.99]
        assert np.isinf(bracket.high[0])
        step, _ = next_step(self.open(), np.array([1.0]), np.array([-0.5]), np.array([True]))
        assert_close(step, [2.0], 1e-12)

    def test_no_slope_shrinks_the_bracket_harder(self):
        step, bracket = next_step(self.open(), np.array([1.0]), np.array([np.nan]), np.array([False]))
        assert 0 < step[0] <= 0.25
        assert bracket.high == [1]

    @pytest.mark.parametrize("kink", [0.3, 1e-2, 1e-3, 1e-6])
    @pytest.mark.parametrize("uphill", [0.01, 0.1, 1.0, 100.0])
    def test_a_kink_far_below_the_first_trial_is_found(self, uphill, kink):
        # |x|-like: the slope says at every trial that the minimum is near it, and the secant alone would creep.
        bracket, step = self.open(), np.array([1.0])
        for _ in range(30):
            slope = np.where(step < kink, -1.0, uphill)
            value = 1 - np.minimum(step, kink) + uphill * np.maximum(step - kink, 0)
            acceptable = is_acceptable(bracket, step, value, slope, 1e-15)
            if acceptable and not is_too_short(bracket, slope):
                return
            step, bracket = next_step(bracket, step, slope, acceptable)
        assert bracket.high[0] - bracket.low[0] < 1e-3 * kink

    @given(
        st.lists(st.tuples(st.floats(-2, 5), st.booleans()), min_size=1, max_size=20),
        st.floats(1e-3, 1e3),
    )
    def test_brackets_shrink_and_trials_stay_inside(self, answers, step):
        bracket, trial = self.open(), np.array([step])
        for slope, acceptable in answers:
            new_trial, new = next_step(bracket, trial, np.array([slope]), np.array([acceptable]))
            assert new.low[0] >= bracket.low[0]
            assert new.high[0] <= bracket.high[0]
            assert new.low[0] < new_trial[0] < new.high[0]
            if np.isfinite(bracket.high[0]):
                assert new.high[0] - new.low[0] <= 0.901 * (bracket.high[0] - bracket.low[0])
            assert new.value == bracket.value
            assert new.slope == bracket.slope
            bracket, trial = new, new_trial


class TestKnown:
    """A solve that begins with what another found out."""

    def solve(self, known=None, objective=None):
        functions = [quadratic(p)[0] for p in range(3)]
        objective = Separate(functions) if objective is None else objective
        params = np.zeros((SHAPE[0], 3, SHAPE[1]))
        return LBFGS(tol=1e-9).minimize(objective, params, **({} if known is None else {"known": known})), objective

    def at_start(self):
        value, gradient = self.solve()[1].value_and_grad(np.zeros((SHAPE[0], 3, SHAPE[1])))
        return Known(value, gradient, DiagonalMetric(np.ones(3)))

    def test_value_and_gradient_save_a_pass_and_change_no_bit(self):
        plain, _ = self.solve()
        known, objective = self.solve(replace(self.at_start(), metric=None))
        np.testing.assert_array_equal(known.params, plain.params)
        np.testing.assert_array_equal(known.n_passes, plain.n_passes - 1)
        assert objective.log[0] == ("metric", 3)

    def test_a_metric_is_used_as_it_is_and_renewed_later(self):
        objective = Separate([quadratic(p)[0] for p in range(3)])
        objective.log.append(("metric", 3))  # the one that is known: none of those to come is rough
        solution, _ = self.solve(self.at_start(), objective)
        assert (solution.status == Status.CONVERGED).all()
        kinds = [kind for kind, _ in objective.log[1:]]
        assert "metric" not in kinds[: LBFGS.known_refresh]

    def test_solutions_tell_gradient_and_metric(self):
        solution, _ = self.solve()
        value, gradient = Separate([quadratic(p)[0] for p in range(3)]).value_and_grad(solution.params)
        np.testing.assert_array_equal(solution.gradient, gradient)
        np.testing.assert_array_equal(solution.value, value)
        assert len(solution.metric.sizes) == 3

    def test_what_is_known_is_not_modified(self):
        known = replace(self.at_start(), metric=None)
        before = known.value.copy(), known.gradient.copy()
        self.solve(known)
        np.testing.assert_array_equal(known.value, before[0])
        np.testing.assert_array_equal(known.gradient, before[1])

    def test_a_solution_of_some_problems(self):
        solution, _ = self.solve()
        kept = np.array([2, 0])
        some = solution.select(kept, kept)
        np.testing.assert_array_equal(some.params, solution.params[:, kept])
        np.testing.assert_array_equal(some.gradient, solution.gradient[:, kept])
        np.testing.assert_array_equal(some.n_iter, solution.n_iter[kept])
        assert len(some.metric.sizes) == 2
