"""gpusoftmax: the fused pass, planned once, and `SoftmaxRegression` with its defaults."""

import warnings
from dataclasses import dataclass

import numpy as np

from bench.libraries.base import Pass, backend_on
from bench.recording import recorded_gpusoftmax
from gpusoftmax import SoftmaxRegression
from gpusoftmax.sources import ArraySource


@dataclass(frozen=True)
class Ours:
    """gpusoftmax on a device."""

    name: str = "gpusoftmax"
    device: str = "cpu"
    settings: str = "defaults"

    def lay_out(self, W, b):
        return np.concatenate([W, b[np.newaxis]])[:, np.newaxis]

    def prepare_pass(self, data, params):
        backend = backend_on(self.device)
        targets = data.targets if data.is_soft else data.targets.astype(np.min_scalar_type(data.n_classes))
        X, targets, params = (backend.to_device(array) for array in (data.X, targets, params))
        dtype = data.X.dtype
        plan = backend.facts().plan_pass(*X.shape, 1, data.n_classes, dtype, is_soft=data.is_soft)
        fused_pass = backend.fused_pass(ArraySource(X, targets, None, dtype, xp=backend.xp), plan)

        def run():
            sums = fused_pass.loss_and_gradient(params, 0.0)
            if self.device == "cuda":
                backend.xp.cuda.Device().synchronize()
            return sums

        def answer(sums):
            loss, gradient = (backend.to_host(array) / len(data.X) for array in sums)
            return loss[0], gradient[:-1, 0], gradient[-1, 0]

        return Pass(run, answer, backend.session)

    def fit(self, data, record):
        backend = backend_on(self.device)
        X = backend.to_device(data.X)
        with recorded_gpusoftmax(record, backend.to_host), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the judge says what was reached
            model = SoftmaxRegression(C=data.C, device=self.device).fit(X, data.targets)
        return backend.to_host(model.coef_).T, backend.to_host(model.intercept_)
