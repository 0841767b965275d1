"""What a CPU kernel works in: buffers that a thread allocates once, views of them made once, and running sums.

Knows the layout of logits in memory. Does not know what is computed in it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from gpusoftmax.plan import N_VECTORS, Plan


@dataclass(frozen=True)
class Chunk:
    """Rows whose softmax is taken at once: views of a workspace, made once, since making them takes as long as using.

    z : logits, then residual, (n_problems, n_classes, rows), and the same in the order of its memory, `flat`
    target, others, scale, loss, weights : (n_problems, 1, rows)
    places : where in `flat` the targets are, (n_problems, rows); `row_places` those of class 0, `class_step` from one
        class to the next
    soft : targets, (n_classes, rows), where they are soft; `product` for as many numbers as `z`
    """

    z: np.ndarray
    flat: np.ndarray
    target: np.ndarray
    others: np.ndarray
    scale: np.ndarray
    loss: np.ndarray
    weights: np.ndarray
    places: np.ndarray
    row_places: np.ndarray
    class_step: np.intp
    soft: np.ndarray
    product: np.ndarray


@dataclass(frozen=True)
class Stack:
    """A class-major task as a stack of blocks, views of a workspace made once.

    row_major (n_blocks, block_rows, P·K) and `transposed` (P·K, rows): logits before they are class-major
    class_major (P·K, rows) and `residual` (n_blocks, P·K, block_rows): after
    product (n_blocks, P·K, n_features), ones (block_rows,)
    """

    row_major: np.ndarray
    transposed: np.ndarray
    class_major: np.ndarray
    residual: np.ndarray
    product: np.ndarray
    ones: np.ndarray


class Workspace:
    """Buffers that one thread reuses; those of a whole task, `logits` and `rows`, may be another's too."""

    def __init__(self, plan: Plan, task: "Workspace | None" = None):
        dtype, at_once = plan.dtype, plan.softmax_rows
        self.plan = plan
        if task is None:
            self.logits = np.empty(plan.task_rows * plan.n_columns, dtype)
            self.rows = None if plan.is_direct else np.empty(plan.task_rows * plan.n_features, dtype)
        else:
            self.logits, self.rows = task.logits, task.rows
        self.scratch = np.empty(at_once * plan.n_columns if plan.needs_scratch else 0, dtype)
        self.soft = np.empty(at_once * plan.n_classes if plan.is_soft else 0, dtype)
        size, n_spare = at_once * plan.n_problems, plan.n_spare_vectors
        self.vectors = [
            *self.scratch[: n_spare * size].reshape(n_spare, size),  # free once logits are class-major
            *np.empty((N_VECTORS - n_spare, size), dtype),
        ]
        self.places = np.empty(0 if plan.is_soft else at_once * plan.n_problems, np.intp)
        self.product = np.empty(plan.product_size, dtype)
        self.ones = np.ones(plan.block_rows, dtype)
        self._chunks: dict[tuple[int, int], Chunk] = {}
        self._stacks: dict[int, Stack] = {}
        self._row_places: dict[int, np.ndarray] = {}

    def memory(self, start: int, n_rows: int) -> np.ndarray:
        """Return the memory of the logits of some rows of a task."""
        return self.logits[start * self.plan.n_columns : (start + n_rows) * self.plan.n_columns]

    def chunk(self, start: int, n_rows: int) -> Chunk:
        """Return the views for `n_rows` rows of a task from `start` on."""
        if (start, n_rows) not in self._chunks:
            self._chunks[start, n_rows] = self._make_chunk(start, n_rows)
        return self._chunks[start, n_rows]

    def stack(self, n_rows: int) -> Stack:
        """Return the views for a class-major task of `n_rows`: whole blocks, or the rows left over at the end."""
        if n_rows not in self._stacks:
            self._stacks[n_rows] = self._make_stack(n_rows)
        return self._stacks[n_rows]

    def _make_chunk(self, start: int, n_rows: int) -> Chunk:
        plan, n_problems = self.plan, self.plan.n_problems
        flat, size = self.memory(start, n_rows), n_problems * n_rows
        z = self._shaped(flat, n_problems)
        target, others, scale, loss, weights = (v[:size].reshape(n_problems, 1, n_rows) for v in self.vectors)
        places = self.places[:size].reshape(n_problems, -1)
        return Chunk(
            z=z,
            flat=flat,
            target=target,
            others=others,
            scale=scale,
            loss=loss,
            weights=weights,
            places=places,
            row_places=places if plan.is_soft else self._places_of_rows(z),
            class_step=np.intp(z.strides[1] // z.itemsize),
            soft=self._shaped(self.soft[: n_rows * plan.n_classes], 1)[0] if plan.is_soft else self.soft,
            product=self._shaped(self.scratch[: flat.size], n_problems) if plan.is_soft else self.scratch,
        )

    def _shaped(self, flat: np.ndarray, n_problems: int) -> np.ndarray:
        """Return memory of logits as (n_problems, n_classes, rows)."""
        n_classes = self.plan.n_classes
        if self.plan.is_class_major:
            return flat.reshape(n_problems, n_classes, -1)
        return flat.reshape(-1, n_problems, n_classes).transpose(1, 2, 0)

    def _places_of_rows(self, z: np.ndarray) -> np.ndarray:
        """Return where in the memory of `z` class 0 of each problem's rows is; chunks of equal size share it."""
        n_problems, _, n_rows = z.shape
        if n_rows not in self._row_places:
            problem_step, _, row_step = (stride // z.itemsize for stride in z.strides)
            rows = np.arange(n_rows)
            rows *= row_step
            problems = np.arange(n_problems)[:, np.newaxis] * problem_step
            self._row_places[n_rows] = rows[np.newaxis] if n_problems == 1 else problems + rows
        return self._row_places[n_rows]

    def _make_stack(self, n_rows: int) -> Stack:
        plan = self.plan
        rows = min(plan.block_rows, n_rows)
        n_blocks = n_rows // rows
        scratch = self.scratch[: n_rows * plan.n_columns]
        class_major = self.memory(0, n_rows).reshape(plan.n_columns, n_rows)
        return Stack(
            row_major=scratch.reshape(n_blocks, rows, plan.n_columns),
            transposed=scratch.reshape(n_rows, plan.n_columns).T,
            class_major=class_major,
            residual=class_major.reshape(plan.n_columns, n_blocks, rows).transpose(1, 0, 2),
            product=self.product[: n_blocks * plan.n_columns * plan.n_features].reshape(n_blocks, plan.n_columns, -1),
            ones=self.ones[:rows],
        )


class Sums:
    """Running sums over rows: loss (P,), gradient (n_features, P·K) and intercept gradient (P·K,)."""

    def __init__(self, plan: Plan):
        self.loss = np.zeros(plan.n_problems)
        order: Literal["C", "F"] = "F" if plan.is_class_major else "C"
        self._params = np.zeros((plan.n_features + 1, plan.n_columns), plan.gradient_dtype, order)
        self.gradient = self._params[:-1]
        self.intercept = np.zeros(plan.n_columns)

    def add(self, other: "Sums") -> None:
        self.loss += other.loss
        self.gradient += other.gradient
        self.intercept += other.intercept

    def as_params(self, params: np.ndarray) -> np.ndarray:
        """Return the gradient in the shape and dtype of `params`, without a copy where the sums are in that order."""
        self._params[-1] = self.intercept
        return self._params.reshape(params.shape).astype(params.dtype, order="C", copy=False)
