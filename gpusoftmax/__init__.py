"""GPU-accelerated batched trainer for softmax (multinomial logistic) regression."""

from importlib.metadata import version

from gpusoftmax.calibration import calibrate, expected_calibration_error
from gpusoftmax.cross_validation import SoftmaxRegressionCV
from gpusoftmax.estimator import SoftmaxRegression
from gpusoftmax.evaluation import Evaluation, evaluate
from gpusoftmax.exceptions import ConvergenceWarning, NonFiniteError, WorkspaceError
from gpusoftmax.functional import loss_and_gradient
from gpusoftmax.many import ManyFits, fit_many
from gpusoftmax.report import write_report
from gpusoftmax.solvers.base import Status
from gpusoftmax.sweep_result import SweepResult
from gpusoftmax.sweeps import sweep

__version__ = version("gpusoftmax")

__all__ = [
    "ConvergenceWarning",
    "Evaluation",
    "ManyFits",
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
    "loss_and_gradient",
    "sweep",
    "write_report",
]
