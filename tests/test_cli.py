"""The commands as a user runs them: what they write, where, and with which exit code."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from typer.testing import CliRunner

from gpusoftmax import SoftmaxRegression, SoftmaxRegressionCV, load_model, save_model
from gpusoftmax.cli import benching
from gpusoftmax.cli.app import app
from gpusoftmax.cli.benching import Case
from gpusoftmax.cli.terminal import Terminal

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")

X, Y = load_iris(return_X_y=True)
NAMES = ["sepal length", "sepal width", "petal length", "petal width"]
SPECIES = load_iris().target_names[Y]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # of commands that are processes
ENVIRONMENT.pop("PYTHONUNBUFFERED", None)  # users have buffers, which fill before they are written


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with irises as a CSV and as an array, from which commands run."""
    frame = pd.DataFrame(X, columns=NAMES).assign(id=[f"r{i}" for i in range(150)], species=SPECIES)
    frame.to_csv(tmp_path / "iris.csv", index=False)
    np.save(tmp_path / "iris.npy", np.column_stack([X, Y]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args, code=0):
    """Run a command and return its outcome; `stdout` and `stderr` are apart."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, result.stderr
    return result


def run_json(*args):
    lines = run(*args, "--json").stdout.splitlines()
    assert len(lines) == 1
    return json.loads(lines[0], parse_constant=pytest.fail)  # NaN and Infinity are no JSON


def plain_model(path="m.safetensors"):
    """Return a saved model that takes arrays without a warning that they have no names."""
    model = load_model(path)
    vars(model).pop("feature_names_in_", None)
    return model


@pytest.fixture
def model(folder):
    run("fit", "iris.csv", "-t", "species", "-o", "iris.safetensors", "-q")
    return folder / "iris.safetensors"


def test_fit_saves_the_model_that_the_library_fits(folder):
    said = run_json("fit", "iris.csv", "--target", "species", "--C", "0.5", "-o", "m.safetensors")
    names, model = load_model("m.safetensors").feature_names_in_, plain_model()
    expected = LogisticRegression(C=0.5, tol=1e-8, max_iter=5000).fit(X, SPECIES)
    assert_allclose(model.predict_proba(X), expected.predict_proba(X), atol=1e-3)
    assert names.tolist() == NAMES
    assert model.C == said["C"] == 0.5
    assert said["classes"] == ["setosa", "versicolor", "virginica"]
    assert said["left_out"] == {"id": "text"}
    assert said["converged"] is True
    assert said["objective"] == model.objective_
    assert said["train"]["n_rows"] == 150
    assert_allclose(said["train"]["log_loss"], log_loss(SPECIES, model.predict_proba(X)))


def test_rows_held_out_are_not_fitted(folder):
    said = run_json("fit", "iris.csv", "-t", "species", "--test-size", "0.2", "--seed", "3", "-o", "m.safetensors")
    rows, test = train_test_split(np.arange(150), test_size=30, random_state=3, stratify=SPECIES)
    expected = LogisticRegression(tol=1e-8, max_iter=5000).fit(X[rows], SPECIES[rows])
    model = plain_model()
    assert_allclose(model.predict_proba(X), expected.predict_proba(X), atol=1e-3)
    assert (said["n_fitted"], said["n_held_out"]) == (120, 30)
    assert said["held_out"]["accuracy"] == model.score(X[test], SPECIES[test])
    judged = run_json("evaluate", "m.safetensors", "iris.csv", "-t", "species", "--test-size", "0.2", "--seed", "3")
    assert {name: judged[name] for name in said["held_out"]} == said["held_out"]


def test_weights_count_as_repetition(folder):
    repeats = 1 + np.arange(150) % 3
    pd.DataFrame(X, columns=NAMES).assign(y=Y, times=repeats).to_csv("weighted.csv", index=False)
    pd.DataFrame(np.repeat(X, repeats, axis=0), columns=NAMES).assign(y=np.repeat(Y, repeats)).to_csv("r.csv")
    weighted = run_json("fit", "weighted.csv", "-t", "y", "--weights", "times", "--tol", "1e-7")
    repeated = run_json("fit", "r.csv", "-t", "y", "-f", ",".join(NAMES), "--tol", "1e-7")
    assert_allclose(weighted["objective"], repeated["objective"], rtol=1e-9)
    assert_allclose(weighted["train"]["log_loss"], repeated["train"]["log_loss"], rtol=1e-5)


def test_cross_validation_chooses_c(folder):
    said = run_json("fit", "iris.csv", "-t", "species", "--cv", "5", "--C", "0.001,1,1000", "--test-size", "0.2")
    swept = run_json("sweep", "iris.csv", "-t", "species", "--C", "0.001,1,1000", "--test-size", "0.2")
    assert said["C"] == swept["best_C"]
    assert len(swept["problems"]) == 15
    losses = pd.DataFrame(swept["problems"]).groupby("C").held_out_loss.mean()
    assert losses.idxmin() == said["C"]
    one_se = run_json("fit", "iris.csv", "-t", "species", "--cv", "5", "--one-se", "--test-size", "0.2")
    assert one_se["C"] < run_json("fit", "iris.csv", "-t", "species", "--cv", "5", "--test-size", "0.2")["C"]


def test_folds_are_of_the_rows_fitted_with_their_weights(folder):
    times = 1 + np.arange(150) % 3
    pd.DataFrame(X, columns=NAMES).assign(y=Y, times=times).to_csv("weighted.csv", index=False)
    args = ["--weights", "times", "--C", "1", "--test-size", "0.4", "--seed", "2", "--tol", "1e-7"]
    problems = run_json("sweep", "weighted.csv", "-t", "y", "--cv", "3", *args)["problems"]
    rows, _ = train_test_split(np.arange(150), test_size=60, random_state=2, stratify=Y)
    rows.sort()
    folds = StratifiedKFold(3, shuffle=True, random_state=2).split(rows, Y[rows])
    for problem, places in zip(problems, folds, strict=True):
        train, test = (rows[place] for place in places)
        model = LogisticRegression(tol=1e-8, max_iter=5000).fit(X[train], Y[train], sample_weight=times[train])
        expected = log_loss(Y[test], model.predict_proba(X[test]), sample_weight=times[test])
        assert_allclose(problem["held_out_loss"], expected, rtol=1e-4)


def test_sweep_shows_a_table_and_writes_every_problem(folder):
    result = run("sweep", "iris.csv", "-t", "species", "--C", "0.001:1000:4", "--cv", "3", "-o", "path.csv")
    assert result.stdout == ""
    assert len([line for line in result.stderr.splitlines() if " best" in line and "held-out" not in line]) >= 1
    frame = pd.read_csv("path.csv")
    assert_allclose(frame.C.unique(), [0.001, 0.1, 10, 1000])
    assert len(frame) == 12


def test_a_c_at_the_edge_is_told(folder):
    assert (
        "C = 0.02 is the largest tried"
        in run("fit", "iris.csv", "-t", "species", "--cv", "3", "--C", "0.01,0.02").stderr
    )


def test_a_standardized_model_takes_features_as_they_are(folder):
    run("fit", "iris.csv", "-t", "species", "--standardize", "--tol", "1e-7", "-o", "m.safetensors")
    expected = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-8, max_iter=5000)).fit(X, SPECIES)
    assert_allclose(plain_model().predict_proba(X), expected.predict_proba(X), atol=1e-5)


def test_calibration_rows_are_neither_fitted_nor_judged_by(folder):
    args = ["fit", "iris.csv", "-t", "species", "--C", "1000", "--test-size", "0.2", "-o", "m.safetensors"]
    plain = run_json(*args)
    said = run_json(*args, "--calibrate", "0.2")
    assert (said["n_fitted"], said["n_calibration"], said["n_held_out"]) == (90, 30, 30)
    assert (plain["n_calibration"], plain["temperature"]) == (0, None)
    assert said["temperature"] > 0
    judged = run_json("evaluate", "m.safetensors", "iris.csv", "-t", "species", "--test-size", "0.2")
    assert {name: judged[name] for name in said["held_out"]} == said["held_out"]


@pytest.mark.parametrize("option", [["--class-weight", "balanced"], ["--label-smoothing", "0.1"], ["--device", "cpu"]])
def test_options_reach_the_estimator(folder, option):
    run("fit", "iris.csv", "-t", "species", *option, "-o", "m.safetensors")
    name = option[0].removeprefix("--").replace("-", "_")
    assert str(getattr(load_model("m.safetensors"), name)) == option[1]


def test_a_fit_that_does_not_converge_is_saved_and_told(folder):
    result = run("fit", "iris.csv", "-t", "species", "--max-iter", "1", "--json", "-o", "m.safetensors")
    assert json.loads(result.stdout)["converged"] is False
    assert "Warning: The fit stopped at max_iter" in result.stderr
    assert load_model("m.safetensors").status_.name == "ITERATION_LIMIT"


def test_a_model_fitted_with_a_progress_bar_shows_none_later(folder, monkeypatch):
    monkeypatch.setattr(Terminal, "shows_progress", True)
    run("fit", "iris.csv", "-t", "species", "-o", "m.safetensors")
    assert load_model("m.safetensors").verbose == 0


def test_fit_from_an_array(folder):
    said = run_json("fit", "iris.npy", "-t", "-1", "-o", "m.safetensors")
    assert said["features"] is None
    assert said["n_features"] == 4
    assert run("predict", "m.safetensors", "iris.npy", "--drop", "-1", "-q").stdout.splitlines()[:2] == [
        "prediction",
        "0",
    ]


def test_people_read_standard_error_and_machines_standard_output(folder):
    args = ["fit", "iris.csv", "-t", "species", "--test-size", "0.2"]
    result = run(*args)
    assert result.stdout == ""
    assert "150 rows, 4 features, 3 classes" in result.stderr
    assert "Left out, as no features (text): id" in result.stderr
    assert "30 rows held out: accuracy" in result.stderr
    assert run(*args, "-q").stderr == ""
    assert max(map(len, result.stderr.splitlines())) < 120


def test_an_index_is_told_and_left_out(folder):
    pd.read_csv("iris.csv").to_csv("index.csv")
    assert "(an index of the rows): one without a name\n" in run("fit", "index.csv", "-t", "species").stderr


def test_svmlight_from_zero_is_that_in_every_command(folder):
    from sklearn.datasets import dump_svmlight_file

    dump_svmlight_file(X, Y, "iris.svm")
    rows = X.copy()
    rows[:, 0] = 0
    dump_svmlight_file(rows, Y, "rows.svm")
    run("fit", "iris.svm", "--zero-based", "-o", "m.safetensors")
    run("sweep", "iris.svm", "--zero-based", "--C", "1", "--cv", "2")
    expected = load_model("m.safetensors")
    assert run_json("evaluate", "m.safetensors", "rows.svm", "--zero-based")["accuracy"] == expected.score(rows, Y)
    predictions = run_json("predict", "m.safetensors", "rows.svm", "--zero-based")["predictions"]
    assert predictions == expected.predict(rows).tolist()


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".arrow", ".feather"])
def test_predictions_by_name_in_every_format(folder, model, suffix, monkeypatch):
    monkeypatch.setattr("gpusoftmax.cli.predicting.BLOCK_NUMBERS", 7 * 40)  # rows in blocks
    shuffled = pd.DataFrame(X, columns=NAMES).assign(other="x")[[*reversed(NAMES), "other"]]
    shuffled.to_parquet("new.parquet")
    run("predict", model, "new.parquet", "--probabilities", "-o", f"p{suffix}")
    read = {".parquet": pd.read_parquet, ".arrow": pd.read_feather, ".feather": pd.read_feather}.get(suffix)
    frame = read(f"p{suffix}") if read else pd.read_csv(f"p{suffix}", sep="\t" if suffix == ".tsv" else ",")
    expected = plain_model(model)
    assert list(frame) == ["prediction", *(f"probability_{name}" for name in expected.classes_)]
    assert_array_equal(frame.prediction, expected.predict(X))
    assert_allclose(frame.iloc[:, 1:], expected.predict_proba(X), rtol=1e-12)
    assert sorted(path.name for path in folder.glob(".*")) == []


def test_predictions_as_arrays(folder, model):
    run("predict", model, "iris.csv", "-o", "labels.npy")
    run("predict", model, "iris.csv", "-p", "-o", "p.npy")
    probabilities = np.load("p.npy")
    assert probabilities.shape == (150, 3)
    assert_array_equal(np.load("labels.npy"), load_model(model).classes_[probabilities.argmax(axis=1)])


def test_text_labels_that_are_objects_are_written_as_text(folder):
    classes = np.array(["a", "bb", "ç"], object)
    save_model(SoftmaxRegression().fit(X, classes[Y]), "m.safetensors")
    np.save("X.npy", X)
    run("predict", "m.safetensors", "X.npy", "-o", "labels.npy")
    assert_array_equal(np.load("labels.npy"), plain_model().predict(X).astype(str))


def test_an_output_may_be_a_link(folder, model):
    (folder / "real.csv").write_text("old")
    (folder / "link.csv").symlink_to("real.csv")
    run("predict", model, "iris.csv", "-o", "link.csv")
    assert (folder / "link.csv").is_symlink()
    assert (folder / "real.csv").read_text().startswith("prediction\n")


def test_predictions_to_standard_output(folder, model):
    lines = run("predict", model, "iris.csv").stdout.splitlines()
    assert lines[0] == "prediction"
    said = run_json("predict", model, "iris.csv", "--probabilities")
    assert lines[1:] == said["predictions"]
    assert_allclose(np.sum(said["probabilities"], axis=1), 1)


def test_evaluate_lists_every_class(folder, model):
    result = run("evaluate", model, "iris.csv", "-t", "species")
    assert result.stdout == ""
    for name in ("setosa", "versicolor", "virginica"):
        assert any(line.startswith(name) and " 50 " in line for line in result.stderr.splitlines())
    said = run_json("evaluate", model, "iris.csv", "-t", "species")
    assert [each["class"] for each in said["classes"]] == ["setosa", "versicolor", "virginica"]
    assert {"accuracy", "log_loss", "expected_calibration_error"} <= set(said)


def test_labels_of_a_part_that_look_like_numbers(folder):
    pd.DataFrame({"x": [0.0, 1, 2, 3] * 5, "y": ["1", "2", "3", "x"] * 5}).to_csv("all.csv", index=False)
    pd.DataFrame({"x": [0.0, 1], "y": [1, 2]}).to_csv("part.csv", index=False)
    run("fit", "all.csv", "-t", "y", "--C", "inf", "-o", "m.safetensors", "-q")
    assert run_json("evaluate", "m.safetensors", "part.csv", "-t", "y")["accuracy"] == 1


@pytest.mark.parametrize("write", [str, str.lower, str.upper])
def test_booleans_however_they_are_written(folder, write):
    save_model(SoftmaxRegression().fit(X, Y == 0), "m.safetensors")
    frame = pd.DataFrame(X, columns=NAMES).assign(y=[write(str(label)) for label in Y == 0])
    frame.to_csv("text.csv", index=False)
    assert run_json("evaluate", "m.safetensors", "text.csv", "-t", "y")["accuracy"] == 1


@pytest.mark.parametrize("dtype", [int, object, bool, float])
def test_labels_that_a_file_holds_as_text(folder, dtype):
    labels = (Y > 0).astype(dtype)
    save_model(SoftmaxRegression().fit(X, labels), "m.safetensors")
    frame = pd.DataFrame(X, columns=NAMES).assign(y=pd.Series(labels.astype(str), dtype="string"))
    frame.to_parquet("part.parquet", index=False)
    assert run_json("evaluate", "m.safetensors", "part.parquet", "-t", "y")["accuracy"] == 1
    frame.loc[[3, 7], "y"] = "unknown"
    frame.to_parquet("part.parquet", index=False)
    said = run("evaluate", "m.safetensors", "part.parquet", "-t", "y", code=1).stderr
    assert "1 label not among the 2 classes: 'unknown'" in said


def test_reports(folder, model):
    run("evaluate", model, "iris.csv", "-t", "species", "--report", "a.html")
    run("fit", "iris.csv", "-t", "species", "--test-size", "0.3", "--cv", "3", "--C", "0.1,1", "--report", "b.html")
    assert "iris.csv" in (folder / "a.html").read_text()
    assert "iris.csv" in (folder / "b.html").read_text()


def test_info_tells_versions_and_what_is_missing(monkeypatch):
    monkeypatch.setattr("gpusoftmax.cli.informing.OPTIONAL", {"no-such-package": ("nothing", "pip install nothing")})
    result = run("info")
    assert "Missing: no-such-package, for nothing: pip install nothing" in result.stderr
    said = run_json("info")
    assert said["packages"]["numpy"] == np.__version__
    assert said["optional"]["no-such-package"] is None
    assert "threads" in said["blas"]


def test_info_never_fails(monkeypatch):
    for probe in ("blas", "cuda"):
        monkeypatch.setattr(f"gpusoftmax.cli.informing.{probe}", lambda: {}["key"])
    assert "GPU: 'key'" in run("info").stderr


def test_info_of_a_model(folder, model):
    said = run_json("info", model)
    assert said["features"] == NAMES
    assert said["status"] == "CONVERGED"
    assert "3 classes, 4 features" in run("info", model).stderr


def test_info_of_what_cross_validation_chose(folder):
    save_model(SoftmaxRegressionCV(Cs=3, cv=2).fit(X, Y), "cv.safetensors")
    assert run_json("info", "cv.safetensors")["n_iter"] is None
    assert "The fit converged" in run("info", "cv.safetensors").stderr


def test_bench_compares_by_one_objective(monkeypatch):
    monkeypatch.setattr(benching, "CASES", (Case(200, 5, 3, "float64"),))
    said = run_json("bench", "--device", "cpu")
    ours, theirs, _ = said["cases"]
    assert (ours["library"], theirs["library"]) == ("gpusoftmax", "scikit-learn")
    assert_allclose(ours["objective"], theirs["objective"], rtol=1e-4)
    assert ours["objective"] <= theirs["objective"] * (1 + 1e-6)
    assert_allclose(ours["objective"], SoftmaxRegression().fit(*benching.CASES[0].data()).objective_, rtol=1e-9)


def run_in_ascii(*args):
    """Run a command as a process whose standard output is ASCII, and return that."""
    environment = ENVIRONMENT | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "gpusoftmax", *args]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment).stdout


def test_standard_output_that_is_no_utf_8(folder):
    frame = pd.DataFrame(X, columns=["länge", "b", "c", "d"]).assign(art=np.array(["grün", "x", "日本"])[Y])
    frame.to_csv("i.csv", index=False)
    said = json.loads(run_in_ascii("fit", "i.csv", "-t", "art", "-q", "--json", "-o", "m.safetensors"))
    assert said["features"][0] == "länge"
    assert said["classes"] == ["grün", "x", "日本"]
    assert run_in_ascii("predict", "m.safetensors", "i.csv", "-q").decode().splitlines()[-1] == "日本"


def test_a_file_whose_name_is_no_utf_8(folder):
    name = os.fsdecode(b"i\xff.npy")
    os.link("iris.npy", name)
    said = run_json("fit", name, "-t", "-1", "--test-size", "0.2", "--report", "r.html")
    assert said["data"] == name
    assert "i?.npy" in (folder / "r.html").read_text("utf-8")


def test_help_needs_nothing_slow():
    for command in ([], ["fit"]):
        python = [sys.executable, "-X", "importtime", "-m", "gpusoftmax"]
        done = subprocess.run(
            [*python, *command, "--help"], capture_output=True, text=True, check=True, env=ENVIRONMENT
        )
        imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
        assert "typer" in imported
        assert not imported & {"numpy", "scipy", "sklearn", "safetensors", "pyarrow", "importlib_metadata"}
        assert "--help" in done.stdout


def test_ctrl_c_ends_in_one_line(folder):
    rng = np.random.default_rng(0)
    np.save("large.npy", np.column_stack([rng.standard_normal((60_000, 200)), np.arange(60_000) % 50]))
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "gpusoftmax", "fit", "large.npy", "-t", "-1", "--tol", "0", "--C", "inf"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    first = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert "60,000 rows" in first
    assert stderr.splitlines() == ["Interrupted: nothing more was written."]
    assert (stdout, process.returncode) == ("", 130)
