"""Micro-benchmarks of the CPU kernel's stages on one task, in one thread; README.md says how to compare two runs."""

from collections import deque

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from bench import one_pass
from bench.cases import SHAPES, Case, Data, random
from gpusoftmax.kernels import cpu
from gpusoftmax.kernels.workspace import Sums, Workspace
from gpusoftmax.plan import DeviceFacts, plan_pass
from gpusoftmax.sources import Block

pytest.importorskip("pytest_benchmark")


class Task:
    """The first task of a pass, and what its stages need."""

    def __init__(self, n_rows: int, n_features: int, n_classes: int, *, is_soft: bool):
        dtype = np.dtype(np.float32)
        plan = plan_pass(n_rows, n_features, 1, n_classes, dtype, DeviceFacts(n_threads=1), is_soft=is_soft)
        rows = next(plan.tasks(0))
        X, targets = random(Case("random", rows.stop, n_features, n_classes, is_soft=is_soft))
        W, b = one_pass.params(Data(X, targets, n_classes, C=1.0))
        self.block = Block(X, targets if is_soft else targets.astype(np.min_scalar_type(n_classes)), None)
        self.affine = cpu.Affine(W, b)
        self.work, self.sums = Workspace(plan), Sums(plan)

    def logits(self) -> None:
        deque(cpu.logits(self.block.X, self.affine, self.work), maxlen=0)  # they come chunk by chunk

    def loss_and_residual(self) -> None:
        cpu.loss_and_residual(self.block, self.affine, self.work, 0, 0.0)

    def accumulate(self) -> None:
        cpu.accumulate(self.block.X, self.work, self.sums)


@pytest.fixture(scope="module", params=[False, True], ids=["labels", "soft"])
def is_soft(request):
    return request.param


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def task(request, is_soft):
    with threadpool_limits(1, "blas"):
        task = Task(*request.param, is_soft=is_soft)
        task.loss_and_residual()  # `accumulate` finds a residual
        yield task


@pytest.mark.parametrize("stage", ["logits", "loss_and_residual", "accumulate"])
def test_stage(benchmark, task, stage):
    benchmark(getattr(task, stage))
