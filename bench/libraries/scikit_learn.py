"""scikit-learn: `LinearModelLoss.loss_gradient` for a pass, `LogisticRegression` for a fit."""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn._loss import HalfMultinomialLoss
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model._linear_loss import LinearModelLoss
from threadpoolctl import threadpool_limits

from bench.libraries.base import Pass, UnavailableError, n_threads
from bench.recording import recorded_scikit_learn


@dataclass(frozen=True)
class ScikitLearn:
    """scikit-learn with one of its solvers, on every thread or, which small data may prefer, on `limit`."""

    name: str = "scikit-learn"
    solver: str = "lbfgs"
    device: str = "cpu"
    limit: int | None = None

    @property
    def settings(self) -> str:
        return f"solver={self.solver}, tol=1e-4, max_iter=20000" + f", {self.limit} thread" * (self.limit is not None)

    def lay_out(self, W, b):
        return np.asfortranarray(np.column_stack([W.T, b]))

    def prepare_pass(self, data, params):
        if data.is_soft:
            raise UnavailableError("needs labels: scikit-learn takes no soft targets")
        objective = LinearModelLoss(HalfMultinomialLoss(n_classes=data.n_classes), fit_intercept=True)
        X, y, threads = data.X, data.targets.astype(data.X.dtype), self.limit or n_threads()
        return Pass(
            lambda: objective.loss_gradient(params, X, y, n_threads=threads),
            lambda result: (result[0], result[1][:, :-1].T, result[1][:, -1]),
            lambda: threadpool_limits(self.limit),
        )

    def fit(self, data, record):
        if self.solver == "newton-cholesky" and data.X.shape[1] * data.n_classes > 1000:
            raise UnavailableError("needs a Hessian of at most 1,000 rows: it would take minutes a step")
        model = LogisticRegression(C=data.C, solver=self.solver, tol=1e-4, max_iter=20_000)
        with recorded_scikit_learn(record, data.n_classes), threadpool_limits(self.limit), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the judge says what was reached
            model.fit(data.X, data.targets)
        return model.coef_.T, model.intercept_
