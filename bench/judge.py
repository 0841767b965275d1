"""The one judge of every library: loss, gradient and objective in plain float64 NumPy, block by block."""

from collections.abc import Iterator

import numpy as np

BLOCK_ENTRIES = 1 << 21  # of the features or logits of a block


def loss_and_gradient(X, targets, W, b) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the mean cross-entropy of ``softmax(X W + b)`` and its gradients (n_features, n_classes), (n_classes,)."""
    W, b = np.asarray(W, np.float64), np.asarray(b, np.float64)
    loss, grad_W, grad_b = 0.0, np.zeros_like(W), np.zeros_like(b)
    for x, t, log_y in _blocks(X, targets, W, b):
        loss -= _at_targets(log_y, t).sum()
        residual = np.exp(log_y)
        if t.ndim == 2:
            residual -= t
        else:
            residual[np.arange(len(t)), t] -= 1
        grad_W += x.T @ residual
        grad_b += residual.sum(axis=0)
    return float(loss) / len(X), grad_W / len(X), grad_b / len(X)


def objective(X, y, coef, intercept, C: float) -> float:
    """Return scikit-learn's objective divided by C·n at its attributes `coef_` and `intercept_`."""
    W, b = _two_columns(coef, intercept)
    loss = -sum(_at_targets(log_y, t).sum() for _, t, log_y in _blocks(X, y, W, b))
    return float((loss + _penalty(W, C)) / len(X))


def largest_gradient(X, y, coef, intercept, C: float) -> float:
    """Return the largest absolute entry of that objective's gradient; for two classes, of `coef_`'s one row."""
    W, b = _two_columns(coef, intercept)
    _, grad_W, grad_b = loss_and_gradient(X, y, W, b)
    if len(b) == 2:
        W = W - W[:, :1]
        grad_W, grad_b = grad_W[:, 1:], grad_b[1:]
    return float(max(np.abs(grad_W + W[:, -grad_W.shape[1] :] / (C * len(X))).max(), np.abs(grad_b).max()))


def _two_columns(coef, intercept) -> tuple[np.ndarray, np.ndarray]:
    """Return W and b in float64, a single row of coefficients as a column beside one of zeros."""
    W, b = np.asarray(coef, np.float64).T, np.asarray(intercept, np.float64)
    if W.shape[1] == 1:
        return np.hstack([np.zeros_like(W), W]), np.concatenate([[0.0], b])
    return W, b


def _penalty(W: np.ndarray, C: float) -> float:
    """Return ``‖W‖² / (2 C)``; of two columns scikit-learn penalises the difference."""
    coef = W[:, 1] - W[:, 0] if W.shape[1] == 2 else W
    return 0.5 * float(np.square(coef).sum()) / C


def _blocks(X, targets, W, b) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield features in float64, targets and log-probabilities of block after block."""
    step = max(1, BLOCK_ENTRIES // max(W.shape))
    for start in range(0, len(X), step):
        x = X[start : start + step].astype(np.float64)
        z = x @ W + b
        z -= z.max(axis=1, keepdims=True)
        z -= np.log(np.exp(z).sum(axis=1, keepdims=True))
        yield x, targets[start : start + step], z


def _at_targets(log_y: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return (targets * log_y).sum(axis=1) if targets.ndim == 2 else log_y[np.arange(len(targets)), targets]
