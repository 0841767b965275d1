"""Listening to a fit: the points it evaluated, on a clock that stops while one is copied."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
from sklearn.linear_model._linear_loss import LinearModelLoss

from bench.libraries.base import Params, Record

PASSES = {  # of scikit-learn's evaluations
    "loss_gradient": 1,
    "loss": 0.5,
    "gradient": 1,
    "gradient_hessian": 1,  # one read of X, but D·K times its arithmetic
    "gradient_hessian_product": 1,
}


class TimeIsUpError(Exception):
    """A fit has had its seconds."""


@dataclass(frozen=True)
class Point:
    """Parameters, when their evaluation was done, and after how many passes over X."""

    seconds: float
    n_passes: float
    W: np.ndarray
    b: np.ndarray


@dataclass
class Recorder:
    """Keep every point that a fit evaluates; raise `TimeIsUpError` after `limit_seconds`."""

    limit_seconds: float
    points: list[Point] = field(default_factory=list)
    n_passes: float = 0.0
    total_seconds: float = math.inf  # once it is done
    _start: float = field(default_factory=time.perf_counter)
    _paused: float = 0.0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start - self._paused

    def passes(self, n_passes: float) -> None:
        self.n_passes += n_passes

    def point(self, params: Callable[[], Params]) -> None:
        seconds, now = self.seconds, time.perf_counter()
        self.points.append(Point(seconds, self.n_passes, *(np.array(array) for array in params())))
        self._paused += time.perf_counter() - now
        if seconds > self.limit_seconds:
            raise TimeIsUpError(f"stopped after {seconds:.0f} s")


@dataclass
class Counter:
    """Count the passes of a fit and keep no point."""

    n_passes: float = 0.0

    def passes(self, n_passes: float) -> None:
        self.n_passes += n_passes

    def point(self, params: Callable[[], Params]) -> None:
        """Keep nothing."""


@dataclass(frozen=True)
class RecordingBackend:
    """A backend of gpusoftmax whose passes are recorded; all else is the inner backend's."""

    inner: Any
    record: Record

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def fused_pass(self, source, plan):
        center = None if source.center is None else self.inner.to_host(source.center)
        return RecordingPass(self.inner.fused_pass(source, plan), self.record, center, self.inner.to_host)


@dataclass(frozen=True)
class RecordingPass:
    """A fused pass that tells of every evaluation, and of the share of the rows that a metric reads."""

    inner: Any
    record: Record
    center: np.ndarray | None
    to_host: Callable

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def loss_and_gradient(self, params, label_smoothing):
        sums = self.inner.loss_and_gradient(params, label_smoothing)
        self.record.passes(1)
        self.record.point(lambda: self._uncentred(self.to_host(params)))
        return sums

    def curvature(self, params, scale, plan, rows):
        self.record.passes(len(rows) / self.inner.n_rows)
        return self.inner.curvature(params, scale, plan, rows)

    def select(self, active):
        return RecordingPass(self.inner.select(active), self.record, self.center, self.to_host)

    def _uncentred(self, params: np.ndarray) -> Params:
        """Return W and b of the features as they were given."""
        W, b = params[:-1, 0], params[-1, 0]
        return W, b if self.center is None else b - self.center @ W


@contextmanager
def recorded_scikit_learn(record: Record, n_classes: int) -> Iterator[None]:
    """Tell `record` of every evaluation of scikit-learn's loss while inside."""

    def recorded(name: str):
        evaluate = getattr(LinearModelLoss, name)

        def call(self, coef, *args, **kwargs):
            result = evaluate(self, coef, *args, **kwargs)
            has_logits = kwargs.get("raw_prediction") is not None
            record.passes(PASSES[name] - 0.5 * has_logits)
            record.point(lambda: _split(coef, n_classes))
            return (result[0], counted(result[1])) if name == "gradient_hessian_product" else result

        return call

    def counted(hessian_product):
        def call(vector):
            record.passes(1)
            return hessian_product(vector)

        return call

    with mock.patch.multiple(LinearModelLoss, **{name: recorded(name) for name in PASSES}):
        yield


def _split(coef: np.ndarray, n_classes: int) -> Params:
    """Return W and b of scikit-learn's parameters, in which classes are contiguous; two classes have one column."""
    rows = coef.reshape((1 if n_classes == 2 else n_classes, -1), order="F")
    return rows[:, :-1].T, rows[:, -1]
