"""GPU-accelerated batched trainer for softmax (multinomial logistic) regression."""

from importlib.metadata import version

from gpusoftmax.callbacks import History
from gpusoftmax.cross_validation import SoftmaxRegressionCV
from gpusoftmax.early_stopping import EarlyStopping
from gpusoftmax.estimator import SoftmaxRegression
from gpusoftmax.exceptions import ConvergenceWarning, NonFiniteError, WorkspaceError
from gpusoftmax.functional import loss_and_gradient
from gpusoftmax.many import ManyFits, fit_many
from gpusoftmax.solvers.base import Status
from gpusoftmax.sweep_result import SweepResult
from gpusoftmax.sweeps import sweep

__version__ = version("gpusoftmax")

__all__ = [
    "ConvergenceWarning",
    "EarlyStopping",
    "History",
    "ManyFits",
    "NonFiniteError",
    "SoftmaxRegression",
    "SoftmaxRegressionCV",
    "Status",
    "SweepResult",
    "WorkspaceError",
    "fit_many",
    "loss_and_gradient",
    "sweep",
]
