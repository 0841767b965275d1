"""What became of every problem of a sweep, and which setting did best."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from sklearn.base import clone

from gpusoftmax.encoding import Code
from gpusoftmax.estimator import SoftmaxRegression
from gpusoftmax.frames import to_table
from gpusoftmax.problems import Problems
from gpusoftmax.solvers.base import Solution, Status

LOWER_IS_BETTER = {"held_out_loss": True, "held_out_accuracy": False}


class Setting(NamedTuple):
    """What a sweep varies, but for the fold."""

    C: float
    class_weight: Any
    label_smoothing: float


@dataclass(frozen=True)
class SweepResult:
    """What became of every problem of a sweep; arrays have one entry per problem.

    Parameters
    ----------
    problems : Problems
    class_weights : list
        Those that ``problems.class_weight`` counts.
    n_folds : int
    status : array of `Status`
        How each fit ended; STOPPED for those that an interrupt kept from it.
    n_iter : int array
        Steps taken.
    n_passes : float array
        Passes over the rows while the problem was running.
    objective, gradient_norm : float arrays
    train_loss, train_accuracy, held_out_loss, held_out_accuracy : float arrays
        Mean cross-entropy and accuracy on the rows fitted and on those held out, each row with its sample weight:
        without class weights, label smoothing or penalty. NaN where there are no such rows.
    coef : array of shape (n_problems, n_classes, n_features), one row of two classes
    intercept : array of shape (n_problems, n_classes)
    """

    problems: Problems
    class_weights: list
    n_folds: int
    status: np.ndarray
    n_iter: np.ndarray
    n_passes: np.ndarray
    objective: np.ndarray
    gradient_norm: np.ndarray
    train_loss: np.ndarray
    train_accuracy: np.ndarray
    held_out_loss: np.ndarray
    held_out_accuracy: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray
    _is_absent: np.ndarray  # which classes a fold has no rows of to fit, (n_folds, n_classes)
    _solution: Solution
    _center: np.ndarray | None
    _code: Code
    _template: SoftmaxRegression

    def __len__(self) -> int:
        return len(self.problems)

    @property
    def settings(self) -> list[Setting]:
        """Every combination of strength, class weight and label smoothing."""
        return [self.setting_of(p) for p in range(0, len(self), self.n_folds)]

    def setting_of(self, problem: int) -> Setting:
        """Return what a problem was fitted with."""
        problems = self.problems
        return Setting(
            float(problems.C[problem]),
            self.class_weights[problems.class_weight[problem]],
            float(problems.label_smoothing[problem]),
        )

    def by_fold(self, name: str) -> np.ndarray:
        """Return one of the arrays as (n_settings, n_folds)."""
        return getattr(self, name).reshape(-1, self.n_folds)

    def best_setting(
        self,
        by: Literal["held_out_loss", "held_out_accuracy"] = "held_out_loss",
        *,
        one_standard_error: bool = False,
    ) -> int:
        """Return the place in `settings` of the one whose mean over the folds is best, the first of equals.

        Parameters
        ----------
        by : {"held_out_loss", "held_out_accuracy"}
        one_standard_error : bool
            Take the strongest penalty whose mean is within one standard error of the best's, of the same class weight
            and smoothing (Breiman, Friedman, Olshen & Stone 1984).

        Returns
        -------
        setting : int

        Raises
        ------
        ValueError
            Nothing was held out, or no setting was finished on all folds.
        """
        if by not in LOWER_IS_BETTER:
            raise ValueError(f"by must be one of {sorted(LOWER_IS_BETTER)}, got {by!r}.")
        values = self.by_fold(by) if LOWER_IS_BETTER[by] else -self.by_fold(by)
        values = np.where(self.by_fold("status") == Status.STOPPED, np.nan, values)
        means = values.mean(axis=1)
        if np.isnan(means).all():
            raise ValueError("No setting has rows held out in every fold: give cv, and let the sweep finish.")
        best = int(np.nanargmin(means))
        if not one_standard_error:
            return best
        return strongest_within_error(values, best, self.problems.C[:: self.n_folds], self._alike(best))

    def best(self, by: Literal["held_out_loss", "held_out_accuracy"] = "held_out_loss", **options) -> Setting:
        """Return the best setting itself; see `best_setting`."""
        return self.settings[self.best_setting(by, **options)]

    def _alike(self, setting: int) -> np.ndarray:
        """Say which settings differ from one in their strength only."""
        problems, step = self.problems, self.n_folds
        class_weight, smoothing = problems.class_weight[::step], problems.label_smoothing[::step]
        return (class_weight == class_weight[setting]) & (smoothing == smoothing[setting])

    def to_estimator(self, problem: int) -> SoftmaxRegression:
        """Return a fitted `SoftmaxRegression` of one problem.

        Parameters
        ----------
        problem : int

        Returns
        -------
        estimator : SoftmaxRegression

        Raises
        ------
        ValueError
            An interrupt kept the problem from being fitted at all.
        """
        if self.status[problem] == Status.STOPPED and np.isnan(self.objective[problem]):
            raise ValueError(f"Problem {problem} was not reached before the interrupt: there is no model of it.")
        setting = self.setting_of(problem)
        estimator = clone(self._template).set_params(**setting._asdict())
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(self._template, name):
                setattr(estimator, name, getattr(self._template, name))
        estimator._unpack(self._solution, problem, self._center, self._code)
        return estimator

    def to_frame(self):
        """Return a pandas DataFrame, one row a problem."""
        problems = self.problems
        return to_table(
            {
                "C": problems.C,
                "fold": problems.fold,
                "class_weight": [str(self.class_weights[i]) for i in problems.class_weight],
                "label_smoothing": problems.label_smoothing,
                "status": [status.name for status in self.status],
                "n_iter": self.n_iter,
                "n_passes": self.n_passes,
                "objective": self.objective,
                "gradient_norm": self.gradient_norm,
                "train_loss": self.train_loss,
                "train_accuracy": self.train_accuracy,
                "held_out_loss": self.held_out_loss,
                "held_out_accuracy": self.held_out_accuracy,
            }
        )


def strongest_within_error(losses: np.ndarray, best: int, Cs: np.ndarray, is_allowed: np.ndarray) -> int:
    """Return the setting of smallest C whose mean loss is within one standard error of the best's.

    losses : (n_settings, n_folds); Cs, is_allowed : (n_settings,)
    """
    n_folds = losses.shape[1]
    error = losses[best].std(ddof=1) / np.sqrt(n_folds) if n_folds > 1 else 0.0
    means = losses.mean(axis=1)
    near = np.flatnonzero(is_allowed & (means <= means[best] + error))
    return int(near[np.argmin(Cs[near])])
