"""The specification of every kernel: plain NumPy, one block at a time, no reuse of memory, no speed.

Fast kernels must return the same sums; tests compare them with these in float64. Every stage returns *sums* over the
rows of its block: dividing by the total weight and adding the penalty is the objective's affair.

Conventions
-----------
X : (rows, n_features); params : (n_features + 1, n_problems, n_classes), the last feature row is the intercept;
logits, residual : (rows, n_problems, n_classes); targets : (rows,) class indices, or (rows, n_classes) soft targets;
weights : (rows, n_problems).
"""

import numpy as np


def logits(X, params):
    """Return ``X W + b`` for every problem, shape (rows, n_problems, n_classes)."""
    return np.einsum("nd,dpk->npk", X, params[:-1]) + params[-1]


def log_softmax(logits):
    """Return ``z - log Σ_k exp(z_k)`` over the last axis, with the row maximum subtracted first."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def target_matrix(targets, n_classes, label_smoothing=0.0):
    """Return smoothed targets ``(1 - ε) t + ε / K``, shape (rows, n_classes); class indices become one-hot rows."""
    rows = np.eye(n_classes)[targets] if targets.ndim == 1 else np.asarray(targets, dtype=np.float64)
    return (1.0 - label_smoothing) * rows + label_smoothing / n_classes


def residual(logits, targets, weights, label_smoothing=0.0):
    """Return ``G = s ⊙ (Y - T)`` and each problem's summed loss ``-Σ_i s_i Σ_k t_ik log y_ik``.

    Returns
    -------
    residual : array of shape (rows, n_problems, n_classes)
    loss : array of shape (n_problems,)
    """
    log_y = log_softmax(logits)
    t = target_matrix(targets, logits.shape[-1], label_smoothing)[:, np.newaxis, :]
    loss = -(weights * (t * log_y).sum(axis=-1)).sum(axis=0)
    return weights[:, :, np.newaxis] * (np.exp(log_y) - t), loss


def accumulate(X, residual):
    """Return the gradient's sums ``[XᵀG; 1ᵀG]``, shape (n_features + 1, n_problems, n_classes)."""
    return np.concatenate([np.einsum("nd,npk->dpk", X, residual), residual.sum(axis=0)[np.newaxis]])


def loss_and_gradient(X, targets, weights, params, label_smoothing=0.0):
    """Return each problem's summed loss and gradient: the three stages, one after the other."""
    G, loss = residual(logits(X, params), targets, weights, label_smoothing)
    return loss, accumulate(X, G)


def curvature(X, weights, params):
    """Return the sums from which the Kronecker-factored metric is made.

    Returns
    -------
    gram : array of shape (n_features + 1, n_features + 1)
        ``Σ_i v_i [x_i, 1]ᵀ[x_i, 1]`` with ``v_i = Σ_p s_ip (1 - ‖y_ip‖²)``, the trace of the softmax's Jacobian.
    class_curvature : array of shape (n_problems, n_classes, n_classes)
        ``Σ_i s_ip (diag(y_ip) - y_ip y_ipᵀ)``.
    """
    y = np.exp(log_softmax(logits(X, params)))
    augmented = np.concatenate([X, np.ones((len(X), 1), dtype=X.dtype)], axis=1)
    trace = (weights * (1.0 - (y**2).sum(axis=-1))).sum(axis=-1)
    gram = augmented.T @ (trace[:, np.newaxis] * augmented)
    weighted = weights[:, :, np.newaxis] * y
    diagonal = weighted.sum(axis=0)[:, :, np.newaxis] * np.eye(y.shape[-1])
    return gram, diagonal - np.einsum("npk,npj->pkj", weighted, y)


def scores(logits, targets, weights):
    """Return each problem's summed loss and weight of correct rows, ``Σ_i s_i t_i,argmax``: the first of the largest.

    logits : (rows, n_problems, n_classes); weights : (rows, n_problems)
    """
    t = target_matrix(targets, logits.shape[-1])
    loss = -(t[:, np.newaxis, :] * log_softmax(logits)).sum(axis=-1)
    correct = np.take_along_axis(t, logits.argmax(axis=-1), axis=1)
    return (weights * loss).sum(axis=0), (weights * correct).sum(axis=0)
