"""The law: one model, by every route, is one solution.

A new route is one line in `ROUTES`, a new model one line in `MODELS`. Every route is held against the same tolerances,
and every solution against the float64 reference.
"""

import re
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pytest
from cuda_device import cuda
from oracle import FLOAT32, FLOAT64, make_data, one_hot

from gpusoftmax import ConvergenceWarning, SoftmaxRegression, fit_many, sweep
from gpusoftmax.backends.cpu import NumpyBackend, NumpyPass
from gpusoftmax.backends.cuda import CupyBackend
from gpusoftmax.exceptions import WorkspaceError
from gpusoftmax.interop import to_host
from gpusoftmax.kernels import reference
from gpusoftmax.plan import DeviceFacts
from gpusoftmax.solvers.base import Status
from gpusoftmax.solvers.lbfgs import LBFGS
from gpusoftmax.sources import ArraySource
from gpusoftmax.training import Training, train


@dataclass(frozen=True)
class Tolerance:
    """Per compute dtype: what the solver is asked for, and how far solutions may lie apart."""

    tol: float
    gradient: float  # largest entry, by the float64 reference
    coefficients: float  # absolute, on coefficients of order one
    objective: float  # relative


TOLERANCES = {
    FLOAT64: Tolerance(tol=1e-9, gradient=2e-9, coefficients=1e-6, objective=1e-12),
    FLOAT32: Tolerance(tol=1e-6, gradient=2e-6, coefficients=5e-4, objective=1e-6),
}


# Ours need fewer steps than this; of the problems beside them, some would go on alone for hundreds.
COMPANIONS_MAX_ITER = 60


@dataclass(frozen=True)
class Model:
    """What is fitted: data that float32 holds exactly, and integer weights so that rows can be repeated."""

    X: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None
    n_classes: int
    C: float = 1.0
    has_intercept: bool = True
    label_smoothing: float = 0.0

    def objective(self, params):
        """Return value and gradient at params (n_features + 1, n_classes), by the reference in float64."""
        weights = np.ones((len(self.X), 1)) if self.weights is None else self.weights
        S = weights.sum()
        point = params.astype(float)[:, np.newaxis]
        loss, grad = reference.loss_and_gradient(self.X, self.targets, weights, point, self.label_smoothing)
        grad = grad[:, 0] / S
        grad[:-1] += params[:-1] / (self.C * S)
        if not self.has_intercept:
            grad[-1] = 0
        return loss[0] / S + (params[:-1] ** 2).sum() / (2 * self.C * S), grad


def made(n_rows, n_features, n_classes, *, targets="labels", weighted=False, shift=0.0, seed=0, **options):
    data = make_data(n_rows, n_features, 1, n_classes, targets=targets, seed=seed)
    logits = np.einsum("nd,dk->nk", data.X, data.params[:-1, 0]) + data.params[-1, 0]
    noise = np.random.default_rng(seed + 1).gumbel(size=logits.shape)
    t = data.targets if targets == "soft" else (logits + noise).argmax(axis=1).astype(np.uint8)
    X = (data.X + shift).astype(np.float32).astype(float)
    weights = np.random.default_rng(seed + 2).integers(0, 4, (n_rows, 1)).astype(float) if weighted else None
    return Model(X, t, weights, n_classes, **options)


MODELS = {
    "three classes": made(211, 5, 3),
    "two classes": made(211, 5, 2, C=3.0),
    "weighted and smoothed": made(211, 5, 4, weighted=True, label_smoothing=0.1, C=10.0),
    "no intercept": made(211, 5, 3, has_intercept=False),
    "no intercept, far from the origin": made(211, 5, 3, has_intercept=False, shift=4.0),
    "soft targets": made(211, 5, 3, targets="soft"),
    "more columns than rows": made(41, 60, 3, C=0.1),
    "columns that outnumber rows by far": made(37, 260, 3, weighted=True, C=0.1),
    "many classes": made(307, 4, 33, weighted=True, C=0.1),
}


@dataclass
class HandBackend(NumpyBackend):
    """The CPU with a chosen number of threads and, where given, blocks of a chosen size."""

    n_threads: int = 1
    block_rows: int | None = None
    stack: int = 1
    changes: dict = field(default_factory=dict)
    n_passes: int = field(default=0, init=False)

    def facts(self):
        return DeviceFacts(n_threads=self.n_threads)

    def fused_pass(self, source, plan):
        self.n_passes += 1
        return HandPass(source, self.cut(plan), self)

    def cut(self, plan):
        if self.block_rows is None:
            return plan
        block = min(self.block_rows, plan.n_rows)
        task = min(self.stack * block, plan.n_rows)
        n_threads = min(self.n_threads, -(-plan.n_rows // task))
        cut = {"block_rows": block, "task_rows": task, "n_threads": n_threads, "n_lanes": n_threads}
        return replace(plan, **(cut | self.changes))


class HandPass(NumpyPass):
    """A pass whose blocks stay as they were cut when problems leave."""

    def __init__(self, source, plan, backend):
        super().__init__(source, plan)
        self.backend = backend

    def select(self, active):
        return HandPass(
            self.source.select(active), self.backend.cut(self.plan.with_problems(len(active))), self.backend
        )


def unchanged(value):
    return value


@dataclass(frozen=True)
class Route:
    """One way to fit a model: everything here says how, nothing says what."""

    backend: Callable = HandBackend
    layout: Callable = unchanged  # X in the compute dtype -> the same X, lying elsewhere in memory
    model: Callable = unchanged  # Model -> the same model in other words
    others: tuple = ()  # problems that share the stack, before and after ours
    other_weights: Callable | None = None  # Model -> weights (n_rows, 1) of those problems
    budget_bytes: Callable | None = None  # a callable that fits with a budget -> the budget to use
    start: float | None = None  # every entry of the params to start from
    device: Callable = nullcontext

    def fit(self, model, dtype):
        """Return params (n_features + 1, n_classes), the value that the solver states, and its status."""
        with self.device():
            return self._fit(model, dtype)

    def _fit(self, model, dtype):
        if self.budget_bytes is not None:
            budget = self.budget_bytes(lambda budget: self._train(model, dtype, budget))
            return self._train(model, dtype, budget)
        return self._train(model, dtype, None)

    def _train(self, model, dtype, budget):
        model = self.model(model)
        C = np.array([*self.others, model.C, *self.others])
        place = len(self.others)
        weights = model.weights
        if self.other_weights is not None:
            ours = np.ones((len(model.X), 1)) if weights is None else weights
            others = [self.other_weights(model)] * place
            weights = np.hstack([*others, ours, *others])
        start = None
        if self.start is not None:
            start = np.full((model.X.shape[1] + 1, len(C), model.n_classes), self.start)
            start[:, :, 0] *= -1
            start[-1] *= model.has_intercept
        targets = model.targets.astype(dtype) if model.targets.ndim == 2 else model.targets
        source = ArraySource(self.layout(model.X.astype(dtype)), targets, weights, dtype)
        solver = LBFGS(tol=TOLERANCES[dtype].tol, max_iter=COMPANIONS_MAX_ITER if self.others else 1000)
        options = (model.n_classes, model.has_intercept, model.label_smoothing, 0, budget)
        solution, center = train(Training(C, *options), source, solver, self.backend(), start)
        params = solution.params[:, place].astype(float)
        if center is not None:
            params[-1] -= center @ params[:-1]
        return params, solution.value[place], solution.status[place]


@dataclass(frozen=True)
class EstimatorRoute(Route):
    """The same model through scikit-learn's interface."""

    put: Callable = unchanged  # NumPy array -> the array that the estimator gets

    def _fit(self, model, dtype):
        clf = SoftmaxRegression(
            device="cpu" if self.device is nullcontext else "cuda",
            C=2 * model.C if model.n_classes == 2 else model.C,  # two softmax columns, half the weight in each
            fit_intercept=model.has_intercept,
            label_smoothing=model.label_smoothing,
            tol=TOLERANCES[dtype].tol,
        )
        weights = None if model.weights is None else self.put(model.weights[:, 0])
        clf.fit(self.put(self.layout(model.X.astype(dtype))), self.put(model.targets), weights)
        rows = np.column_stack([to_host(clf.coef_), to_host(clf.intercept_)]).astype(float)
        if model.n_classes == 2:
            rows = np.concatenate([-rows / 2, rows / 2])
        return rows.T, clf.objective_, clf.status_


@dataclass(frozen=True)
class SweepRoute(Route):
    """The model as one problem of a sweep, among other strengths and folds."""

    strengths: tuple = (0.01, 1.0, 100.0)  # times ours, which is 1.0
    folds: Callable | None = None  # Model -> weights (n_rows, n_folds), those of ours all 1

    def _train(self, model, dtype, budget):
        model = self.model(model)
        C = 2 * model.C if model.n_classes == 2 else model.C
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of other problems: the status of ours is asserted
            warnings.filterwarnings("ignore", "Fold 1 of cv has no rows of class")
            result = sweep(
                self.layout(model.X.astype(dtype)),
                model.targets,
                Cs=C * np.array(self.strengths),
                cv=None if self.folds is None else self.folds(model),
                sample_weight=None if model.weights is None else model.weights[:, 0],
                fit_intercept=model.has_intercept,
                label_smoothing=model.label_smoothing,
                tol=TOLERANCES[dtype].tol,
                max_iter=1000 if budget else COMPANIONS_MAX_ITER,
                device="cpu" if self.device is nullcontext else "cuda",
                memory_budget=budget,
            )
        problem = self.strengths.index(1.0) * result.n_folds
        rows = np.column_stack([result.coef[problem], result.intercept[problem]]).astype(float)
        if model.n_classes == 2:
            rows = np.concatenate([-rows / 2, rows / 2])
        return rows.T, result.objective[problem], result.status[problem]


@dataclass(frozen=True)
class ManyRoute(Route):
    """The model as one of many that share nothing but their shape: the third of five."""

    def _fit(self, model, dtype):
        rng = np.random.default_rng(9)
        Xs = [rng.normal(size=model.X.shape).astype(dtype) for _ in range(5)]
        Xs[2] = model.X.astype(dtype)
        weights = None if model.weights is None else [model.weights[:, 0]] * 5
        two = 2 if model.n_classes == 2 else 1  # as of the estimator
        C = two * model.C * np.array([0.1, 10.0, 1.0, 0.01, 3.0])
        fits = fit_many(
            Xs,
            [model.targets] * 5,
            sample_weights=weights,
            C=C,
            fit_intercept=model.has_intercept,
            label_smoothing=model.label_smoothing,
            tol=TOLERANCES[dtype].tol,
            device="cpu" if self.device is nullcontext else "cuda",
        )
        rows = np.column_stack([fits.coef[2], fits.intercept[2]]).astype(float)
        if model.n_classes == 2:
            rows = np.concatenate([-rows / 2, rows / 2])
        return rows.T, fits.objective[2], fits.status[2]


def smallest_budget(fit):
    """Return the budget that the error for one byte names."""
    with pytest.raises(WorkspaceError) as caught:
        fit(1)
    return int(re.search(r"memory_budget=(\d+)\.$", str(caught.value)).group(1))


def as_soft(model):
    return model if model.targets.ndim == 2 else replace(model, targets=one_hot(model.targets, model.n_classes))


def with_weightless_rows(model):
    """Add rows that no sane model has seen, with no weight, among the others."""
    places = np.arange(0, len(model.X), 5)
    weights = np.ones((len(model.X), 1)) if model.weights is None else model.weights
    return replace(
        model,
        X=np.insert(model.X, places, 50.0, axis=0),
        targets=np.insert(model.targets, places, model.targets[0], axis=0),
        weights=np.insert(weights, places, 0.0, axis=0),
    )


def repeated(model):
    counts = np.full(len(model.X), 2) if model.weights is None else model.weights[:, 0].astype(int)
    C = model.C / 2 if model.weights is None else model.C  # the strength is 1 / (C S), and S has doubled
    targets = np.repeat(model.targets, counts, axis=0)
    return replace(model, X=np.repeat(model.X, counts, axis=0), targets=targets, weights=None, C=C)


def reordered(model):
    order = np.random.default_rng(5).permutation(len(model.X))
    weights = None if model.weights is None else model.weights[order]
    return replace(model, X=model.X[order], targets=model.targets[order], weights=weights)


def half_of_the_rows(model):
    return (np.arange(len(model.X)) % 2).astype(float)[:, np.newaxis]


def two_folds(model):
    return np.hstack([np.ones((len(model.X), 1)), half_of_the_rows(model)])


def big_endian(X):
    return X.astype(X.dtype.newbyteorder(">"))


class HandCupyBackend(CupyBackend):
    """A CUDA device whose plan is changed by hand."""

    def __init__(self, facts=(), **changes):
        super().__init__()
        self.facts_changed = dict(facts)
        self.changes = changes

    def facts(self):
        return replace(super().facts(), **self.facts_changed)

    def fused_pass(self, source, plan):
        return super().fused_pass(source, replace(plan, **self.changes))


def as_cupy(array):
    import cupy

    return cupy.asarray(array)


def as_strict(array):
    xp = pytest.importorskip("array_api_strict")
    return xp.asarray(array, device=xp.Device("device1"))


def on_cuda(layout=unchanged, model=unchanged, others=(), other_weights=None, budget_bytes=None, **changes):
    """Return a route over the CUDA device, with changes to its plan."""
    backend = partial(HandCupyBackend, **changes)
    return Route(backend, layout, model, others, other_weights, budget_bytes, device=cuda)


ROW_MAJOR = {"is_class_major": False}
SHARED = {"is_class_major": False, "is_shared": True, "n_lanes": 1, "n_threads": 3}
ROUTES = {
    "plain": Route(),
    "the backend that fit would choose": Route(backend=NumpyBackend),
    "estimator": EstimatorRoute(),
    "estimator, F order": EstimatorRoute(layout=np.asfortranarray),
    "blocks of 1 row": Route(backend=lambda: HandBackend(block_rows=1)),
    "blocks of 7 rows": Route(backend=lambda: HandBackend(block_rows=7)),
    "blocks of 7 rows, stacked": Route(backend=lambda: HandBackend(block_rows=7, stack=4)),
    "one block of all rows": Route(backend=lambda: HandBackend(block_rows=10**6)),
    "smallest budget": Route(budget_bytes=smallest_budget),
    "twice the smallest budget": Route(budget_bytes=lambda fit: 2 * smallest_budget(fit)),
    "2 threads": Route(backend=lambda: HandBackend(n_threads=2, block_rows=16)),
    "3 threads": Route(backend=lambda: HandBackend(n_threads=3, block_rows=11, stack=2)),
    "row-major logits": Route(backend=lambda: HandBackend(block_rows=16, changes=ROW_MAJOR)),
    "row-major logits, 2 threads": Route(backend=lambda: HandBackend(n_threads=2, block_rows=16, changes=ROW_MAJOR)),
    "3 threads that share a gradient": Route(
        backend=lambda: HandBackend(n_threads=3, block_rows=7, stack=5, changes=SHARED)
    ),
    "soft targets, 2 threads that share a gradient": Route(
        model=as_soft, backend=lambda: HandBackend(n_threads=2, block_rows=7, stack=3, changes=SHARED)
    ),
    "F order": Route(layout=np.asfortranarray),
    "F order, stacked blocks, 2 threads": Route(
        layout=np.asfortranarray, backend=lambda: HandBackend(n_threads=2, block_rows=7, stack=3)
    ),
    "every other row": Route(layout=lambda X: np.repeat(X, 2, axis=0)[::2]),
    "every other column": Route(layout=lambda X: np.repeat(X, 2, axis=1)[:, ::2]),
    "negative strides": Route(layout=lambda X: X[::-1, ::-1].copy()[::-1, ::-1]),
    "big-endian": Route(layout=big_endian, backend=lambda: HandBackend(block_rows=16)),
    "float64 storage": Route(layout=lambda X: X.astype(np.float64)),
    "with other strengths": Route(others=(0.01, 100.0)),
    "with a problem that has no penalty": Route(others=(np.inf,)),
    "with other strengths, 2 threads": Route(
        others=(0.01, 100.0), backend=lambda: HandBackend(n_threads=2, block_rows=16)
    ),
    "with another fold": Route(others=(1.0, 0.1), other_weights=half_of_the_rows),
    "soft targets": Route(model=as_soft),
    "soft targets, blocks of 7 rows": Route(model=as_soft, backend=lambda: HandBackend(block_rows=7, stack=3)),
    "weightless rows": Route(model=with_weightless_rows),
    "weightless rows, with another fold": Route(
        model=with_weightless_rows, others=(1.0,), other_weights=half_of_the_rows
    ),
    "rows repeated": Route(model=repeated),
    "rows in another order": Route(model=reordered),
    "another start": Route(start=0.5),
    "in a sweep": SweepRoute(),
    "in a sweep of falling strengths": SweepRoute(strengths=(100.0, 1.0, 0.3, 0.1, 0.01)),
    "in a sweep with no penalty at its end": SweepRoute(strengths=(1.0, np.inf)),
    "in a sweep with folds": SweepRoute(folds=two_folds),
    "in a sweep with folds, soft targets": SweepRoute(folds=two_folds, model=as_soft),
    "in a sweep with folds, smallest budget": SweepRoute(folds=two_folds, budget_bytes=smallest_budget),
    "CUDA, in a sweep with folds": SweepRoute(strengths=(0.03, 0.1, 0.3, 1.0), folds=two_folds, device=cuda),
    "CUDA, in a sweep, soft targets": SweepRoute(strengths=(0.03, 0.1, 0.3, 1.0), model=as_soft, device=cuda),
    "one of many": ManyRoute(),
    "CUDA": on_cuda(),
    "CUDA, estimator": EstimatorRoute(device=cuda),
    "CUDA, CuPy in, CuPy out": EstimatorRoute(device=cuda, put=as_cupy),
    "CUDA, one of many": ManyRoute(device=cuda),
    "array API, second device": EstimatorRoute(put=as_strict),
    "CUDA, one kernel, blocks of 64 rows": on_cuda(is_one_kernel=True, block_rows=64),
    "CUDA, two products, blocks of 128 rows": on_cuda(is_one_kernel=False, block_rows=128),
    "CUDA, two products in 3 parts": on_cuda(is_one_kernel=False, n_splits=3),
    "CUDA, rounded products first": on_cuda(is_one_kernel=False, facts={"clock_hz": 1.0}),
    "CUDA, F order": on_cuda(layout=np.asfortranarray),
    "CUDA, float64 storage": on_cuda(layout=lambda X: X.astype(np.float64)),
    "CUDA, smallest budget": on_cuda(budget_bytes=smallest_budget),
    "CUDA, with other strengths and folds": on_cuda(others=(1.0, 0.1), other_weights=half_of_the_rows),
    "CUDA, soft targets": on_cuda(model=as_soft),
}
ALIKE = (  # what these say of the data says nothing of the device
    "every other row",
    "every other column",
    "negative strides",
    "big-endian",
    "with a problem that has no penalty",
    "weightless rows",
    "weightless rows, with another fold",
    "rows repeated",
    "rows in another order",
    "another start",
)
ROUTES |= {f"CUDA, {name}": replace(ROUTES[name], backend=CupyBackend, device=cuda) for name in ALIKE}


def assert_optimal(model, params, tolerance):
    """Check the gradient by the float64 reference: the model is convex, so this is the optimum."""
    _, grad = model.objective(params)
    assert np.abs(grad).max() <= tolerance


def centred(params):
    """Return the params that give the same probabilities and sum to zero over the classes."""
    return params - params.mean(axis=1, keepdims=True)


SOLUTIONS = {}


def solution(name):
    """Return the answer that every route must give, by Newton's method on the reference; computed once."""
    if name not in SOLUTIONS:
        SOLUTIONS[name] = newton(MODELS[name])
    return SOLUTIONS[name]


def newton(model):
    """Minimise by Newton's method, the Hessian from differences of the gradient by complex step."""
    n_rows, n_classes = model.X.shape[1] + 1, model.n_classes
    params = np.zeros((n_rows, n_classes))
    for _ in range(30):
        value, grad = model.objective(params)
        columns = []
        probabilities = np.exp(reference.log_softmax(model.X @ params[:-1] + params[-1]))
        weights = np.ones(len(model.X)) if model.weights is None else model.weights[:, 0]
        augmented = np.column_stack([model.X, np.full(len(model.X), float(model.has_intercept))])
        for k in range(n_classes):
            v = weights[:, np.newaxis] * probabilities[:, [k]] * (np.eye(n_classes)[k] - probabilities)
            columns.append(np.einsum("nd,nj,ne->dje", augmented, v, augmented, optimize=True))
        H = np.stack(columns, axis=3) / weights.sum()  # (feature, class, feature, class)
        H = H.reshape(n_rows * n_classes, -1)
        ridge = np.full((n_rows, n_classes), 1 / (model.C * weights.sum()))
        ridge[-1] = 0
        step = np.linalg.pinv(H + np.diag(ridge.ravel()), rcond=1e-13, hermitian=True) @ grad.ravel()
        size = 1.0
        while size > 1e-6 and model.objective(params - size * step.reshape(params.shape))[0] > value + 1e-15:
            size /= 2
        params = params - size * step.reshape(params.shape)
        if np.abs(grad).max() < 1e-14:
            break
    return centred(params), model.objective(params)[0]


@pytest.mark.parametrize("name", MODELS)
def test_the_answer_is_an_optimum(name):
    params, _ = solution(name)
    assert_optimal(MODELS[name], params, 1e-12)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
@pytest.mark.parametrize("name", MODELS)
def test_every_route_leads_to_the_same_answer(name, route, dtype):
    model, tolerance = MODELS[name], TOLERANCES[dtype]
    params, value, status = route.fit(model, dtype)
    expected, minimum = solution(name)
    assert status in (Status.CONVERGED, Status.PRECISION_REACHED)
    assert_optimal(model, params, tolerance.gradient)
    np.testing.assert_allclose(centred(params), expected, rtol=0, atol=tolerance.coefficients)
    np.testing.assert_allclose(value, minimum, rtol=tolerance.objective)
    np.testing.assert_allclose(model.objective(params)[0], minimum, rtol=tolerance.objective)


def test_problems_that_end_early_leave_the_others_their_blocks():
    backend = HandBackend(block_rows=7)
    Route(backend=lambda: backend, others=(1e-6,)).fit(MODELS["three classes"], FLOAT64)
    assert backend.n_passes == 1
