"""GPU-accelerated batched trainer for softmax (multinomial logistic) regression."""

from importlib.metadata import version

from gpusoftmax.estimator import SoftmaxRegression
from gpusoftmax.exceptions import ConvergenceWarning, NonFiniteError, WorkspaceError
from gpusoftmax.functional import loss_and_gradient
from gpusoftmax.solvers.base import Status
from gpusoftmax.sweeps import SweepResult, sweep

__version__ = version("gpusoftmax")

__all__ = [
    "ConvergenceWarning",
    "NonFiniteError",
    "SoftmaxRegression",
    "Status",
    "SweepResult",
    "WorkspaceError",
    "loss_and_gradient",
    "sweep",
]
