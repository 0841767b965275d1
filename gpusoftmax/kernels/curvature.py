"""The curvature of the loss, from which the metric is made: rare, on a sample of the rows, the same on every device.

Whatever namespace `xp` the arrays belong to computes it, so this is no place for a device's own kernels.
"""

import numpy as np

from gpusoftmax.plan import MetricPlan


def softmax(xp, z) -> None:
    """Overwrite logits (n_problems, n_classes, rows) by probabilities."""
    xp.subtract(z, z.max(axis=1, keepdims=True), out=z)
    xp.exp(z, out=z)
    xp.divide(z, z.sum(axis=1, keepdims=True), out=z)


class CurvatureSums:
    """Running sums for the metric; see `kernels.reference.curvature`.

    A diagonal factor keeps the diagonal and, as `offsets` (n_features,), what stands beside it in the last column.
    """

    def __init__(self, xp, n_features: int, n_problems: int, n_classes: int, plan: MetricPlan):
        self.xp = xp
        self.gram = xp.zeros((n_features + 1,) * (2 if plan.is_feature_full else 1), plan.dtype)
        self.offsets = None if plan.is_feature_full else xp.zeros(n_features, plan.dtype)
        self.classes = xp.zeros((n_problems, n_classes) + ((n_classes,) if plan.is_class_full else ()))
        self.weight = xp.zeros(n_problems)

    def add(self, other: "CurvatureSums") -> None:
        self.gram += other.gram
        if self.offsets is not None:
            self.offsets += other.offsets
        self.classes += other.classes
        self.weight += other.weight


def curvature(X, weights, params, scale, sums: CurvatureSums) -> None:
    """Add the curvature of some rows, for features multiplied by `scale`, to the sums; weights None are ones."""
    xp = sums.xp
    n_features, (n_problems, n_classes) = len(params) - 1, params.shape[1:]
    rows = len(X)
    z = params[:-1].reshape(n_features, -1).T @ X.T
    z += params[-1].reshape(-1, 1)
    y = z.reshape(n_problems, n_classes, rows)
    softmax(xp, y)
    given = xp.ones((rows, 1)) if weights is None else weights
    weights = xp.broadcast_to(given.T[:, np.newaxis].astype(y.dtype), (n_problems, 1, rows))
    weighted = y * weights
    total = weighted.sum(axis=2, dtype=np.float64)
    if sums.classes.ndim == 3:
        sums.classes -= weighted @ y.transpose(0, 2, 1)
        sums.classes.reshape(n_problems, -1)[:, :: n_classes + 1] += total
    else:
        sums.classes += total - xp.einsum("pkn,pkn->pk", weighted, y)
    trace = (weights[:, 0] - xp.einsum("pkn,pkn->pn", weighted, y)).sum(axis=0)
    sums.weight += weights.sum(axis=(1, 2), dtype=np.float64)
    root = xp.sqrt(xp.maximum(trace, 0))
    scaled = X * scale.astype(y.dtype)
    scaled *= root[:, np.newaxis]
    if sums.offsets is None:
        sums.gram[:-1, :-1] += scaled.T @ scaled
        sums.gram[-1, :-1] += root @ scaled
        sums.gram[:-1, -1] = sums.gram[-1, :-1]
        sums.gram[-1, -1] += root @ root
    else:
        sums.gram[:-1] += xp.einsum("nd,nd->d", scaled, scaled)
        sums.gram[-1] += root @ root
        sums.offsets += root @ scaled
