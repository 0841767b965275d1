"""What goes wrong is said in one line: what is wrong, and how to mend it; with exit code 1, or 2 for wrong usage."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from test_cli import ENVIRONMENT, NAMES, SPECIES, X, Y
from typer.testing import CliRunner

from gpusoftmax.cli.app import app

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")


def iris(**columns):
    return pd.DataFrame(X, columns=NAMES).assign(species=SPECIES, **columns)


def changed(column, row, value):
    frame = iris()
    frame[column] = frame[column].astype(object)
    frame.loc[row, column] = value
    return frame


def csv(frame, name="bad.csv"):
    frame.to_csv(name, index=False)


def npy(array, name="bad.npy"):
    np.save(name, array)


def vector_model():
    csv(pd.DataFrame({"v[0]": [0.0, 1], "y": [0, 1]}), "v.csv")
    assert CliRunner().invoke(app, ["fit", "v.csv", "-t", "y", "-o", "v.safetensors"]).exit_code == 0


def raw(content, name="bad.csv"):
    Path(name).write_bytes(content)


BAD_FIT = ["fit", "bad.csv", "-t", "species"]
GOOD_FIT = ["fit", "iris.csv", "-t", "species"]
PREDICT = ["predict", "iris.safetensors", "bad.csv"]
ROWS = {  # what: (what makes it, command, words of the message in their order)
    "missing file": (None, BAD_FIT, ["bad.csv: No such file", "check the name"]),
    "a folder": (lambda: Path("bad.csv").mkdir(), BAD_FIT, ["bad.csv: Is a directory", "name of a file"]),
    "no suffix": (lambda: raw(b"1,2\n", "bad"), ["fit", "bad", "-t", "y"], ["no suffix that says", ".parquet"]),
    "an excel sheet": (lambda: raw(b"PK", "bad.xlsx"), ["fit", "bad.xlsx", "-t", "y"], ["no suffix", ".csv"]),
    "empty file": (lambda: raw(b""), BAD_FIT, ["bad.csv", "UTF-8 text, a line of column names"]),
    "no rows": (lambda: csv(iris()[:0]), BAD_FIT, ["bad.csv has no rows", "a line for each row"]),
    "no utf-8": (lambda: raw("a,species\n1,grün\n".encode("latin1")), BAD_FIT, ["cannot be read as CSV", "UTF-8"]),
    "ragged rows": (lambda: raw(b"a,species\n1,x\n2\n"), BAD_FIT, ["cannot be read as CSV", "as many values"]),
    "name twice": (lambda: raw(b"a,a,species\n1,2,x\n"), BAD_FIT, ["column named 'a'", "name of its own"]),
    "no header": (lambda: raw(b"1,2\n3,4\n"), BAD_FIT, ["'species' is not in bad.csv", "must hold the names"]),
    "broken parquet": (
        lambda: raw(b"PAR1", "bad.parquet"),
        ["fit", "bad.parquet", "-t", "y"],
        ["bad.parquet cannot be read as Parquet", "write it anew"],
    ),
    "wrong column": (
        None,
        ["fit", "iris.csv", "-t", "speces"],
        ["'speces' is not in", "its columns are", "Did you mean 'species'?"],
    ),
    "wrong feature": (None, [*GOOD_FIT, "-f", "pixel*"], ["'pixel*' is not in", "its columns are", "species"]),
    "wrong weights": (None, [*GOOD_FIT, "--weights", "w"], ["'w' is not in iris.csv", "its columns are"]),
    "text among numbers": (
        lambda: csv(changed("sepal width", 16, "wide")),
        BAD_FIT,
        ["'sepal width' of bad.csv holds 'wide' in row 17", "must be a number", "--drop 'sepal width'"],
    ),
    "text as a feature": (
        lambda: csv(iris(id="r1")),
        [*BAD_FIT, "-f", "id"],
        ["'id' of bad.csv holds 'r1' in row 1", "must be a number", "--drop"],
    ),
    "dates as a feature": (
        lambda: iris(day=pd.Timestamp("2024-01-01")).to_parquet("bad.parquet"),
        ["fit", "bad.parquet", "-t", "species", "-f", "day"],
        ["'day' of bad.parquet holds timestamp", "leave it out"],
    ),
    "no numbers": (lambda: csv(iris(id="r1")[["id", "species"]]), BAD_FIT, ["no column of numbers", "id, species"]),
    "NaN": (
        lambda: csv(changed("petal width", [3, 9], None)),
        BAD_FIT,
        ["'petal width' of bad.csv has no value (NaN) in 2 rows, the first of them row 4", "--drop 'petal width'"],
    ),
    "infinity": (
        lambda: csv(changed("petal width", 3, "inf")),
        BAD_FIT,
        ["'petal width' of bad.csv has an infinite value in row 4", "leave the column out"],
    ),
    "missing labels": (lambda: csv(changed("species", 7, None)), BAD_FIT, ["no label in row 8", "label of their own"]),
    "a quantity as labels": (
        None,
        ["fit", "iris.csv", "-t", "petal width"],
        ["holds 0.2", "quantity", "another target"],
    ),
    "a label a row": (
        lambda: csv(iris(id=[f"r{i}" for i in range(150)])),
        ["fit", "bad.csv", "-t", "id"],
        ["150 different labels in 150 rows", "right column?"],
    ),
    "one class": (lambda: csv(iris()[:50]), BAD_FIT, ["one class only, 'setosa'", "at least two"]),
    "one row": (lambda: csv(iris()[:1]), BAD_FIT, ["one class only", "at least two"]),
    "a class of one row": (
        lambda: csv(iris()[:101]),
        [*BAD_FIT, "--test-size", "0.2"],
        ["one row of the class 'virginica'", "--test-size 0"],
    ),
    "too few rows to hold out": (
        lambda: csv(iris()[::25]),
        [*BAD_FIT, "--test-size", "0.2"],
        ["too few rows to hold out 2 of 6", "another --test-size"],
    ),
    "too few rows for folds": (
        lambda: csv(iris()[::25]),
        [*BAD_FIT, "--cv", "5"],
        ["too few rows for 5 folds", "--cv"],
    ),
    "negative weights": (
        lambda: csv(iris(w=-1.0)),
        [*BAD_FIT, "--weights", "w"],
        ["'w' of bad.csv holds no weight in 150 rows", "at least 0"],
    ),
    "weights of text": (lambda: csv(iris(w="x")), [*BAD_FIT, "--weights", "w"], ["holds text", "weights are numbers"]),
    "target as a feature": (
        None,
        [*GOOD_FIT, "-f", "species"],
        ["'species' is a feature and the target", "one of them"],
    ),
    "no CUDA": (None, [*GOOD_FIT, "--device", "cuda"], ["device='cuda'", "driver"]),
    "npy of objects": (
        lambda: npy(np.array([[1, "a"]], object)),
        ["fit", "bad.npy", "-t", "0"],
        ["bad.npy cannot be read as an array of NumPy", "numpy.save"],
    ),
    "npy of text": (lambda: npy(np.array([["a", "b"]])), ["fit", "bad.npy", "-t", "0"], ["<U1", "convert"]),
    "npy of one dimension": (lambda: npy(Y), ["fit", "bad.npy", "-t", "0"], ["shape (150,)", "(rows, features)"]),
    "npy cut off": (
        lambda: npy(X) or os.truncate("bad.npy", 200),
        ["fit", "bad.npy", "-t", "0"],
        ["bad.npy cannot be read", "numpy.save"],
    ),
    "npy without such a column": (lambda: npy(X), ["fit", "bad.npy", "-t", "4"], ["no column 4", "it has 4"]),
    "npy with a name": (lambda: npy(X), ["fit", "bad.npy", "-t", "y"], ["--target must be the number", "'y'"]),
    "npy with features by name": (lambda: npy(X), ["fit", "bad.npy", "-t", "0", "-f", "a"], ["no column names", "out"]),
    "labels of another length": (
        lambda: npy(X) or npy(Y[:9], "y.npy"),
        ["fit", "bad.npy", "-t", "y.npy"],
        ["y.npy holds (9,) values for 150 rows", "one for each row"],
    ),
    "npz without labels": (
        lambda: np.savez("bad.npz", X=X),
        ["fit", "bad.npz", "-t", "y"],
        ["no array 'y'", "its arrays are X"],
    ),
    "npz without y": (lambda: np.savez("bad.npz", X=X), ["fit", "bad.npz"], ["bad.npz", "no labels", "--target"]),
    "npz of two matrices": (lambda: np.savez("bad.npz", a=X, b=X, y=Y), ["fit", "bad.npz"], ["a, b, y", "name", "X"]),
    "npz that is sparse": (
        lambda: scipy.sparse.save_npz("bad.npz", scipy.sparse.csr_array(X)),
        ["fit", "bad.npz"],
        ["sparse matrix, which is not supported yet", "toarray"],
    ),
    "broken npz": (
        lambda: raw(b"PK", "bad.npz"),
        ["fit", "bad.npz"],
        ["bad.npz cannot be read as .npz", "numpy.savez"],
    ),
    "broken svmlight": (lambda: raw(b"a b c\n", "bad.svm"), ["fit", "bad.svm"], ["bad.svm", "svmlight", "index:value"]),
    "model with another suffix": (None, [*GOOD_FIT, "-o", "m.pkl"], ["m.pkl has no suffix", "give it .safetensors"]),
    "folder missing": (
        None,
        [*GOOD_FIT, "-o", "no/m.safetensors"],
        ["/no: There is no such folder", "make it first"],
    ),
    "folder as output": (
        lambda: Path("m.safetensors").mkdir(),
        [*GOOD_FIT, "-o", "m.safetensors"],
        ["m.safetensors: Is a folder", "give the name of a file"],
    ),
    "model missing": (None, ["predict", "no.safetensors", "iris.csv"], ["no.safetensors: No such file", "check"]),
    "no model": (lambda: raw(b"x" * 99, "m.safetensors"), ["info", "m.safetensors"], ["m.safetensors"]),
    "feature missing": (
        lambda: csv(iris().drop(columns="petal width")),
        PREDICT,
        ["Column 'petal width' is not in bad.csv", "its columns are"],
    ),
    "other number of features": (
        lambda: npy(X[:, :3]),
        ["predict", "iris.safetensors", "bad.npy"],
        ["bad.npy has 3 features and the model 4", "--drop"],
    ),
    "feature missing that looks like a pattern": (
        lambda: csv(pd.DataFrame({"v0": [0.0, 1], "y": [0, 1]})) or vector_model(),
        ["predict", "v.safetensors", "bad.csv"],
        ["Column 'v[0]' is not in bad.csv", "its columns are v0, y"],
    ),
    "svmlight that starts at 0": (lambda: raw(b"0 0:1\n1 1:1\n", "bad.svm"), ["fit", "bad.svm"], ["--zero-based"]),
    "svmlight of more features": (
        lambda: raw(b"0 0:1\n1 4:1\n", "bad.svm"),
        ["predict", "iris.safetensors", "bad.svm", "--zero-based"],
        ["bad.svm has 5 features and the model 4", "--zero-based only if"],
    ),
    "zero-based CSV": (None, [*GOOD_FIT, "--zero-based"], ["iris.csv is no svmlight file", "leave --zero-based out"]),
    "NaN to predict": (
        lambda: csv(changed("petal width", 3, None)),
        PREDICT,
        ["'petal width' of bad.csv has no value (NaN) in row 4", "fill"],
    ),
    "predictions with another suffix": (
        None,
        ["predict", "iris.safetensors", "iris.csv", "-o", "p.txt"],
        ["p.txt", ".csv"],
    ),
    "labels unknown to the model": (
        lambda: csv(changed("species", 0, "rose")),
        ["evaluate", "iris.safetensors", "bad.csv", "-t", "species"],
        ["1 label not among the 3 classes: 'rose'", "Leave these rows out"],
    ),
}
USAGE = {  # what: (command, words)
    "no target": (["fit", "iris.csv"], ["--target", "which column holds the labels?"]),
    "unknown device": ([*GOOD_FIT, "--device", "tpu"], ["--device", "tpu", "cuda"]),
    "unknown option": ([*GOOD_FIT, "--alpha", "1"], ["--alpha"]),
    "C of zero": ([*GOOD_FIT, "--C", "0"], ["--C", "'0' is no C", "above 0"]),
    "C of text": ([*GOOD_FIT, "--C", "1:2"], ["--C", "'1:2' is no C"]),
    "several C": ([*GOOD_FIT, "--C", "1,2"], ["--C", "--cv 5"]),
    "one standard error of nothing": ([*GOOD_FIT, "--one-se"], ["--one-se", "--cv 5"]),
    "a report of nothing": ([*GOOD_FIT, "--report", "r.html"], ["--report", "--test-size 0.2"]),
    "nothing left to fit": ([*GOOD_FIT, "--test-size", "0.8", "--calibrate", "0.2"], ["--calibrate", "tenth"]),
    "share above one": ([*GOOD_FIT, "--test-size", "30"], ["--test-size", "0.9"]),
    "one fold": ([*GOOD_FIT, "--cv", "1"], ["--cv", "2"]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with irises and a model of them."""
    folder = tmp_path_factory.mktemp("cli")
    csv(iris(), folder / "iris.csv")
    model = str(folder / "iris.safetensors")
    assert CliRunner().invoke(app, ["fit", str(folder / "iris.csv"), "-t", "species", "-o", model]).exit_code == 0
    return folder


@pytest.fixture
def here(folder, tmp_path, monkeypatch):
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(args):
    return CliRunner().invoke(app, args, terminal_width=80)


def assert_in_order(words, text):
    place = 0
    for word in words:
        assert word in text[place:], f"{word!r} is not, or not there, in: {text}"
        place = text.index(word, place)


@pytest.mark.parametrize("what", ROWS)
def test_wrong_input_is_said_in_one_line(here, what):
    prepare, command, words = ROWS[what]
    if prepare is not None:
        prepare()
    files = sorted(path.name for path in here.iterdir())
    result = invoke([*command, "--json", *(["--quiet"] if command[0] != "info" else [])])
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert_in_order(words, line)
    assert line[-1] in ".?"
    assert "should not happen" not in line
    assert json.loads(result.stdout) == {"error": line.removeprefix("Error: ")}
    assert sorted(path.name for path in here.iterdir()) == files


@pytest.mark.parametrize("what", USAGE)
def test_wrong_usage_has_its_own_code(here, what):
    command, words = USAGE[what]
    result = invoke(command)
    assert result.exit_code == 2
    assert_in_order(words, " ".join(result.stderr.replace("│", " ").split()))
    assert "Traceback" not in result.stderr


def test_files_and_folders_without_rights(here):
    csv(iris())
    Path("bad.csv").chmod(0)
    if os.access("bad.csv", os.R_OK):
        pytest.skip("nothing is forbidden to this user")
    assert "bad.csv: Permission denied: choose a file that you may read" in invoke(BAD_FIT).stderr
    here.chmod(0o500)
    assert "Not allowed to write here" in invoke([*GOOD_FIT, "-o", "m.safetensors"]).stderr
    here.chmod(0o700)


@pytest.mark.parametrize(
    "command",
    [
        [*GOOD_FIT, "-o", "m.safetensors"],
        ["predict", "iris.safetensors", "iris.csv", "-o", "p.csv"],
        ["predict", "iris.safetensors", "iris.csv", "-o", "p.npy"],
        ["predict", "iris.safetensors", "iris.csv", "-o", "p.parquet"],
        ["sweep", "iris.csv", "-t", "species", "--C", "1", "--cv", "2", "-o", "s.csv"],
        ["evaluate", "iris.safetensors", "iris.csv", "-t", "species", "--report", "r.html"],
    ],
)
def test_no_space_left(here, monkeypatch, command):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", fail)
    monkeypatch.setattr(Path, "replace", fail)
    files = sorted(path.name for path in here.iterdir())
    result = invoke(command)
    assert result.exit_code == 1
    line = result.stderr.splitlines()[-1]
    assert_in_order([f"{command[-1]}: No space left on device", "ree some", "choose another disk."], line)
    assert sorted(path.name for path in here.iterdir()) == files


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_no_space_left_behind_standard_output(here):
    command = [sys.executable, "-m", "gpusoftmax", "predict", "iris.safetensors", "iris.csv", "--json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 1
    assert done.stderr == "Error: standard output: No space left on device: free some, or choose another disk.\n"


def closed(stream, *command):
    """Run a command whose standard output (1) or error (2) is closed."""
    shell = ["sh", "-c", f'exec "$@" {stream}>&-', "sh", sys.executable, "-m", "gpusoftmax"]
    return subprocess.run([*shell, *command], capture_output=True, text=True, check=False, env=ENVIRONMENT)


def test_a_closed_standard_error_is_no_hindrance(here):
    done = closed(2, *GOOD_FIT, "--json", "-o", "m.safetensors")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["converged"]
    assert Path("m.safetensors").exists()
    done = closed(2, *BAD_FIT, "--json")
    assert done.returncode == 1
    assert "bad.csv: No such file" in json.loads(done.stdout)["error"]


def test_a_closed_standard_output_is_said_before_the_work(here):
    done = closed(1, *GOOD_FIT, "-o", "m.safetensors")
    assert done.returncode == 1
    assert done.stderr == ("Error: standard output is closed: leave it open, or send it to a file or to /dev/null.\n")
    assert not Path("m.safetensors").exists()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["predict", "iris.safetensors", "iris.csv", "-o", "p.csv.gz"], ["p.csv.gz has no suffix", ".csv"]),
        (["sweep", "iris.csv", "-t", "species", "-o", "s.csv.gz"], ["s.csv.gz has no suffix", ".csv"]),
        (["sweep", "iris.csv", "-t", "species", "-o", "iris.csv"], ["iris.csv is read, and would be overwritten"]),
        (["predict", "iris.safetensors", "iris.csv", "-o", "link.csv"], ["link.csv is read", "another name"]),
        ([*GOOD_FIT, "-o", "pipe.safetensors"], ["pipe.safetensors: Is no ordinary file"]),
    ],
)
def test_outputs_that_cannot_be_are_refused_before_the_work(here, monkeypatch, command, words):
    Path("link.csv").symlink_to("iris.csv")
    os.mkfifo("pipe.safetensors")
    monkeypatch.setattr("gpusoftmax.tables.read_columns", pytest.fail)
    result = invoke(command)
    assert result.exit_code == 1
    assert_in_order(words, result.stderr)


def test_parquet_without_pyarrow_is_refused_before_the_work(here, monkeypatch):
    monkeypatch.setattr("gpusoftmax.cli.predicting.find_spec", lambda _: None)
    monkeypatch.setattr("gpusoftmax.cli.predicting.load_model", pytest.fail)
    result = invoke(["predict", "iris.safetensors", "iris.csv", "-o", "p.parquet"])
    assert result.stderr == "Error: p.parquet needs pyarrow to be written: pip install 'gpusoftmax[data]'.\n"


def test_a_report_that_cannot_be_drawn_is_refused_before_the_work(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    files = sorted(path.name for path in here.iterdir())
    result = invoke([*GOOD_FIT, "--test-size", "0.2", "-o", "m.safetensors", "--report", "r.html"])
    assert result.exit_code == 1
    assert result.stderr == "Error: write_report needs matplotlib and jinja2: pip install 'gpusoftmax[plots]'\n"
    assert sorted(path.name for path in here.iterdir()) == files


def test_a_bug_is_called_one_and_debug_shows_where(here, monkeypatch):
    monkeypatch.setattr("gpusoftmax.cli.fitting.fit", lambda *_, **__: {}["key"])
    result = invoke(GOOD_FIT)
    assert result.exit_code == 1
    assert (
        result.stderr
        == "Error: KeyError: 'key'. This should not happen: run it with --debug, and report what it says.\n"
    )
    assert isinstance(invoke([*GOOD_FIT, "--debug"]).exception, KeyError)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), ["too little memory", "fewer rows"]),
        (MemoryError("needs 3 GB"), ["too little memory (needs 3 GB)", "fewer rows"]),
        (ValueError("Several\n  lines."), ["Several lines."]),
    ],
)
def test_errors_of_the_machine_and_of_libraries_in_words(here, monkeypatch, error, words):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("gpusoftmax.cli.fitting.fit", fail)
    result = invoke(GOOD_FIT)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert_in_order(words, result.stderr)
