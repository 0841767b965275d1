"""The fused pass on a CPU: logits, softmax, residual and gradient of some rows while they are in cache.

Logits and residual are seen as (n_problems, n_classes, rows), whatever their order in memory: class-major where there
are few classes, so that vector instructions run along the rows; row-major where there are many. Never materialised:
N x K anything, one-hot targets, probabilities beside the logits. Knows nothing of threads, sources or penalties.
"""

from collections.abc import Iterator
from typing import NamedTuple, Self

import numpy as np

from gpusoftmax.kernels.curvature import softmax
from gpusoftmax.kernels.workspace import Chunk, Sums, Workspace
from gpusoftmax.sources import Block


class Affine(NamedTuple):
    """Params of an evaluation in the compute dtype: W (n_features, P·K) and b (P·K,)."""

    W: np.ndarray
    b: np.ndarray

    @classmethod
    def of(cls, params: np.ndarray, dtype: np.dtype) -> Self:
        """Return params (n_features + 1, n_problems, n_classes) as they enter the products."""
        wide = np.ascontiguousarray(params, dtype).reshape(len(params), -1)
        return cls(wide[:-1], wide[-1])


def loss_and_gradient(task: Block, affine: Affine, work: Workspace, sums: Sums, label_smoothing: float) -> None:
    """Add a task's loss and gradient to the sums: the stages one after the other."""
    sums.loss += loss_and_residual(task, affine, work, 0, label_smoothing)
    accumulate(task.X, work, sums)


def loss_and_residual(block: Block, affine: Affine, work: Workspace, start: int, label_smoothing: float) -> np.ndarray:
    """Write a block's residual to its place in the task, `start` rows on; return each problem's summed loss."""
    loss = np.zeros(work.plan.n_problems)
    for rows, chunk in logits(block.X, affine, work, start):
        loss += residual(chunk, block.select(rows), label_smoothing)
    return loss


def logits(X: np.ndarray, affine: Affine, work: Workspace, start: int = 0) -> Iterator[tuple[slice, Chunk]]:
    """Yield rows of X and their chunk with ``X W + b``, in a task from row `start` on.

    The product is row-major. Adding b, chunk by chunk while it is in cache, transposes it to class-major logits.
    """
    plan, n_rows = work.plan, len(X)
    if plan.is_class_major:
        stack = work.stack(n_rows)
        np.matmul(X.reshape(*stack.row_major.shape[:2], -1), affine.W, out=stack.row_major)
        np.add(stack.transposed, affine.b[:, np.newaxis], out=stack.class_major)
        yield slice(0, n_rows), work.chunk(start, n_rows)
        return
    product = work.memory(start, n_rows).reshape(n_rows, -1)
    np.matmul(X, affine.W, out=product)
    for rows in plan.cut(n_rows, plan.softmax_rows):
        np.add(product[rows], affine.b, out=product[rows])
        yield rows, work.chunk(start + rows.start, rows.stop - rows.start)


def residual(chunk: Chunk, block: Block, label_smoothing: float) -> np.ndarray:
    """Overwrite the logits ``chunk.z`` by ``s ⊙ (Y - T)``; return each problem's summed loss, float64."""
    np.maximum.reduce(chunk.z, axis=1, keepdims=True, out=chunk.target)
    np.subtract(chunk.z, chunk.target, out=chunk.z)
    weights = None
    if block.weights is not None:
        weights = chunk.weights
        np.copyto(weights, block.weights.T[:, np.newaxis], casting="unsafe")
    subtract_targets = _soft_targets if block.targets.ndim == 2 else _label_targets
    subtract_targets(chunk, block.targets, weights, label_smoothing)
    if weights is not None:
        np.multiply(chunk.loss, weights, out=chunk.loss)
    return np.add.reduce(chunk.loss, axis=(1, 2), dtype=np.float64)


def _label_targets(chunk: Chunk, labels, weights, label_smoothing):
    """Turn shifted logits into the residual of class indices, and write the loss of each row.

    With o = Σ exp(z_j) over the classes other than the target t, the loss is log1p(o + (exp(z_t) - 1)) - z_t and the
    residual at the target -o / (o + exp(z_t)): neither cancels, however sure the model is.
    """
    z, target, others, scale, loss = chunk.z, chunk.target, chunk.others, chunk.scale, chunk.loss
    np.multiply(labels, chunk.class_step, out=chunk.places, casting="unsafe")
    np.add(chunk.places, chunk.row_places, out=chunk.places)
    places = chunk.places.reshape(-1)
    chunk.flat.take(places, out=target.reshape(-1), mode="wrap")
    np.exp(target, out=loss)
    spread = z.dtype.type(label_smoothing / z.shape[1])
    if label_smoothing:
        np.add.reduce(z, axis=1, keepdims=True, out=others)
        target *= z.dtype.type(1 - label_smoothing)
        target += np.multiply(others, spread, out=others)
    chunk.flat[places] = -np.inf
    np.exp(z, out=z)
    np.add.reduce(z, axis=1, keepdims=True, out=others)
    np.add(others, loss, out=scale)
    np.divide(1 if weights is None else weights, scale, out=scale)
    np.multiply(z, scale, out=z)
    np.multiply(others, scale, out=scale)
    loss -= 1
    loss += others
    np.log1p(loss, out=loss)
    loss -= target
    if label_smoothing:
        each = spread if weights is None else np.multiply(weights, spread, out=others)
        np.subtract(z, each, out=z)
        scale -= (z.shape[1] - 1) * each
    chunk.flat[places] = np.negative(scale, out=scale).reshape(-1)


def _soft_targets(chunk: Chunk, targets, weights, label_smoothing):
    """Turn shifted logits into the residual of soft targets, and write the loss of each row."""
    z, t, expected, loss = chunk.z, chunk.soft, chunk.others, chunk.loss
    np.copyto(t, targets.T, casting="unsafe")
    if label_smoothing:
        t *= z.dtype.type(1 - label_smoothing)
        t += z.dtype.type(label_smoothing / len(t))
    np.multiply(z, t, out=chunk.product)
    np.add.reduce(chunk.product, axis=1, keepdims=True, out=expected)
    np.exp(z, out=z)
    np.add.reduce(z, axis=1, keepdims=True, out=loss)
    np.multiply(z, np.divide(1, loss, out=chunk.scale), out=z)
    np.subtract(z, t, out=z)
    if weights is not None:
        np.multiply(z, weights, out=z)
    np.log(loss, out=loss)
    loss -= expected


def accumulate(X: np.ndarray, work: Workspace, sums: Sums) -> None:
    """Add ``XᵀG`` and ``1ᵀG`` of a task to the sums: class-major as a stack of small products."""
    if not work.plan.is_class_major:
        for columns in work.plan.columns():
            accumulate_columns(X, columns, work, sums)
        return
    stack = work.stack(len(X))
    G, product = stack.residual, stack.product
    np.matmul(G, X.reshape(len(G), G.shape[2], -1), out=product)
    sums.gradient += (product[0] if len(G) == 1 else np.add.reduce(product)).T
    sums.intercept += np.add.reduce(np.matmul(G, stack.ones), dtype=np.float64)


def accumulate_columns(X: np.ndarray, columns: slice, work: Workspace, sums: Sums) -> None:
    """Add some columns of ``XᵀG`` and ``1ᵀG`` of a row-major task to the sums."""
    G = work.memory(0, len(X)).reshape(len(X), -1)[:, columns]
    product = work.product[: X.shape[1] * G.shape[1]].reshape(X.shape[1], -1)
    np.matmul(X.T, G, out=product)
    sums.gradient[:, columns] += product
    sums.intercept[columns] += np.add.reduce(G)


def predict(z: np.ndarray, output: str) -> np.ndarray:
    """Turn logits of one problem, (1, n_classes, rows), into row-major `output`; overwrites `z`.

    `output` is "logits", "probabilities", "log_probabilities", or "classes" for the index of the largest logit.
    """
    if output == "classes":
        return z[0].argmax(axis=0)
    if output == "probabilities":
        softmax(np, z)
    elif output == "log_probabilities":
        np.subtract(z, z.max(axis=1, keepdims=True), out=z)
        np.subtract(z, np.log(np.exp(z).sum(axis=1, keepdims=True)), out=z)
    return z[0].T
