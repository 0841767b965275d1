"""What several test files share: the choice of a CUDA device, and the float64 oracle of a fit."""

import signal

import cuda_device
import hypothesis
import numpy as np
import pytest

from gpusoftmax.kernels import reference

hypothesis.settings.register_profile("untimed", deadline=None)  # other programs may hold the machine up
hypothesis.settings.load_profile("untimed")


def pytest_addoption(parser):
    parser.addoption("--device", choices=["emulated", "cuda"], default="emulated", help="the CUDA device of the tests")


def pytest_configure(config):
    cuda_device.is_real = config.getoption("--device") == "cuda"


@pytest.fixture
def heeds_ctrl_c():
    """Let SIGINT interrupt Python: a shell that runs us in the background, or xdist, has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def largest_gradient():
    """Return a function that recomputes a fit's largest gradient entry in float64, from its public attributes."""

    def measure(clf, X, y, sample_weight=None):
        X, y = np.asarray(X, np.float64), np.asarray(y)
        n_classes = len(clf.classes_)
        targets = y if y.ndim == 2 else np.searchsorted(clf.classes_, y)
        weights = np.ones(len(X)) if sample_weight is None else np.asarray(sample_weight, np.float64)
        rows = np.column_stack([clf.coef_, clf.intercept_]).astype(np.float64)
        strength = 1 / (clf.C * weights.sum())
        if n_classes == 2:  # two columns that differ by scikit-learn's one
            rows, strength = np.concatenate([-rows, rows]) / 2, 2 * strength
        params = rows.T[:, np.newaxis]
        gradient = reference.loss_and_gradient(X, targets, weights[:, np.newaxis], params, clf.label_smoothing)[1]
        gradient /= weights.sum()
        gradient[:-1] += strength * params[:-1]
        return np.abs(gradient if clf.fit_intercept else gradient[:-1]).max()

    return measure
