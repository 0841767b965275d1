import os
import re
import sys

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.datasets import dump_svmlight_file

from gpusoftmax import tables
from gpusoftmax.exceptions import DataError
from gpusoftmax.tables import Selection, read_table

pd = pytest.importorskip("pandas")

ROWS = 12
FEATURES = np.random.default_rng(0).integers(-8, 8, (ROWS, 3)) / 4
LABELS = np.arange(ROWS) % 3
WEIGHTS = np.arange(ROWS) / 2


@pytest.fixture
def frame():
    frame = pd.DataFrame(FEATURES, columns=["a", "b one", "b two"])
    return frame.assign(id=[f"r{i}" for i in range(ROWS)], label=LABELS, weight=WEIGHTS)


def write(frame, path):
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    elif path.suffix == ".feather":
        frame.to_feather(path)
    elif path.suffix == ".npy":
        np.save(path, np.column_stack([FEATURES, LABELS, WEIGHTS]))
    elif path.suffix == ".npz":
        np.savez(path, X=FEATURES, label=LABELS, weight=WEIGHTS)
    elif path.suffix == ".svm":
        dump_svmlight_file(FEATURES, LABELS, str(path), zero_based=False)
    else:
        frame.to_csv(path, index=False, sep="\t" if ".tsv" in path.suffixes else ",")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".parquet", ".feather", ".npy", ".npz", ".svm"])
def test_every_format_holds_the_same(tmp_path, frame, suffix):
    path = write(frame, tmp_path / f"t{suffix}")
    named = {".npy": ("3", "-1"), ".svm": (None, None)}.get(suffix, ("label", "weight"))
    table = read_table(path, Selection(target=named[0], weights=named[1]))
    assert_array_equal(table.X, FEATURES)
    assert_array_equal(table.y, LABELS)
    assert table.y.dtype.kind == "i"
    if suffix != ".svm":
        assert_array_equal(table.weights, WEIGHTS)
    has_names = suffix in (".csv", ".csv.gz", ".tsv", ".parquet", ".feather")
    assert table.feature_names == (["a", "b one", "b two"] if has_names else None)
    assert table.left_out == ({"id": "text"} if has_names else {})


@pytest.mark.parametrize(
    ("features", "drop", "expected"),
    [
        ([], [], ["a", "b one", "b two", "weight"]),
        (["b*"], [], ["b one", "b two"]),
        (["b two,a"], [], ["b two", "a"]),
        (["b two", "a"], ["a"], ["b two"]),
        ([], ["b*,weight"], ["a"]),
    ],
)
def test_features_by_name_and_pattern(tmp_path, frame, features, drop, expected):
    table = read_table(write(frame, tmp_path / "t.csv"), Selection("label", features, drop))
    assert table.feature_names == expected
    assert_array_equal(table.X, frame[expected])


def test_a_name_with_a_comma_or_a_star_is_that_name_first(tmp_path):
    pd.DataFrame({"a,b": [1.0, 2.0], "a": [3.0, 4.0], "a*": [5.0, 6.0], "y": [0, 1]}).to_csv(
        tmp_path / "t.csv", index=False
    )
    assert read_table(tmp_path / "t.csv", Selection("y", ["a,b", "a*"])).feature_names == ["a,b", "a*"]


def test_names_of_a_model_are_no_patterns(tmp_path):
    pd.DataFrame({"v[0]": [1.0, 2.0], "v0": [3.0, 4.0], "y": [0, 1]}).to_csv(tmp_path / "t.csv", index=False)
    table = read_table(tmp_path / "t.csv", Selection("y", drop=["v*"]), feature_names=["v[0]"])
    assert table.X.ravel().tolist() == [1, 2]
    for name in ("v[01]", "v?", "v*", "v0,y"):
        with pytest.raises(DataError, match=f"Column {re.escape(repr(name))} is not in"):
            read_table(tmp_path / "t.csv", Selection(), feature_names=[name])


@pytest.mark.parametrize(
    ("name", "values", "is_index"),
    [
        ("", [0, 1, 2], True),
        ("", [3, 1, 2], True),
        ("Unnamed: 0", [1, 2, 3], True),
        ("Unnamed: 0.1", [0, 1, 2], True),
        ("__index_level_0__", [5, 5, 6], True),
        ("", [0, 1, 1], False),
        ("", [0, 1, 1.5], False),
        ("count", [0, 1, 2], False),
    ],
)
def test_an_index_is_no_feature_unless_it_is_named(tmp_path, name, values, is_index):
    frame = pd.DataFrame({name: values, "a": [0.5, 1, 1], "y": ["u", "v", "u"]})
    for suffix in (".csv", ".parquet"):
        path = write(frame, tmp_path / f"t{suffix}")
        table = read_table(path, Selection("y"))
        assert table.feature_names == (["a"] if is_index else [name, "a"])
        assert table.left_out == ({name: "an index of the rows"} if is_index else {})
        assert read_table(path, Selection("y", [f"{name},a"])).feature_names == [name, "a"]


@pytest.mark.parametrize("texts", [["1_0", "2", "3"], ["0xA", "1.5", "2"], ["1", "\u0661", "3"]])
def test_text_among_numbers_is_refused_however_it_is_written(tmp_path, texts):
    pd.DataFrame({"x": texts, "y": [0, 1, 0]}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match="where a feature must be a number"):
        read_table(tmp_path / "t.csv", Selection("y"))


def test_numbers_as_text_are_refused(tmp_path):
    pd.DataFrame({"x": ["1", "2"], "y": [0, 1]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"'x' of .* holds numbers as text, .* --drop 'x'"):
        read_table(tmp_path / "t.parquet", Selection("y"))


@pytest.mark.parametrize("value", [1e20, 2.0**53])
def test_labels_that_floats_cannot_tell_apart_are_refused(tmp_path, value):
    pd.DataFrame({"x": [1.0, 2.0], "y": [1, value]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="looks like a quantity"):
        read_table(tmp_path / "t.parquet", Selection("y"))


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (["float32", "float16"], "float32"),
        (["float32", "float64"], "float64"),
        (["int8", "float32"], "float64"),
        (["bool", "bool"], "float64"),
    ],
)
def test_single_precision_stays_single(tmp_path, dtypes, expected):
    pd.DataFrame({str(i): np.ones(3, dtype) for i, dtype in enumerate(dtypes)}).to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", Selection()).X.dtype == expected


@pytest.mark.parametrize(
    ("drop", "kept", "is_mapped"),
    [("-1", slice(0, 4), True), ("0,1", slice(2, 5), True), ("2", [0, 1, 3, 4], False)],
)
def test_an_npy_file_is_mapped_not_read(tmp_path, frame, drop, kept, is_mapped):
    path = write(frame, tmp_path / "t.npy")
    table = read_table(path, Selection(drop=[drop]))
    assert isinstance(table.X, np.memmap) is is_mapped
    assert_array_equal(table.X, np.load(path)[:, kept])


def test_an_npy_file_has_labels_and_weights_in_files_of_their_own(tmp_path):
    np.save(tmp_path / "X.npy", FEATURES.astype(np.float32))
    np.save(tmp_path / "y.npy", np.array(["x", "y", "z"])[LABELS])
    np.save(tmp_path / "s.npy", WEIGHTS[:, np.newaxis])
    table = read_table(tmp_path / "X.npy", Selection(str(tmp_path / "y.npy"), weights=str(tmp_path / "s.npy")))
    assert table.X.dtype == np.float32
    assert table.y.tolist()[:3] == ["x", "y", "z"]
    assert_array_equal(table.weights, WEIGHTS)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["a", "b", "a"], ["a", "b", "a"]),
        ([True, False, True], [True, False, True]),
        ([1.0, 2.0, 1.0], [1.0, 2.0, 1.0]),
        (pd.Categorical(["a", "b", "a"]), ["a", "b", "a"]),
    ],
)
def test_labels_keep_their_type(tmp_path, values, expected):
    pd.DataFrame({"x": [1.0, 2.0, 3.0], "y": values}).to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", Selection("y")).y.tolist() == expected


def test_svmlight_has_as_many_features_as_asked_for(tmp_path):
    (tmp_path / "t.svm").write_text("0 1:1\n1 2:1\n")
    assert read_table(tmp_path / "t.svm", Selection(), n_features=5).X.shape == (2, 5)


def test_svmlight_counts_from_one_unless_told(tmp_path):
    path = tmp_path / "t.svm"
    path.write_text("0 1:1\n1 2:1\n")
    assert read_table(path, Selection()).X.tolist() == [[1, 0], [0, 1]]
    assert read_table(path, Selection(is_zero_based=True)).X.tolist() == [[0, 1, 0], [0, 0, 1]]
    path.write_text("0 0:1\n1 2:1\n")
    assert read_table(path, Selection(is_zero_based=True)).X.tolist() == [[1, 0, 0], [0, 0, 1]]
    with pytest.raises(DataError, match=r"has the index 0, .* --zero-based"):
        read_table(path, Selection())


@pytest.mark.parametrize("index", [4_000_000_000, 99_999_999_999_999_999_999])
def test_svmlight_with_an_index_beyond_integers_is_refused(tmp_path, index):
    (tmp_path / "t.svm").write_text(f"0 1:1\n1 {index}:1\n")
    with pytest.raises(DataError, match=r"t.svm cannot be read as svmlight .*: each line is a label"):
        read_table(tmp_path / "t.svm", Selection())


@pytest.mark.parametrize("dtype", ["S1", "c16", "M8[D]", "m8[D]", [("a", "i8")]])
def test_arrays_that_are_no_labels_and_no_weights_are_refused(tmp_path, dtype):
    strange = np.ones(ROWS, np.int64).astype(dtype)
    np.savez(tmp_path / "t.npz", X=FEATURES, y=LABELS, strange=strange)
    with pytest.raises(DataError, match=r"Array 'strange' of .* holds .*: labels are text or numbers"):
        read_table(tmp_path / "t.npz", Selection("strange"))
    with pytest.raises(DataError, match=r"Array 'strange' of .* holds .*: weights are numbers"):
        read_table(tmp_path / "t.npz", Selection("y", weights="strange"))


def test_a_pipe_is_refused_at_once(tmp_path):
    np.save(tmp_path / "X.npy", FEATURES)
    for name in ("t.csv", "y.npy"):
        os.mkfifo(tmp_path / name)
    for name, target in (("t.csv", "label"), ("X.npy", str(tmp_path / "y.npy"))):
        with pytest.raises(DataError, match="is no ordinary file: save what it holds in one"):
            read_table(tmp_path / name, Selection(target))


def test_a_name_that_pyarrow_cannot_open_is_refused(tmp_path, frame):
    path = write(frame, tmp_path / "t.csv").rename(tmp_path / os.fsdecode(b"\xff.csv"))
    with pytest.raises(DataError, match="has a name that is not UTF-8"):
        read_table(path, Selection("label"))


def test_sparse_data_too_large_as_dense_are_refused(tmp_path, monkeypatch):
    (tmp_path / "t.svm").write_text("0 1:1\n1 2:1\n")
    monkeypatch.setattr(tables, "memory_limit", lambda: 31)
    with pytest.raises(DataError, match="sparse X is not supported yet"):
        read_table(tmp_path / "t.svm", Selection())
    monkeypatch.setattr(tables, "memory_limit", lambda: 32)
    read_table(tmp_path / "t.svm", Selection())


def test_a_bad_value_far_down_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_NUMBERS", 6)
    X = np.ones((20, 3))
    X[17, 1] = np.inf
    np.save(tmp_path / "X.npy", X)
    with pytest.raises(DataError, match=r"Feature 1 of .* has an infinite value in row 18"):
        read_table(tmp_path / "X.npy", Selection())


def test_csv_is_read_without_pyarrow(tmp_path, frame, monkeypatch):
    path = write(frame, tmp_path / "t.csv")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    table = read_table(path, Selection("label", weights="weight"))
    assert_array_equal(table.X, FEATURES)
    assert_array_equal(table.y, LABELS)
