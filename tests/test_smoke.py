import subprocess
import sys

import pytest

ONE_FIT_AND_ONE_PREDICT = """
import time
started = time.process_time()
import numpy as np
from gpusoftmax import SoftmaxRegression
X = np.random.default_rng(0).normal(size=(1000, 10)).astype(np.float32)
y = X[:, :3].argmax(axis=1)
clf = SoftmaxRegression().fit(X, y)
accuracy = (clf.predict(X) == y).mean()
print(clf.status_.name, accuracy, time.process_time() - started)
"""


@pytest.mark.smoke
def test_one_fit_and_one_predict_from_a_fresh_start():
    command = [sys.executable, "-W", "error", "-c", ONE_FIT_AND_ONE_PREDICT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    status, accuracy, seconds = done.stdout.split()
    assert status == "CONVERGED"
    assert float(accuracy) > 0.95
    assert float(seconds) < 2
