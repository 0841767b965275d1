"""Early stopping: a callback of scikit-learn's protocol that judges every step of a fit by data held out."""

from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import _safe_indexing, check_consistent_length
from sklearn.utils._param_validation import Interval, validate_params
from sklearn.utils.validation import _num_samples

from gpusoftmax.callbacks import logger
from gpusoftmax.held_out import without_scale
from gpusoftmax.interop import to_host
from gpusoftmax.solvers.base import Status
from gpusoftmax.targets import check_soft_targets

PIECE_NUMBERS = 1 << 22  # log-probabilities that are looked at together
KEPT = ("coef_", "intercept_", "objective_", "gradient_norm_")  # of the best step


class EarlyStopping:
    """Stop a fit when the loss of held-out data no longer falls, and keep the best step.

    A callback for ``SoftmaxRegression().set_callbacks(EarlyStopping(X_val, y_val))``. After every step of the solver,
    the mean cross-entropy of the held-out data is computed. The fit ends with the coefficients of the step that had
    the lowest, whether it was stopped or came to its own end; unless that was its last step, `status_` is STOPPED.
    `objective_` and `gradient_norm_` are those of the step kept, `n_iter_` and `n_passes_` of the whole fit.
    ``history_.validation_losses`` has the losses. Without this callback, a fit goes on to its optimum.

    Parameters
    ----------
    X_val : array-like of shape (n_samples, n_features)
        As `SoftmaxRegression.predict` takes it.
    y_val : array-like of shape (n_samples,) or (n_samples, n_classes)
        Labels, of which the fit must know each; or soft targets.
    sample_weight_val : array-like of shape (n_samples,), default=None
        Non-negative weights of the samples in the loss; None for ones.
    patience : int, default=5
        The fit stops after this many steps in a row without an improvement. A step of this solver does what dozens of
        gradient steps do: a fit has some tens of them.
    min_improvement : float, default=0.0
        By how much the loss must fall to count as improved.

    Notes
    -----
    Each step costs a prediction of the held-out data. One object may serve several fits, at the same time too. For
    `SoftmaxRegressionCV` it judges the fit to all rows.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import train_test_split
    >>> from gpusoftmax import EarlyStopping, SoftmaxRegression
    >>> X, X_val, y, y_val = train_test_split(*load_iris(return_X_y=True), random_state=1, train_size=40)
    >>> clf = SoftmaxRegression(C=1e4).set_callbacks(EarlyStopping(X_val, y_val)).fit(X, y)
    >>> clf.status_.name
    'STOPPED'
    """

    @validate_params(
        {
            "patience": [Interval(Integral, 1, None, closed="left")],
            "min_improvement": [Interval(Real, 0, None, closed="left")],
        },
        prefer_skip_nested_validation=True,
    )
    def __init__(self, X_val, y_val, *, sample_weight_val=None, patience=5, min_improvement=0.0):
        weights = None if sample_weight_val is None else np.asarray(to_host(sample_weight_val), np.float64)
        check_consistent_length(X_val, y_val, weights)
        if _num_samples(X_val) == 0:
            raise ValueError("X_val and y_val have no rows: give at least one.")
        if weights is not None:
            if weights.ndim != 1 or not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
                raise ValueError(
                    "sample_weight_val must hold finite, non-negative weights with a positive sum, in one dimension."
                )
            weights = without_scale(weights)
        self.X_val = X_val
        self.y_val = y_val
        self.sample_weight_val = weights
        self.patience = patience
        self.min_improvement = min_improvement
        self._runs: dict[BaseEstimator, _Run] = {}

    def __getstate__(self):
        return vars(self) | {"_runs": {}}  # fits that go on here do not go on there

    def setup(self, estimator, context):
        """Begin to watch a fit."""
        self._runs[estimator] = _Run(context)

    def teardown(self, estimator, context):
        """Forget a fit."""
        self._runs.pop(estimator, None)

    def on_fit_task_begin(self, estimator, context):
        """Do nothing: what is judged are the ends of steps."""

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        """Judge a step and say whether to stop; at the end of the fit, give it the best step."""
        run = self._runs[estimator]
        if context is run.fit:
            run.restore(estimator)
        elif fitted_estimator is not None:  # None where a step was begun and not taken
            run.add(fitted_estimator, self._loss(fitted_estimator, run), self.min_improvement)
        return run.n_in_vain >= self.patience

    def _loss(self, model, run) -> float:
        """Return the mean cross-entropy of the held-out data, without all of its probabilities at once."""
        classes = to_host(model.classes_)
        if run.targets is None:
            run.targets = _encode(self.y_val, classes)
        targets, weights = run.targets, self.sample_weight_val
        step, loss = max(1, PIECE_NUMBERS // len(classes)), 0.0
        for start in range(0, len(targets), step):
            rows = slice(start, start + step)
            logarithms = np.asarray(to_host(model.predict_log_proba(_safe_indexing(self.X_val, rows))))  # of frames too
            if targets.ndim == 1:
                losses = -logarithms[np.arange(len(logarithms)), targets[rows]].astype(np.float64)
            else:
                losses = -(targets[rows] * logarithms).sum(axis=1, dtype=np.float64)
            loss += float(losses.sum() if weights is None else weights[rows] @ losses)
        return loss / (len(targets) if weights is None else weights.sum())


@dataclass
class _Run:
    """One fit that is watched.

    fit : the context of the whole fit
    best, best_loss : the step with the lowest loss
    reference : the loss that an improvement must undercut
    n_in_vain : steps since the last improvement
    passes, losses : of each step, what had been read by then and what came of it
    """

    fit: Any
    targets: np.ndarray | None = None
    best: BaseEstimator | None = None
    best_loss: float = np.inf
    reference: float = np.inf
    n_in_vain: int = 0
    passes: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def add(self, model: BaseEstimator, loss: float, min_improvement: float) -> None:
        self.passes.append(model.n_passes_)
        self.losses.append(loss)
        if loss < self.best_loss:
            self.best, self.best_loss = model, loss
        is_improved = loss < self.reference - min_improvement
        self.reference = loss if is_improved else self.reference
        self.n_in_vain = 0 if is_improved else self.n_in_vain + 1

    def restore(self, estimator: BaseEstimator) -> None:
        """Give the estimator, which is fitted, its best step and the history of losses."""
        history = estimator.history_
        if history is None:  # nothing was fitted to all rows
            return
        losses = np.full(len(history), np.nan)
        losses[np.searchsorted(history.n_passes, self.passes)] = self.losses
        estimator.history_ = replace(history, validation_losses=losses)
        if self.best is None or self.best_loss == self.losses[-1]:
            return
        for name in KEPT:
            setattr(estimator, name, getattr(self.best, name))
        estimator.status_ = Status.STOPPED
        step = 1 + int(np.argmin(self.losses))
        record = {"n_iter": step, "validation_loss": self.best_loss}
        logger.info("kept step %d of %d: validation loss %.6g", step, len(self.losses), self.best_loss, extra=record)


def _encode(y, classes: np.ndarray) -> np.ndarray:
    """Return soft targets as they are, or the index of each label among the classes."""
    y = np.asarray(to_host(y))
    if y.ndim == 2 and y.shape[1] > 1:
        if y.shape[1] != len(classes):
            raise ValueError(f"y_val has soft targets of {y.shape[1]} classes, the fit has {len(classes)}.")
        return check_soft_targets(y)
    labels, inverse = np.unique(y.reshape(len(y)), return_inverse=True)
    index = {label: i for i, label in enumerate(classes.tolist())}
    unknown = [label for label in labels.tolist() if label not in index]
    if unknown:
        raise ValueError(
            f"y_val holds labels that the fit does not know: {unknown[:5]}. Its classes are "
            f"{classes[:10].tolist()}{', …' * (len(classes) > 10)}: leave such samples out of X_val and y_val."
        )
    return np.array([index[label] for label in labels.tolist()])[inverse]
