"""What a fit tells while it runs: its history, records for `logging`, and the tasks of scikit-learn's callbacks.

Solvers call with a `Progress` after every evaluation and know nothing of what is made of it.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from gpusoftmax.frames import to_table
from gpusoftmax.solvers.base import Progress

STEP = "lbfgs-iter"  # what scikit-learn's LogisticRegression calls its tasks

logger = logging.getLogger("gpusoftmax")
logger.addHandler(logging.NullHandler())


@dataclass(frozen=True, eq=False)
class History:
    """What the evaluations of a fit found; arrays of shape (n_evaluations,), float64.

    Parameters
    ----------
    n_passes : array
        Passes over X by then, those for the metric included.
    objectives, gradient_norms : arrays
        Of the point reached by then: an evaluation that the line search refuses repeats the one before. Gradients of
        fits in the span of the rows are those of coordinates there, until the last few.
    seconds : array
        Since data were checked.
    validation_losses : array or None
        With `EarlyStopping`: mean cross-entropy of its data, NaN where no step was taken.
    """

    n_passes: np.ndarray
    objectives: np.ndarray
    gradient_norms: np.ndarray
    seconds: np.ndarray
    validation_losses: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.n_passes)

    def to_frame(self):
        """Return a pandas DataFrame with a row for each evaluation."""
        return to_table({name: values for name, values in vars(self).items() if values is not None})


class Recorder:
    """Keeps what each evaluation of a fit found, and logs it."""

    def __init__(self, n_samples: int, n_features: int, n_classes: int, device: str):
        self._began = time.perf_counter()
        self._entries: list[tuple[float, float, float, float]] = []
        sizes = {"n_samples": n_samples, "n_features": n_features, "n_classes": n_classes, "device": device}
        logger.info("fitting %d samples of %d features and %d classes on %s", *sizes.values(), extra=sizes)

    def hear(self, progress: Progress) -> None:
        """Note an evaluation of a fit's one problem."""
        seconds = time.perf_counter() - self._began
        entry = progress.n_passes, float(progress.values[0]), float(progress.gradient_norms[0]), seconds
        self._entries.append(entry)
        if logger.isEnabledFor(logging.DEBUG):
            record = dict(zip(("n_passes", "objective", "gradient_norm", "seconds"), entry, strict=True))
            message = "%.1f passes: objective %.9g, max |gradient| %.2e, %.3g s"
            logger.debug(message, *entry, extra=record | {"n_iter": int(progress.n_iter[0])})

    def log_end(self, estimator: BaseEstimator) -> None:
        """Log how the fit of an estimator ended."""
        status, seconds = estimator.status_, time.perf_counter() - self._began
        names = ("n_passes", "objective", "gradient_norm")
        record = {name: getattr(estimator, f"{name}_") for name in names} | {"status": str(status), "seconds": seconds}
        message = "the fit %s (%.1f passes, %.3g s)"
        logger.info(message, status.sentence, estimator.n_passes_, seconds, extra=record)

    def history(self) -> History:
        """Return what was noted."""
        return History(*np.array(self._entries, np.float64).reshape(-1, 4).T.copy())


class FitTasks:
    """A fit as scikit-learn's callbacks hear of it: a task for the whole and, within, one for each step.

    Parameters
    ----------
    estimator : BaseEstimator with CallbackSupportMixin
        Its ``fit`` must be within `sklearn.callback.with_callbacks`.
    X, y, sample_weight : as the user gave them
    """

    def __init__(self, estimator: BaseEstimator, X, y, sample_weight):
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}
        self._about = {"estimator": estimator, "X": X, "y": y, "metadata": metadata}
        self._has_listeners = hasattr(estimator, "_skl_callbacks")
        self._step: Any = None
        self._n_iter = 0
        self._fit = estimator._init_callback_context(max_subtasks=None)
        self._fit.call_on_fit_task_begin(**self._about)

    def hear(self, progress: Progress, attributes: Callable[[], dict[str, Any]]) -> bool:
        """Say whether a callback wants the fit to stop.

        Parameters
        ----------
        progress : Progress
        attributes : callable
            Returns the fitted attributes as they would be now; called only if a callback asks for a fitted estimator.
        """
        if not self._has_listeners:
            return False
        stops, n_iter = False, int(progress.n_iter[0])
        if n_iter > self._n_iter:
            stops = self._step.call_on_fit_task_end(**self._about, reconstruction_attributes=attributes)
            self._step = None
        if self._step is None and not stops:
            self._n_iter, self._step = n_iter, self._fit.subcontext(task_name=STEP)
            self._step.call_on_fit_task_begin(**self._about, reconstruction_attributes=attributes)
        return stops

    def end(self) -> None:
        """Tell that the estimator is fitted; a step that was begun and not taken ends without a model."""
        if self._step is not None:
            self._step.call_on_fit_task_end(estimator=self._about["estimator"])
        self._fit.call_on_fit_task_end(**self._about, reconstruction_attributes={})
