"""What answers are held against: made data, formulas written out once more, and tolerances by dtype.

`mean_objective` is written from the formulas of docs/derivation.md and holomorphic, so that a complex step passes
through it; `kernels.reference`, the package's own specification, is tested against it and then used as the oracle.
"""

from dataclasses import dataclass, replace

import numpy as np

from gpusoftmax.plan import DeviceFacts, plan_pass

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
ROUNDING = {FLOAT32: 3e-6, FLOAT64: 1e-13}  # relative error of one evaluation on data of order one
STEP = 1e-30  # of complex-step derivatives, which have no cancellation


@dataclass(frozen=True)
class Data:
    """Rows, and a point at which to evaluate them; arrays as the kernels want them."""

    X: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None
    params: np.ndarray

    def full_weights(self):
        """Return float64 weights (n_rows, n_problems)."""
        shape = (len(self.X), self.params.shape[1])
        return np.ones(shape) if self.weights is None else np.broadcast_to(self.weights.astype(float), shape)

    def cast(self, dtype):
        weights = None if self.weights is None else self.weights.astype(dtype)
        targets = self.targets.astype(dtype) if self.targets.ndim == 2 else self.targets
        return Data(self.X.astype(dtype), targets, weights, self.params.astype(dtype))


def make_data(n_rows, n_features, n_problems, n_classes, *, targets="labels", weights=None, seed=0):
    """Return data whose every value float32 can hold: casting changes no problem.

    `targets` is "labels" or "soft"; `weights` is None, "shared" or "each", some of them zero where there are several.
    """
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_rows, n_features))
    params = rng.normal(size=(n_features + 1, n_problems, n_classes)) / np.sqrt(n_features)
    if targets == "soft":
        t = rng.multinomial(16, rng.dirichlet(np.full(n_classes, 0.3)), size=n_rows) / 16  # rows sum to one exactly
    else:
        t = rng.integers(n_classes, size=n_rows).astype(np.min_scalar_type(n_classes))
    s = None
    if weights is not None:
        s = rng.integers(0, 8, size=(n_rows, 1 if weights == "shared" else n_problems)) / 4
        s[0] = 1.25
    return Data(X.astype(np.float32).astype(float), t, s, params.astype(np.float32).astype(float))


def one_hot(labels, n_classes):
    return np.eye(n_classes)[labels]


def target_rows(targets, n_classes, label_smoothing=0.0):
    rows = one_hot(targets, n_classes) if targets.ndim == 1 else targets.astype(float)
    return (1 - label_smoothing) * rows + label_smoothing / n_classes


def log_sum_exp(Z):
    m = Z.real.max(axis=-1, keepdims=True)
    return m + np.log(np.exp(Z - m).sum(axis=-1, keepdims=True))


def summed_losses(X, targets, weights, params, label_smoothing=0.0):
    """Return each problem's ``Σ_i s_i Σ_k t_ik (log Σ_j exp z_ij - z_ik)``; params may be complex."""
    t = target_rows(targets, params.shape[2], label_smoothing)
    losses = []
    for p in range(params.shape[1]):
        Z = X @ params[:-1, p] + params[-1, p]
        losses.append((weights[:, p] * (t * (log_sum_exp(Z) - Z)).sum(axis=1)).sum())
    return np.array(losses)


def mean_objective(X, targets, weights, params, strength, label_smoothing=0.0):
    """Return each problem's mean loss plus ``strength / 2 ‖W‖²``; params may be complex."""
    losses = summed_losses(X, targets, weights, params, label_smoothing)
    return losses / weights.sum(axis=0) + strength / 2 * (params[:-1] ** 2).sum(axis=(0, 2))


def complex_step(function, params):
    """Return the gradient of ``function(params) -> (n_problems,)``, whose entries depend on their own problem only."""
    gradient = np.empty(params.shape)
    for d in range(params.shape[0]):
        for k in range(params.shape[2]):
            moved = params.astype(complex)
            moved[d, :, k] += 1j * STEP
            gradient[d, :, k] = function(moved).imag / STEP
    return gradient


def hand_plan(data, *, dtype=FLOAT64, block_rows=None, stack=1, **changes):
    """Return a plan with blocks of a chosen size, one lane on one thread unless `changes` say otherwise."""
    n_rows, n_features = data.X.shape
    n_problems, n_classes = data.params.shape[1:]
    is_soft = data.targets.ndim == 2
    plan = plan_pass(n_rows, n_features, n_problems, n_classes, np.dtype(dtype), DeviceFacts(), is_soft=is_soft)
    block = min(block_rows or n_rows, n_rows)
    return replace(plan, **({"block_rows": block, "task_rows": min(block * stack, n_rows), "n_lanes": 1} | changes))


def assert_close(actual, expected, tolerance, scale=None):
    """Compare arrays of one shape; `tolerance` is relative to the largest entry expected, or to `scale`."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    scale = np.abs(expected).max(initial=np.finfo(float).tiny) if scale is None else scale
    error = np.abs(actual - expected).max(initial=0)
    assert error <= tolerance * scale, f"off by {error:.3g} at a scale of {scale:.3g}"
