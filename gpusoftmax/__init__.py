"""GPU-accelerated batched trainer for softmax (multinomial logistic) regression."""

from importlib.metadata import version

from gpusoftmax.cross_validation import SoftmaxRegressionCV
from gpusoftmax.estimator import SoftmaxRegression
from gpusoftmax.exceptions import ConvergenceWarning, ModelFileError, NonFiniteError, WorkspaceError
from gpusoftmax.exports import to_onnx, to_sklearn, to_torch
from gpusoftmax.functional import loss_and_gradient
from gpusoftmax.many import ManyFits, fit_many
from gpusoftmax.persistence import load_model, save_model
from gpusoftmax.solvers.base import Status
from gpusoftmax.sweep_result import SweepResult
from gpusoftmax.sweeps import sweep

__version__ = version("gpusoftmax")

__all__ = [
    "ConvergenceWarning",
    "ManyFits",
    "ModelFileError",
    "NonFiniteError",
    "SoftmaxRegression",
    "SoftmaxRegressionCV",
    "Status",
    "SweepResult",
    "WorkspaceError",
    "fit_many",
    "load_model",
    "loss_and_gradient",
    "save_model",
    "sweep",
    "to_onnx",
    "to_sklearn",
    "to_torch",
]
