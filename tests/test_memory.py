"""The promise of bounded memory: peaks of whole fits in fresh processes, and the budget of a pass to the byte."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import gpusoftmax as gs

MEGABYTE = 2**20
FIT = """
import re, sys, warnings
import numpy as np
from gpusoftmax import SoftmaxRegression

def status(key):
    with open("/proc/self/status") as file:
        return int(re.search(key + r":\\s+(\\d+) kB", file.read()).group(1)) * 1024

n_rows, n_features, n_classes, max_iter = map(int, sys.argv[1:])
warnings.simplefilter("ignore")
rng = np.random.default_rng(0)
X, y = np.empty((n_rows, n_features), np.float32), rng.integers(0, n_classes, n_rows)
for start in range(0, n_rows, 4096):
    X[start:start + 4096] = rng.standard_normal(X[start:start + 4096].shape, np.float32)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # forget the peak so far
before = status("VmRSS")
model = SoftmaxRegression(max_iter=max_iter).fit(X, y)
print(status("VmHWM") - before, model.n_iter_[0])
"""


def peak_of_fit(n_rows, n_features, n_classes, max_iter):
    """Return the bytes that a fit needs beyond X and y at its peak, and its number of steps."""
    arguments = map(str, (n_rows, n_features, n_classes, max_iter))
    run = subprocess.run([sys.executable, "-c", FIT, *arguments], capture_output=True, text=True, check=True)
    peak, n_iter = run.stdout.split()
    return int(peak), int(n_iter)


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads peaks from /proc")


@needs_proc
def test_fit_of_a_million_rows_needs_32_megabytes():
    peak, _ = peak_of_fit(1_000_000, 32, 10, 1000)
    assert peak <= 32 * MEGABYTE


@needs_proc
def test_fit_of_a_thousand_classes_needs_32_megabytes_beyond_the_solvers_vectors():
    peak, n_iter = peak_of_fit(6_000, 768, 1000, 5)
    # A step, a gradient difference and the metric times it a step, and at most twenty: point, trial, gradients,
    # direction, result, their temporaries, and both lanes of the metric's sums.
    vectors = 3 * n_iter + 20
    assert peak <= 32 * MEGABYTE + vectors * 769 * 1000 * 4


@pytest.mark.parametrize("budget", [50_000, 500_000, 5_000_000])
@pytest.mark.parametrize("is_direct", [True, False])
@pytest.mark.parametrize("is_soft", [True, False])
def test_pass_keeps_its_budget(budget, is_direct, is_soft):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((100_000, 20)).astype(np.float64 if is_direct else np.float16)
    targets = rng.integers(0, 7, 100_000)
    if is_soft:
        targets = np.eye(7)[targets]
    W, b = rng.standard_normal((20, 7)), np.zeros(7)
    gs.loss_and_gradient(X[:100], targets[:100], W, b)  # imports and caches
    tracemalloc.start()
    gs.loss_and_gradient(X, targets, W, b, memory_budget=budget)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    narrow_targets = 0 if is_soft else 100_000
    overhead = 100_000 + 20 * 65536 * is_soft  # threads and small objects; the check of soft targets, block by block
    assert peak <= budget + narrow_targets + overhead


@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_fit_to_soft_targets_makes_no_array_of_their_size(class_weight):
    rng = np.random.default_rng(0)
    X, targets = rng.standard_normal((20_000, 3)), rng.dirichlet(np.ones(200), 20_000).astype(np.float32)
    clf = gs.SoftmaxRegression(class_weight=class_weight, memory_budget=2_000_000)
    clf.fit(X[:1000], targets[:1000])  # imports and caches
    tracemalloc.start()
    clf.fit(X, targets)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    solver = 44 * 8 * 4 * 200
    assert peak <= 2_000_000 + solver + 1_000_000  # small objects and the checks, block by block
    assert peak < targets.nbytes / 2
