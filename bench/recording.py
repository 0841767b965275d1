"""Listening to a fit: the points it evaluated, on a clock that stops while one is copied."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest import mock

import numpy as np
from sklearn.linear_model._linear_loss import LinearModelLoss

from bench.libraries.base import Params, Record
from gpusoftmax import estimator, training

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


@contextmanager
def recorded_gpusoftmax(record: Record, to_host: Callable) -> Iterator[None]:
    """Tell `record` of every point that a fit of gpusoftmax has reached after an evaluation while inside."""

    def train(*args, callback, **options):
        heard = 0.0

        def hear(progress, center):
            nonlocal heard
            record.passes(progress.n_passes - heard)
            heard = progress.n_passes
            record.point(lambda: uncentred(to_host(progress.copy_params()), center))
            return callback(progress, center)

        return training.train(*args, callback=hear, **options)

    def uncentred(params: np.ndarray, center: np.ndarray | None) -> Params:
        W, b = params[:-1, 0], params[-1, 0]
        return W, b if center is None else b - center @ W

    with mock.patch.object(estimator, "train", train):
        yield


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
