"""GPU-accelerated batched trainer for softmax (multinomial logistic) regression."""

from importlib.metadata import version

from gpusoftmax.calibration import calibrate, expected_calibration_error
from gpusoftmax.callbacks import History
from gpusoftmax.cross_validation import SoftmaxRegressionCV
from gpusoftmax.early_stopping import EarlyStopping
from gpusoftmax.estimator import SoftmaxRegression
from gpusoftmax.evaluation import Evaluation, evaluate
from gpusoftmax.exceptions import ConvergenceWarning, ModelFileError, NonFiniteError, WorkspaceError
from gpusoftmax.exports import to_onnx, to_sklearn, to_torch
from gpusoftmax.functional import loss_and_gradient
from gpusoftmax.many import ManyFits, fit_many
from gpusoftmax.persistence import load_model, save_model
from gpusoftmax.report import write_report
from gpusoftmax.solvers.base import Status
from gpusoftmax.sweep_result import SweepResult
from gpusoftmax.sweeps import sweep

__version__ = version("gpusoftmax")

__all__ = [
    "ConvergenceWarning",
    "EarlyStopping",
    "Evaluation",
    "History",
    "ManyFits",
    "ModelFileError",
    "NonFiniteError",
    "SoftmaxRegression",
    "SoftmaxRegressionCV",
    "Status",
    "SweepResult",
    "WorkspaceError",
    "calibrate",
    "evaluate",
    "expected_calibration_error",
    "fit_many",
    "load_model",
    "loss_and_gradient",
    "save_model",
    "sweep",
    "to_onnx",
    "to_sklearn",
    "to_torch",
    "write_report",
]
