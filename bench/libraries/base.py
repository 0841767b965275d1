"""What the suite asks of libraries, `PassLibrary`, `FitLibrary` and `SweepLibrary`, and what they answer."""

import importlib
import os
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bench.cases import Data
from bench.grids import Grid
from gpusoftmax.backends.choice import get_backend

Params = tuple[np.ndarray, np.ndarray]  # W (n_features, n_classes), b (n_classes,)
Answer = tuple[float, np.ndarray, np.ndarray]  # mean loss, its gradient in W, in b
Coefficients = tuple[np.ndarray, np.ndarray]  # as scikit-learn's coef_ and intercept_


class UnavailableError(Exception):
    """The library cannot do this here; the message says what it needs."""


@dataclass(frozen=True)
class Pass:
    """One evaluation of loss and gradient, ready to be timed.

    run : what is timed; done when it returns, also on a device
    answer : turns its result into an `Answer`, to be checked; None for a floor, which has none
    session : entered around a library's turn
    """

    run: Callable[[], Any]
    answer: Callable[[Any], Answer] | None
    session: Callable[[], AbstractContextManager] = nullcontext


class Record(Protocol):
    """Hears of a fit while it goes on."""

    def passes(self, n_passes: float) -> None:
        """Count passes over X; forward alone is half a pass."""

    def point(self, params: Callable[[], Params]) -> None:
        """Keep a copy of what was evaluated just now."""


class PassLibrary(Protocol):
    """A way to evaluate loss and gradient; `device` is "cpu" or "cuda", `settings` says in words what was chosen."""

    name: str
    device: str
    settings: str

    def lay_out(self, W: np.ndarray, b: np.ndarray) -> Any:
        """Return W and b as a training loop with this library keeps them."""

    def prepare_pass(self, data: Data, params: Any) -> Pass:
        """Do everything else that a training loop does once; `params` come from `lay_out`."""


class FitLibrary(Protocol):
    """A way to fit; attributes as in `PassLibrary`."""

    name: str
    device: str
    settings: str

    def fit(self, data: Data, record: Record) -> Params:
        """Minimise mean loss + ‖W‖² / (2 C n_rows), tell `record` of every evaluation, and return the optimum."""


class SweepLibrary(Protocol):
    """A way to fit all problems of a sweep; `name` and `settings` as in `PassLibrary`.

    follows : the library whose problems done in half of the limit this one gets, since it cannot be stopped; or none
    """

    name: str
    settings: str
    follows: str

    def sweep(self, grid: Grid) -> Generator[list[Coefficients]]:
        """Fit problem by problem in the order of the grid, and yield those done together as soon as they are."""


def need(module: str, package: str = "") -> Any:
    """Import an optional package."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UnavailableError(f"needs {package or module}: {error}") from error


def need_cuda(torch: Any) -> None:
    """Ask for a CUDA GPU that PyTorch can use."""
    if not torch.cuda.is_available():
        raise UnavailableError("needs a CUDA GPU and a PyTorch built for it")


def n_threads() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def backend_on(device):
    """Return the backend of a device, or say that this machine has none."""
    try:
        return get_backend(device)
    except (ValueError, RuntimeError) as error:
        raise UnavailableError(f"needs a gpusoftmax that runs on {device}: {error}") from error
