"""`gpusoftmax bench`: a quick look at ours beside scikit-learn on generated data. `python -m bench` in a clone measures."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from gpusoftmax.cli.terminal import Terminal
from gpusoftmax.estimator import SoftmaxRegression
from gpusoftmax.kernels import reference

N_REPEATS = 3
SEED = 0


@dataclass(frozen=True)
class Case:
    """Rows whose labels a random softmax regression draws: nothing that any library fits perfectly."""

    n_rows: int
    n_features: int
    n_classes: int
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.n_rows:,} x {self.n_features}, {self.n_classes} classes, {self.dtype}"

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Return X (n_rows, n_features) and labels."""
        rng = np.random.default_rng(SEED)
        X = rng.standard_normal((self.n_rows, self.n_features)).astype(self.dtype)
        logits = X @ rng.standard_normal((self.n_features, self.n_classes)) * (2 / self.n_features**0.5)
        return X, (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)


CASES = (Case(2000, 64, 10, "float64"), Case(50_000, 32, 5, "float32"), Case(10_000, 256, 20, "float32"))


def bench(terminal: Terminal, device: str) -> None:
    """Time both at C = 1 and equal tol, and judge both solutions by one objective in float64."""
    rows: list[dict[str, Any]] = []
    for case in CASES:
        X, y = case.data()
        for name, make in LIBRARIES.items():
            seconds, model = shortest(lambda make=make, X=X, y=y: make(device).fit(X, y))
            rows.append(
                {"data": case.name, "library": name, "seconds": seconds, "objective": objective(model, X, y)}
            )
    for data in dict.fromkeys(row["data"] for row in rows):
        of_data = [row for row in rows if row["data"] == data]
        terminal.say_table(
            {
                "library": [row["library"] for row in of_data],
                "seconds": [f"{row['seconds']:.3f}" for row in of_data],
                "objective": [f"{row['objective']:.8f}" for row in of_data],
            },
            title=data,
        )
        terminal.say()
    terminal.say(
        f"C = 1, tol = 1e-4, the shortest of {N_REPEATS} fits after a first one; a lower objective is a better optimum. "
        "This is a quick look on generated data: `python -m bench` in a clone measures with care, on real data too."
    )
    terminal.result = {"device": device, "cases": rows}


LIBRARIES: dict[str, Callable] = {
    "gpusoftmax": lambda device: SoftmaxRegression(device=device),
    "scikit-learn": lambda device: LogisticRegression(max_iter=1000),
}


def shortest(fit: Callable) -> tuple[float, Any]:
    """Return the shortest time of several runs after a first one, and the last result."""
    seconds = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the objective tells
        for _ in range(1 + N_REPEATS):
            start = time.perf_counter()
            model = fit()
            seconds.append(time.perf_counter() - start)
    return min(seconds[1:]), model


def objective(model: Any, X: np.ndarray, y: np.ndarray) -> float:
    """Return the penalised mean loss of a model's coefficients, (n_classes, n_features), at C = 1."""
    params = np.column_stack([model.coef_, model.intercept_]).astype(np.float64).T[:, np.newaxis]
    loss = reference.loss_and_gradient(X.astype(np.float64), y, np.ones((len(X), 1)), params, 0.0)[0]
    return float((loss[0] + (params[:-1] ** 2).sum() / 2) / len(X))
