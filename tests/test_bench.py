"""The benchmark suite: every documented command lives, failures are rows, and what is timed was checked first."""

import contextlib
import gzip
import itertools
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bench import cases, fit, fresh, grids, judge, libraries, one_pass, report, results, scaling, sweeps
from bench.__main__ import main
from bench.cases import Case
from bench.libraries.base import Pass
from bench.libraries.naive import Naive
from bench.options import Options
from bench.recording import Counter, Point, Recorder, TimeIsUpError
from gpusoftmax import SoftmaxRegression
from gpusoftmax.kernels import reference

README = Path(cases.__file__).with_name("README.md")
COMMANDS = re.findall(r"python -m bench (\w+[^#`\n]*)", README.read_text())
TINY = Case("random", 500, 6, 4)
needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system binds no CPUs")


# ---------------------------------------------------------------- commands


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Return the tables of a smoke run, by name."""
    folder = tmp_path_factory.mktemp("smoke")
    main(["smoke", "--out", str(folder)])
    return {path.stem: results.read(path) for path in folder.glob("*.csv")} | {"folder": folder}


def test_smoke_fills_every_table_and_fails_only_where_something_is_missing(smoke):
    tables = {"pass", "fit", "curves", "sweep", "memory", "scaling", "exponents", "optimum"}
    assert set(smoke) == {*tables, "folder"}
    errors = {row["error"].split()[0] for name in tables for row in smoke[name] if "error" in row}
    assert errors <= {"needs", "FileNotFoundError:"}
    for name in ("pass", "fit", "sweep", "memory", "scaling"):
        assert "gpusoftmax" in {row["library"] for row in smoke[name] if "error" not in row}


def test_a_missing_data_set_is_a_row(smoke):
    for name in ("fit", "sweep", "memory", "optimum"):
        assert any("No such file: no_such_set.npz" in row.get("error", "") for row in smoke[name])


def test_every_library_has_a_row(smoke):
    quick = {library.name for library in libraries.PASS if library is not libraries.COMPILED}
    assert {row["library"] for row in smoke["pass"]} == quick
    assert {row.get("library") for row in smoke["fit"]} == {*(library.name for library in libraries.FIT), None}
    assert {row.get("library") for row in smoke["sweep"]} == {*(library.name for library in libraries.SWEEP), None}


@pytest.mark.parametrize("command", [command for command in COMMANDS if not command.startswith("smoke")])
def test_documented_commands_run(command, smoke, tmp_path):
    document = tmp_path / "README.md"
    document.write_text(README.read_text())
    words = command.split()
    folder = smoke["folder"] if words[0] == "report" else tmp_path
    extra = ["--smoke", "--out", str(folder), "--libraries", "gpusoftmax", "--documents", str(document)]
    if words[0] == "report":
        pytest.importorskip("matplotlib")
    main([*words, *extra])
    assert (folder / "machine.json").exists()


def test_stages_run():
    pytest.importorskip("pytest_benchmark")
    stages = README.with_name("test_stages.py")
    assert f"pytest bench/{stages.name}" in README.read_text()
    command = [sys.executable, "-m", "pytest", str(stages), "-q", "-k", "16x3", "--benchmark-disable"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=README.parents[1])
    assert done.returncode == 0, done.stdout


# ---------------------------------------------------------------- libraries


def test_adapters_are_short():
    for path in README.parent.glob("libraries/*.py"):
        if path.stem not in ("__init__", "base"):
            assert len(path.read_text().splitlines()) < 60, path.name


def test_the_suite_runs_without_optional_packages(tmp_path):
    code = f"""
import sys
class Absent:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "jax", "matplotlib", "cupy", "cuml", "pytest_benchmark"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from bench.__main__ import main
main(["pass", "--smoke", "--out", {str(tmp_path)!r}])
"""
    fresh.call(exec, code, {})
    rows = results.read(tmp_path / "pass.csv")
    assert {row["library"] for row in rows if "seconds_min" in row} >= {"gpusoftmax", "scikit-learn", "two GEMMs"}
    assert "needs PyTorch: torch" in {row.get("error") for row in rows}


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (row,) = compare(TINY, libraries.PYTORCH)
    assert row["error"].startswith("needs PyTorch")


class Wrong(Naive):
    """A library whose gradient is off by a hundredth."""

    def prepare_pass(self, data, params):
        right = super().prepare_pass(data, params)
        return Pass(right.run, lambda result: (result[0], 1.01 * result[1], result[2]))


class Falling(Naive):
    """A library that fails while it is timed."""

    def prepare_pass(self, data, params):
        prepared, n_calls = super().prepare_pass(data, params), iter([None])
        return Pass(lambda: next(n_calls) or prepared.run(), prepared.answer)


def compare(case, *candidates):
    data = cases.make(case, Path())
    return one_pass.compare(case, data, candidates, Options(is_smoke=True), lambda text: None)


def test_a_wrong_answer_is_caught():
    wrong, right = compare(TINY, Naive(), Wrong(name="wrong"))
    assert wrong["library"] == "wrong"
    assert wrong["error"].startswith("WrongAnswerError: loss or gradient is wrong by a relative")
    assert right["seconds_min"] > 0


def test_a_failure_in_the_middle_is_a_row():
    failed, right = compare(TINY, Falling(name="falling"), Naive())
    assert failed["error"].startswith("StopIteration")
    assert right["library"] == "naive NumPy"


@pytest.mark.parametrize("library", libraries.FIT, ids=lambda library: library.name)
def test_every_fit_is_recorded_to_its_end(library):
    data = cases.make(Case("teacher", 300, 5, 3, C=0.1), Path())
    recorder = Recorder(60)
    try:
        W, b = library.fit(data, recorder)
    except libraries.base.UnavailableError as error:
        pytest.skip(str(error))
    end = fit.objective(data, W, b)
    assert end == pytest.approx(min(fit.objective(data, p.W, p.b) for p in recorder.points), rel=1e-5)
    optimum = SoftmaxRegression(C=0.1, tol=1e-8).fit(data.X.astype(np.float64), data.targets).objective_
    assert optimum * (1 - 1e-9) <= end <= optimum * (1 + 1e-4)


def test_passes_are_those_that_gpusoftmax_says():
    data = cases.make(Case("teacher", 300, 5, 3), Path())
    recorder = Recorder(60)
    libraries.OURS.fit(data, recorder)
    assert recorder.n_passes == SoftmaxRegression().fit(data.X, data.targets).n_passes_


def test_a_fit_is_stopped_when_its_time_is_up():
    data = cases.make(Case("teacher", 300, 5, 3), Path())
    with pytest.raises(TimeIsUpError):
        libraries.OURS.fit(data, Recorder(0))


# ---------------------------------------------------------------- sweeps

FOLDS, WHOLE, SETS = grids.SMOKE[:3]


@pytest.mark.parametrize("case", [FOLDS, WHOLE, SETS], ids=lambda case: case.name)
@pytest.mark.parametrize("library", libraries.SWEEP, ids=lambda library: library.name)
def test_every_sweep_fits_the_problems_of_its_grid_in_order(library, case):
    runs = sweeps.Runs(library, grids.make(replace(case, n_strengths=min(case.n_strengths, 2)), Path()))
    runs.grid = replace(runs.grid, Cs=np.array([0.01, 0.1])[: len(runs.grid.Cs)])
    try:
        runs.run()
    except libraries.base.UnavailableError as error:
        pytest.skip(str(error))
    assert len(runs.ends) == len(runs.grid)
    for p, value in enumerate(runs.objectives()):
        X, y, C = runs.grid.problem(p)
        optimum = SoftmaxRegression(C=C, tol=1e-8).fit(X.astype(np.float64), y).objective_
        assert optimum * (1 - 1e-9) <= value <= optimum * (1 + 1e-4)


@pytest.mark.parametrize(("case", "n_done", "n_problems"), [(FOLDS, 5, 4), (WHOLE, 1, 1), (SETS, 3, 3)])
def test_the_head_of_a_grid_has_its_first_problems(case, n_done, n_problems):
    grid = grids.make(case, Path())
    assert grid.n_comparable(n_done) == n_problems
    head = grid.head(n_problems)
    assert len(head) == n_problems
    for p in range(n_problems):
        for part, of_all in zip(head.problem(p), grid.problem(p), strict=True):
            np.testing.assert_array_equal(part, of_all)
    if case is SETS:
        assert len(head.X) == len(head.y) == n_problems


@pytest.fixture
def sweep_rows(tmp_path, monkeypatch):
    """Return a function that gives the rows of a sweep on a clock of one second a look."""
    clock = SimpleNamespace(perf_counter=itertools.count().__next__, sleep=lambda seconds: None)

    def measure(limit_seconds, *candidates):
        monkeypatch.setattr(sweeps, "time", clock)
        monkeypatch.setattr(libraries, "SWEEP", candidates)
        monkeypatch.setattr(grids, "SMOKE", [FOLDS])
        with results.Results(tmp_path, "sweep") as log:
            sweeps.measure(Options(is_smoke=True, limit_seconds=limit_seconds), log)
        return results.read(tmp_path / "sweep.csv")

    return measure


def test_a_sweep_that_is_stopped_is_compared_on_what_it_did(sweep_rows):
    rows = sweep_rows(4.5, libraries.TOGETHER, libraries.LOOP, libraries.ScikitLearnCV())
    assert [row["n_problems"] for row in rows] == [6, 6, 6]
    assert [row["n_compared"] for row in rows] == [6, 4, 2]  # strengths of two folds, CV's those of half the time
    assert [row["seconds"] for row in rows] == [1, 4, 1]
    assert [row["times_ours"] for row in rows] == [1, 4, 1]
    assert [report.times(row) for row in rows] == ["1.0", "4.0 (first 4)", "1.0 (first 2)"]


def test_ours_is_set_against_the_faster_loop_that_did_as_many_problems():
    def rows(n_compared, **seconds):
        loops = {"two": libraries.LOOP, "one": libraries.LOOP_ON_ONE_THREAD, "ours": libraries.TO_TARGETS}
        return {loops[key].name: {"seconds": value, "n_compared": n_compared} for key, value in seconds.items()}

    assert report.ahead_of_loops(rows(6, two=8, one=4, ours=2)) == 2
    assert report.ahead_of_loops(rows(6, two=3, one=4, ours=2)) == 1.5
    assert report.ahead_of_loops(rows(6, two=8, ours=2) | rows(4, one=4)) == 4
    assert np.isnan(report.ahead_of_loops(rows(6, two=8, one=4)))
    assert np.isnan(report.ahead_of_loops(rows(6, ours=2)))


def test_ours_is_timed_on_the_same_problems_alone(monkeypatch):
    swept = []
    together = SimpleNamespace(sweep=lambda grid: swept.append(grid) or iter([[None] * len(grid)]))
    monkeypatch.setattr(sweeps, "closing", contextlib.nullcontext)
    ours = sweeps.Runs(together, grids.make(FOLDS, Path()))
    ours.run()
    assert sweeps.on_the_first(6, ours) is ours
    assert len(sweeps.on_the_first(4, ours).fits) == 4
    assert [len(grid) for grid in swept] == [6, 4]


def test_a_sweep_that_does_nothing_in_time_is_a_row(sweep_rows):
    (row,) = sweep_rows(0, libraries.LOOP)
    assert row["error"].startswith("TimeoutError: stopped after 1 s")


def test_excess_is_that_of_the_worst_problem():
    assert sweeps.worst_excess(np.array([1.0, 3.0]), np.array([2.0, 2.0, 1.0])) == 0.5


# ---------------------------------------------------------------- judging


@pytest.mark.parametrize("is_soft", [False, True])
def test_the_judge_agrees_with_the_specification(is_soft, monkeypatch):
    monkeypatch.setattr(judge, "BLOCK_ENTRIES", 700)  # several blocks, the last one short
    data = cases.make(Case("random", 500, 6, 4, dtype="float64", is_soft=is_soft), Path())
    W, b = one_pass.params(data)
    loss, grad_W, grad_b = judge.loss_and_gradient(data.X, data.targets, W, b)
    params = np.concatenate([W, b[np.newaxis]])[:, np.newaxis]
    sums = reference.loss_and_gradient(data.X, data.targets, np.ones((500, 1)), params)
    assert loss == pytest.approx(sums[0][0] / 500)
    np.testing.assert_allclose(np.vstack([grad_W, grad_b]), sums[1][:, 0] / 500)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_the_judges_largest_gradient_is_that_of_the_objective(n_classes):
    data = cases.make(Case("random", 100, 3, n_classes, dtype="float64"), Path())
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((1 if n_classes == 2 else n_classes, 4))

    def value(rows):
        return judge.objective(data.X, data.targets, rows[:, :-1], rows[:, -1], 0.1)

    steps = 1e-6 * np.eye(rows.size).reshape(-1, *rows.shape)
    slopes = [(value(rows + step) - value(rows - step)) / 2e-6 for step in steps]
    largest = judge.largest_gradient(data.X, data.targets, rows[:, :-1], rows[:, -1], 0.1)
    assert largest == pytest.approx(max(map(abs, slopes)), rel=1e-6)


def test_the_judge_gives_two_columns_the_penalty_of_their_difference():
    data = cases.make(Case("random", 100, 3, 2, dtype="float64"), Path())
    row, intercept = np.array([[1.0, -2.0, 0.5]]), np.array([0.3])
    values = [
        judge.objective(data.X, data.targets, coef, b, 0.1)
        for coef, b in ((row, intercept), (np.vstack([-row, row]) / 2, np.array([-0.15, 0.15])))
    ]
    assert values[0] == pytest.approx(values[1])


def test_the_first_point_below_a_target_is_found(monkeypatch):
    objectives = [5.0, 4.0, 3.0, 3.5, 2.0, 1.0, 1.5]  # a rejected trial step, and one at the end
    monkeypatch.setattr(fit, "objective", lambda data, W, b: W)
    values = fit.Values(None, [Point(i, i, value, None) for i, value in enumerate(objectives)])
    found = {target: values.first_below(target) for target in (5.0, 3.2, 2.0, 1.0, 0.5)}
    assert {target: point and point.W for target, point in found.items()} == {5: 5, 3.2: 3, 2: 2, 1: 1, 0.5: None}


def test_recording_stops_the_clock():
    recorder = Recorder(60)
    sleep = 0.05

    def slow():
        time.sleep(sleep)
        return np.zeros(1), np.zeros(1)

    recorder.point(slow)
    recorder.point(slow)
    assert recorder.points[1].seconds < sleep
    Counter().point(slow)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_fitted_exponent(exponent):
    sizes = np.array([10, 100, 1000])
    assert scaling.fitted_exponent(sizes, 3 * sizes**exponent) == pytest.approx(exponent)


# ---------------------------------------------------------------- cases


def test_cases_are_repeatable_and_as_described():
    case = Case("random", 5000, 8, 5, density=0.3, is_soft=True, seed=3)
    one, two = cases.make(case, Path()), cases.make(case, Path())
    np.testing.assert_array_equal(one.X, two.X)
    np.testing.assert_allclose(one.targets.sum(axis=1), 1, rtol=1e-5)
    assert (one.X != 0).mean() == pytest.approx(0.3, abs=0.01)
    assert case.name == "random-5000x8x5-float32-soft-sparse"


def test_real_sets_are_found_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(cases, "FASHION_MNIST", tmp_path)
    pixels, labels = np.arange(3 * 784, dtype=np.uint8).reshape(3, 28, 28), np.array([2, 0, 1], np.uint8)
    for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
        with gzip.open(tmp_path / f"train-{kind}-ubyte.gz", "wb") as file:
            file.write(header + array.tobytes())
    np.savez(tmp_path / "letters.npz", X=np.ones((2, 3)), y=np.array([7, 5]))
    images = cases.make(Case("fashion_mnist"), tmp_path / "elsewhere")
    np.testing.assert_allclose(images.X, pixels.reshape(3, -1) / 255, rtol=1e-6)
    np.testing.assert_array_equal(images.targets, labels)
    np.testing.assert_array_equal(cases.make(Case("letters"), tmp_path).targets, [1, 0])
    with pytest.raises(FileNotFoundError, match=r"--fetch downloads it"):
        cases.make(Case("spam"), tmp_path)


# ---------------------------------------------------------------- processes and pages


def test_a_fresh_process_answers_fails_dies_and_is_bounded():
    assert fresh.call(divmod, 7, 2) == (3, 1)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        fresh.call(divmod, 7, 0)
    with pytest.raises(RuntimeError, match="exit code 3"):
        fresh.call(os._exit, 3)
    with pytest.raises(RuntimeError, match="not done after 1 s"):
        fresh.call(time.sleep, 60, limit_seconds=1)


@needs_affinity
def test_a_fresh_process_has_the_cpus_it_is_given():
    before = os.sched_getaffinity(0)
    assert len(fresh.call(os.sched_getaffinity, 0, n_cpus=1)) == 1
    assert os.sched_getaffinity(0) == before


def test_a_block_is_replaced_between_its_markers_and_again():
    page = "a\n<!-- bench:fit -->\nold\n<!-- /bench:fit -->\nz <!-- bench:pass -->\n<!-- /bench:pass -->\n"
    once = report.replace_block(page, "fit", r"new \1 text")
    assert once == page.replace("old", "\nnew \\1 text\n")
    assert report.replace_block(once, "fit", r"new \1 text") == once


def test_report_changes_nothing_the_second_time(smoke, tmp_path):
    pytest.importorskip("matplotlib")
    document = tmp_path / "page.md"
    document.write_text(README.read_text())
    report.write(smoke["folder"], [document])
    once = document.read_text()
    figure = (smoke["folder"] / "fit-dark.svg").read_bytes()
    for block in report.BLOCKS:
        assert re.search(rf"<!-- bench:{block} -->\n\n(?s:.+)\n\n<!-- /bench:{block} -->", once), block
    report.write(smoke["folder"], [document])
    assert document.read_text() == once
    assert (smoke["folder"] / "fit-dark.svg").read_bytes() == figure


def test_results_keep_every_row_as_it_comes(tmp_path):
    with results.Results(tmp_path / "new", "pass") as kept:
        kept.add("pass", {"case": "a", "seconds": 0.1})
        kept.add("pass", {"case": "b", "error": "needs a, b"})
        rows = results.read(tmp_path / "new" / "pass.csv")
    assert rows == [{"case": "a", "seconds": 0.1}, {"case": "b", "error": "needs a, b"}]


def test_a_run_replaces_its_own_rows_of_an_earlier_one(tmp_path):
    def run(values):
        with results.Results(tmp_path, "pass") as log:
            for case, library, value in values:
                log.add("pass", {"case": case, "library": library, "value": value})
        return [tuple(row.values()) for row in results.read(tmp_path / "pass.csv")]

    first = [(case, library, 1.0) for case in ("b", "a", "c") for library in ("ours", "theirs")]
    assert run(first) == first
    new = [("a", "ours", 2.0), ("a", "ours", 3.0), ("z", "ours", 4.0)]
    b, b_theirs, _, a_theirs, c, c_theirs = first
    assert run(new) == [b, b_theirs, a_theirs, *new[:2], c, c_theirs, new[2]]
