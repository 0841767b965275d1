"""`gpusoftmax bench`: a quick look beside scikit-learn on generated data; `python -m bench` in a clone measures."""

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from gpusoftmax.cli.terminal import Terminal
from gpusoftmax.estimator import SoftmaxRegression
from gpusoftmax.kernels import reference

N_REPEATS = 3
MOST_SECONDS = 2.0  # after which no fit is repeated
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


CASES = (Case(2000, 64, 10, "float64"), Case(50_000, 32, 5, "float32"))


def bench(terminal: Terminal, device: str) -> None:
    """Time both at C = 1 and equal tol, and judge both solutions by one objective in float64."""
    rows: list[dict[str, Any]] = []
    for case in CASES:
        X, y = case.data()
        for name, (estimator, threads) in libraries(device).items():
            with threads:
                seconds = shortest(estimator, X, y)
            rows.append(
                {"data": case.name, "library": name, "seconds": seconds, "objective": objective(estimator, X, y)}
            )
    for data in dict.fromkeys(row["data"] for row in rows):
        of_data = [row for row in rows if row["data"] == data]
        terminal.say_table(
            {
                "library": [row["library"] for row in of_data],
                "seconds": [f"{row['seconds']:.3f}" for row in of_data],
                "objective": [f"{row['objective']:.8f}" for row in of_data],
            },
            left=["library"],
            title=data,
        )
        terminal.say()
    terminal.say(
        f"C = 1, tol = 1e-4, the shortest of at most {N_REPEATS} fits after a first one; a lower objective is a better "
        "optimum. A quick look at generated data: python -m bench in a clone measures with care, and real data too."
    )
    terminal.answer({"device": device, "cases": rows})


def libraries(device: str) -> dict[str, tuple[Any, AbstractContextManager]]:
    """Return estimators, and how many threads of BLAS each has: scikit-learn is often quicker with one."""
    return {
        "gpusoftmax": (SoftmaxRegression(device=device), nullcontext()),
        "scikit-learn": (LogisticRegression(max_iter=1000), nullcontext()),
        "scikit-learn, 1 thread": (LogisticRegression(max_iter=1000), threadpool_limits(1)),
    }


def shortest(estimator: Any, X: np.ndarray, y: np.ndarray) -> float:
    """Return the shortest time of several fits after a first one, in seconds."""
    seconds: list[float] = []
    while len(seconds) <= N_REPEATS and sum(seconds) < MOST_SECONDS:
        start = time.perf_counter()
        estimator.fit(X, y)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:] or seconds)


def objective(model: Any, X: np.ndarray, y: np.ndarray) -> float:
    """Return the penalised mean loss of a model's coefficients, (n_classes, n_features), at C = 1."""
    params = np.column_stack([model.coef_, model.intercept_]).astype(np.float64).T[:, np.newaxis]
    loss = reference.loss_and_gradient(X.astype(np.float64), y, np.ones((len(X), 1)), params, 0.0)[0]
    return float((loss[0] + (params[:-1] ** 2).sum() / 2) / len(X))
