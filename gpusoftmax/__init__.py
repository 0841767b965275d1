"""GPU-accelerated batched trainer for softmax (multinomial logistic) regression."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # type checkers and editors read these; at run time `__getattr__` imports what is asked for
    from gpusoftmax.calibration import calibrate as calibrate
    from gpusoftmax.calibration import expected_calibration_error as expected_calibration_error
    from gpusoftmax.callbacks import History as History
    from gpusoftmax.cross_validation import SoftmaxRegressionCV as SoftmaxRegressionCV
    from gpusoftmax.early_stopping import EarlyStopping as EarlyStopping
    from gpusoftmax.estimator import SoftmaxRegression as SoftmaxRegression
    from gpusoftmax.evaluation import Evaluation as Evaluation
    from gpusoftmax.evaluation import evaluate as evaluate
    from gpusoftmax.exceptions import ConvergenceWarning as ConvergenceWarning
    from gpusoftmax.exceptions import DeviceError as DeviceError
    from gpusoftmax.exceptions import ModelFileError as ModelFileError
    from gpusoftmax.exceptions import NonFiniteError as NonFiniteError
    from gpusoftmax.exceptions import WorkspaceError as WorkspaceError
    from gpusoftmax.exports import to_onnx as to_onnx
    from gpusoftmax.exports import to_sklearn as to_sklearn
    from gpusoftmax.exports import to_torch as to_torch
    from gpusoftmax.functional import loss_and_gradient as loss_and_gradient
    from gpusoftmax.many import ManyFits as ManyFits
    from gpusoftmax.many import fit_many as fit_many
    from gpusoftmax.persistence import load_model as load_model
    from gpusoftmax.persistence import save_model as save_model
    from gpusoftmax.report import write_report as write_report
    from gpusoftmax.solvers.base import Status as Status
    from gpusoftmax.sweep_result import SweepResult as SweepResult
    from gpusoftmax.sweeps import sweep as sweep

_HOMES = {  # public name: the module that holds it
    "ConvergenceWarning": "exceptions",
    "DeviceError": "exceptions",
    "EarlyStopping": "early_stopping",
    "Evaluation": "evaluation",
    "History": "callbacks",
    "ManyFits": "many",
    "ModelFileError": "exceptions",
    "NonFiniteError": "exceptions",
    "SoftmaxRegression": "estimator",
    "SoftmaxRegressionCV": "cross_validation",
    "Status": "solvers.base",
    "SweepResult": "sweep_result",
    "WorkspaceError": "exceptions",
    "calibrate": "calibration",
    "evaluate": "evaluation",
    "expected_calibration_error": "calibration",
    "fit_many": "many",
    "load_model": "persistence",
    "loss_and_gradient": "functional",
    "save_model": "persistence",
    "sweep": "sweeps",
    "to_onnx": "exports",
    "to_sklearn": "exports",
    "to_torch": "exports",
    "write_report": "report",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: the command line answers before scikit-learn is there."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("gpusoftmax")
    elif name in _HOMES:
        value = getattr(import_module(f"gpusoftmax.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "__version__"})
