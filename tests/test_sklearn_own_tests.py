"""scikit-learn's own tests of LogisticRegression, run against SoftmaxRegression: exactly the listed ones."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import sklearn
from sklearn_dropin import read_listed

LISTED_FOR = "1.9"
HERE = Path(__file__).parent
LISTED = HERE / "sklearn_allowed.txt"
PACKAGE = Path(sklearn.__file__).parent

pytestmark = pytest.mark.skipif(
    not sklearn.__version__.startswith(f"{LISTED_FOR}."),
    reason=f"tests/{LISTED.name} names tests of scikit-learn {LISTED_FOR}, this is {sklearn.__version__}",
)


def run_listed(tmp_path, *options):
    """Return each test's outcome and the end of pytest's output."""
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    # No file configures the run, ours least of all; `sklearn/conftest.py` has the tests' fixtures.
    command += ["-c", os.devnull, "--rootdir", PACKAGE, "--confcutdir", PACKAGE]
    command += ["-p", "sklearn_dropin", "--listed", LISTED, "--junit-xml", report, *options]
    command += [PACKAGE / "linear_model" / "tests" / "test_logistic.py"]
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False)
    output = f"{done.stdout[-20_000:]}\n{done.stderr[-2_000:]}"
    assert report.exists(), output
    return {case.get("name"): outcome(case) for case in ET.parse(report).iter("testcase")}, output


def environment():
    """Return ours, less what would change which of scikit-learn's tests run and how."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "SKLEARN_"))}
    path = os.pathsep.join(filter(None, [str(HERE), kept.get("PYTHONPATH")]))
    # Without SCIPY_ARRAY_API the tests under array API dispatch skip themselves, those with NumPy arrays too.
    return kept | {"PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "SCIPY_ARRAY_API": "1"}


def outcome(case):
    """Return "passed", or "failure", "error" or "skipped" (an expected failure too)."""
    return next((child.tag for child in case if child.tag in {"failure", "error", "skipped"}), "passed")


def test_listed_tests_pass(tmp_path):
    listed = read_listed(LISTED)
    outcomes, output = run_listed(tmp_path)
    assert len(listed) >= 44
    assert outcomes == dict.fromkeys(listed, "passed"), output


def test_listed_tests_fail_under_their_sabotage(tmp_path):
    outcomes, output = run_listed(tmp_path, "--sabotaged")
    assert outcomes == dict.fromkeys(read_listed(LISTED), "failure"), output
