"""scikit-learn on CuPy arrays, through the array API, and cuML."""

from dataclasses import dataclass

import numpy as np
from sklearn import config_context

from bench.libraries.base import UnavailableError, need
from bench.libraries.scikit_learn import ScikitLearn


def _cupy():
    """Return CuPy where it has a GPU."""
    cupy = need("cupy", "CuPy")
    if not cupy.cuda.is_available():
        raise UnavailableError("needs a CUDA GPU that CuPy can use")
    return cupy


@dataclass(frozen=True)
class ScikitLearnOnCupy:
    """`LogisticRegression` of X on the GPU; SciPy's L-BFGS stays on the host."""

    name: str = "scikit-learn on CuPy"
    device: str = "cuda"
    settings: str = ScikitLearn().settings + ", array_api_dispatch=True, SCIPY_ARRAY_API=1"

    def fit(self, data, record):
        cupy = _cupy()
        moved = type(data)(cupy.asarray(data.X), cupy.asarray(data.targets), data.n_classes, data.C)
        with config_context(array_api_dispatch=True):
            W, b = ScikitLearn().fit(moved, record)
        return cupy.asnumpy(W), cupy.asnumpy(b)


@dataclass(frozen=True)
class Cuml:
    """cuML, which tells nothing of its way: only its end is recorded."""

    name: str = "cuML"
    device: str = "cuda"
    settings: str = "tol=1e-4, max_iter=20000"

    def fit(self, data, record):
        linear_model = need("cuml.linear_model", "cuML")
        model = linear_model.LogisticRegression(C=data.C, tol=1e-4, max_iter=20_000, output_type="numpy")
        cupy = _cupy()
        model.fit(cupy.asarray(data.X), cupy.asarray(data.targets.astype(np.int32)))
        record.passes(np.nan)
        record.point(lambda: (model.coef_.T, model.intercept_))
        return model.coef_.T, model.intercept_
