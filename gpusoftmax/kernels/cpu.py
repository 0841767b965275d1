"""The fused pass over one task of rows on a CPU: logits, softmax, residual and gradient while they are in cache.

Everything is class-major: logits of a stack of blocks have shape (n_blocks, n_problems, n_classes, block_rows), so that
the softmax reduces over a strided axis while vector instructions run along the rows, and the backward product needs no
transposition. Never materialised: N x K anything, one-hot targets, probabilities beside the logits. Knows nothing of
threads, sources or penalties.
"""

import numpy as np

from gpusoftmax.plan import MetricPlan, Plan
from gpusoftmax.sources import Block


class Workspace:
    """Buffers that one thread reuses for all its tasks."""

    def __init__(self, plan: Plan):
        rows, dtype = plan.task_rows, plan.dtype
        n_blocks = -(-rows // plan.block_rows)
        self.plan = plan
        self.residual = np.empty(rows * plan.n_columns, dtype)
        self.scratch = np.empty(rows * plan.n_columns if plan.needs_scratch else 0, dtype)
        self.gradient = np.empty(n_blocks * plan.n_columns * plan.n_features, dtype)
        self.rows = None if plan.is_direct else np.empty(rows * plan.n_features, dtype)

    def split(self, n_rows: int) -> tuple[int, int]:
        """Return (n_blocks, block_rows) for a task of `n_rows`: whole blocks, or the rows left over at the end."""
        block = min(self.plan.block_rows, n_rows)
        return n_rows // block, block


class Sums:
    """One lane's running sums over its tasks: loss (P,), gradient (P·K, D) and intercept gradient (P·K,)."""

    def __init__(self, plan: Plan):
        self.loss = np.zeros(plan.n_problems)
        self.gradient = np.zeros((plan.n_columns, plan.n_features), plan.gradient_dtype)
        self.intercept = np.zeros(plan.n_columns)

    def add(self, other: "Sums") -> None:
        self.loss += other.loss
        self.gradient += other.gradient
        self.intercept += other.intercept


def logits(X: np.ndarray, params: np.ndarray, work: Workspace) -> np.ndarray:
    """Write ``X W + b`` class-major into the workspace, shape (n_blocks, P, K, block_rows).

    `params` has the compute dtype. One read of X; two writes of the logits where they are computed row-major.
    """
    plan = work.plan
    n_blocks, rows = work.split(len(X))
    stack = X.reshape(n_blocks, rows, plan.n_features)
    wide = params[:-1].reshape(plan.n_features, plan.n_columns)
    bias = params[-1].reshape(plan.n_columns, 1)
    out = work.residual[: len(X) * plan.n_columns].reshape(n_blocks, plan.n_columns, rows)
    if plan.is_rows_first:
        row_major = work.scratch[: out.size].reshape(n_blocks, rows, plan.n_columns)
        np.matmul(stack, wide, out=row_major)
        np.add(row_major.transpose(0, 2, 1), bias, out=out)
    else:
        np.matmul(wide.T, stack.transpose(0, 2, 1), out=out)
        np.add(out, bias, out=out)
    return out.reshape(n_blocks, plan.n_problems, plan.n_classes, rows)


def residual(z: np.ndarray, block: Block, work: Workspace, label_smoothing: float) -> np.ndarray:
    """Overwrite logits `z` by ``s ⊙ (Y - T)`` and return each problem's summed loss, float64."""
    np.subtract(z, z.max(axis=2, keepdims=True), out=z)
    weights = _row_weights(block, z)
    subtract_targets = _soft_targets if block.targets.ndim == 2 else _label_targets
    loss = subtract_targets(z, block.targets, weights, work, label_smoothing)
    if weights is not None:
        loss *= weights
    return loss.sum(axis=(0, 2, 3), dtype=np.float64)


def _row_weights(block: Block, z: np.ndarray) -> np.ndarray | None:
    """Return the weights as (n_blocks, P or 1, 1, block_rows), or None for ones."""
    if block.weights is None:
        return None
    n_blocks, rows = z.shape[0], z.shape[3]
    return block.weights.reshape(n_blocks, rows, -1).transpose(0, 2, 1)[:, :, np.newaxis].astype(z.dtype)


def _label_targets(z, labels, weights, work, label_smoothing):
    """Turn shifted logits into the residual of class indices; return the loss of each row.

    With o = Σ exp(z_j) over the classes other than the target t, the loss is log1p(o + (exp(z_t) - 1)) - z_t and the
    residual at the target -o / (o + exp(z_t)): neither cancels, however sure the model is.
    """
    n_blocks, n_problems, n_classes, rows = z.shape
    problems = np.arange(n_blocks * n_problems).reshape(n_blocks, n_problems, 1, 1) * (n_classes * rows)
    at_target = labels.reshape(n_blocks, 1, 1, rows) * np.intp(rows) + (problems + np.arange(rows))
    flat = z.reshape(-1)
    target = flat.take(at_target)
    if label_smoothing:
        mean = z.mean(axis=2, keepdims=True)
    flat[at_target] = -np.inf
    np.exp(z, out=z)
    others = z.sum(axis=2, keepdims=True)
    at_target_exp = np.exp(target)
    scale = 1 / (others + at_target_exp)
    if weights is not None:
        scale *= weights
    np.multiply(z, scale, out=z)
    loss = np.log1p(others + (at_target_exp - 1))
    np.multiply(others, scale, out=others)
    if label_smoothing:
        each = z.dtype.type(label_smoothing / n_classes)
        spread = each if weights is None else each * weights
        np.subtract(z, spread, out=z)
        others -= (n_classes - 1) * spread
        loss -= z.dtype.type(1 - label_smoothing) * target + z.dtype.type(label_smoothing) * mean
    else:
        loss -= target
    flat[at_target] = -others
    return loss


def _soft_targets(z, targets, weights, work, label_smoothing):
    """Turn shifted logits into the residual of soft targets; return the loss of each row."""
    n_blocks, _, n_classes, rows = z.shape
    t = targets.reshape(n_blocks, rows, n_classes).transpose(0, 2, 1)[:, np.newaxis].astype(z.dtype)
    if label_smoothing:
        t *= z.dtype.type(1 - label_smoothing)
        t += z.dtype.type(label_smoothing / n_classes)
    product = work.scratch[: z.size].reshape(z.shape)
    expected = np.multiply(z, t, out=product).sum(axis=2, keepdims=True)
    np.exp(z, out=z)
    total = z.sum(axis=2, keepdims=True)
    np.multiply(z, 1 / total, out=z)
    np.subtract(z, t, out=z)
    if weights is not None:
        np.multiply(z, weights, out=z)
    return np.log(total) - expected


def accumulate(X: np.ndarray, z: np.ndarray, work: Workspace, sums: Sums) -> None:
    """Add ``Gᵀ X`` and ``Gᵀ 1`` to the lane's sums."""
    n_blocks, _, _, rows = z.shape
    plan = work.plan
    wide = z.reshape(n_blocks, plan.n_columns, rows)
    stack = X.reshape(n_blocks, rows, plan.n_features)
    gradient = work.gradient[: n_blocks * sums.gradient.size].reshape(n_blocks, *sums.gradient.shape)
    np.matmul(wide, stack, out=gradient)
    sums.gradient += gradient[0] if n_blocks == 1 else gradient.sum(axis=0, dtype=sums.gradient.dtype)
    sums.intercept += wide.sum(axis=2).sum(axis=0, dtype=np.float64)


def loss_and_gradient(block: Block, params, work: Workspace, sums: Sums, label_smoothing: float) -> None:
    """Add one task's loss and gradient to the lane's sums: the three stages on one stack of blocks."""
    z = logits(block.X, params, work)
    sums.loss += residual(z, block, work, label_smoothing)
    accumulate(block.X, z, work, sums)


def softmax(z: np.ndarray) -> None:
    """Overwrite logits (n_blocks, P, K, rows) by probabilities."""
    np.subtract(z, z.max(axis=2, keepdims=True), out=z)
    np.exp(z, out=z)
    np.divide(z, z.sum(axis=2, keepdims=True), out=z)


def predict(z: np.ndarray, output: str) -> np.ndarray:
    """Turn class-major logits of one problem into row-major `output`; overwrites `z`.

    `output` is "logits", "probabilities", "log_probabilities", or "classes" for the index of the largest logit.
    """
    if output == "classes":
        return z.argmax(axis=2).reshape(-1)
    if output == "probabilities":
        softmax(z)
    elif output == "log_probabilities":
        np.subtract(z, z.max(axis=2, keepdims=True), out=z)
        np.subtract(z, np.log(np.exp(z).sum(axis=2, keepdims=True)), out=z)
    return z.transpose(0, 3, 1, 2).reshape(-1, z.shape[2])


class CurvatureSums:
    """Running sums for the metric; see `kernels.reference.curvature`. A diagonal factor keeps its diagonal only."""

    def __init__(self, n_features: int, n_problems: int, n_classes: int, plan: MetricPlan):
        self.gram = np.zeros((n_features + 1,) * (2 if plan.is_feature_full else 1), plan.dtype)
        self.classes = np.zeros((n_problems, n_classes) + ((n_classes,) if plan.is_class_full else ()))
        self.weight = np.zeros(n_problems)

    def add(self, other: "CurvatureSums") -> None:
        self.gram += other.gram
        self.classes += other.classes
        self.weight += other.weight


def curvature(block: Block, params: np.ndarray, scale: np.ndarray, sums: CurvatureSums) -> None:
    """Add a block's curvature, for features multiplied by `scale`, to the sums."""
    n_features, n_problems, n_classes = params.shape[0] - 1, *params.shape[1:]
    rows = len(block.X)
    z = np.matmul(params[:-1].reshape(n_features, -1).T, block.X.T)
    z += params[-1].reshape(-1, 1)
    z = z.reshape(1, n_problems, n_classes, rows)
    softmax(z)
    y = z[0]
    given = _row_weights(block, z)
    weights = np.ones((1, 1, rows), y.dtype) if given is None else given[0]
    weights = np.broadcast_to(weights, (n_problems, 1, rows))
    weighted = y * weights
    total = weighted.sum(axis=2, dtype=np.float64)
    if sums.classes.ndim == 3:
        diagonal = np.arange(n_classes)
        sums.classes -= np.matmul(weighted, y.transpose(0, 2, 1))
        sums.classes[:, diagonal, diagonal] += total
    else:
        sums.classes += total - np.einsum("pkn,pkn->pk", weighted, y)
    trace = (weights[:, 0] - np.einsum("pkn,pkn->pn", weighted, y)).sum(axis=0)
    sums.weight += weights.sum(axis=(1, 2), dtype=np.float64)
    root = np.sqrt(np.maximum(trace, 0))
    scaled = block.X * scale.astype(y.dtype)
    np.multiply(scaled, root[:, np.newaxis], out=scaled)
    if sums.gram.ndim == 2:
        sums.gram[:-1, :-1] += np.matmul(scaled.T, scaled)
        sums.gram[-1, :-1] += root @ scaled
        sums.gram[:-1, -1] = sums.gram[-1, :-1]
        sums.gram[-1, -1] += root @ root
    else:
        sums.gram[:-1] += np.einsum("nd,nd->d", scaled, scaled)
        sums.gram[-1] += root @ root
