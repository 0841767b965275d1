import gzip
import sys
from decimal import Decimal

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from gpusoftmax import columns as columns_module
from gpusoftmax.columns import EMPTY, NUMBER, TEXT, read_columns
from gpusoftmax.exceptions import DataError

pa = pytest.importorskip("pyarrow")

CSV = """\
id,count,share,flag,day,note,gap,none,quoted,under,big
a,1,0.5,true,2024-01-31,"x, y",1,,"1",1_0,99999999999999999999
b,-2,1e3,false,2024-02-01,"two
lines",,NA,"2",2_0,1
c,3,inf,true,2024-02-02,,NaN,null,"3",3_0,2
"""


@pytest.fixture(params=["pyarrow", "csv"])
def reader(request, monkeypatch):
    if request.param == "csv":
        monkeypatch.setitem(sys.modules, "pyarrow", None)
    return request.param


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def test_both_readers_of_csv_make_the_same_columns(tmp_path, reader):
    columns = read_columns(write(tmp_path / "t.csv", CSV), ".csv")
    kinds = {name: column.kind for name, column in columns.items()}
    texts = dict.fromkeys(["id", "flag", "day", "note", "under"], TEXT)
    numbers = dict.fromkeys(["count", "share", "gap", "quoted", "big"], NUMBER)
    assert kinds == {**texts, **numbers, "none": EMPTY}
    assert list(columns) == CSV.splitlines()[0].split(",")
    assert columns["count"].load().dtype == np.int64
    assert_array_equal(columns["count"].load(), [1, -2, 3])
    assert_array_equal(columns["share"].load(), [0.5, 1e3, np.inf])
    assert_array_equal(columns["gap"].load(), [1, np.nan, np.nan])
    assert_array_equal(columns["big"].load(), [1e20, 1, 2])
    assert columns["note"].load().tolist() == ["x, y", "two\nlines", None]
    assert columns["flag"].load().tolist() == ["true", "false", "true"]
    assert columns["day"].load().tolist() == ["2024-01-31", "2024-02-01", "2024-02-02"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_that_of_the_first_line(tmp_path, reader, delimiter):
    path = write(tmp_path / "t.csv", f"a{delimiter}b\r\n1{delimiter}x,y\r\n\r\n2{delimiter}z\r\n".replace("x,y", "x"))
    columns = read_columns(path, ".csv")
    assert_array_equal(columns["a"].load(), [1, 2])
    assert columns["b"].load().tolist() == ["x", "z"]


@pytest.mark.parametrize(
    ("suffix", "header", "names"),
    [
        (".tsv", "p(0,0)\tp(0,1)\ty", ["p(0,0)", "p(0,1)", "y"]),
        (".tsv", "a,b", ["a", "b"]),
        (".csv", '"price, EUR, net";"5"" x, y";z', ["price, EUR, net", '5" x, y', "z"]),
        (".csv", 'screen 5";a,b;z', ['screen 5"', "a,b", "z"]),
    ],
)
def test_commas_within_names_do_not_delimit(tmp_path, reader, suffix, header, names):
    delimiter = header[-2] if header[-2] in "\t;" else ","
    path = write(tmp_path / f"t{suffix}", f"{header}\n{delimiter.join(map(str, range(len(names))))}\n")
    assert list(read_columns(path, suffix)) == names


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["7", "-8", "0"], [7, -8, 0]),
        (["1.0", "2", " 3"], [1, 2, 3]),
        (["007", "7"], None),
        (["0xA", "10"], None),
        (["08:00", "17:30"], None),
        (["2024-01-01T00:00Z", "2024-01-01T02:00+02:00"], None),
        (["9223372036854775807", "1"], None),
        (["99999999999999999999", "1"], None),
        (["true", "NA"], ["true", None]),
    ],
)
def test_labels_are_numbers_only_where_their_text_says_no_more(tmp_path, reader, cells, expected):
    path = write(tmp_path / "t.csv", "a,y\n" + "".join(f"1,{cell}\n" for cell in cells))
    column = read_columns(path, ".csv", "y")["y"]
    is_number = expected is not None and expected[0] != "true"
    assert column.kind == (NUMBER if is_number else TEXT)
    assert column.load().tolist() == (expected or cells)


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["0xA", " 0XB"], NUMBER),
        (["-0xA", "0xB"], TEXT),
        (["0xA", "1.5"], TEXT),
        (["08:00", "17:30"], TEXT),
        (["2024-01-01T00:00Z", "2024-01-01T02:00+02:00"], TEXT),
        (["\u0661", "\u0662"], TEXT),
        (["007", "+8"], NUMBER),
    ],
)
def test_both_readers_take_the_same_for_numbers(tmp_path, reader, cells, kind):
    column = read_columns(write(tmp_path / "t.csv", "a,b\n" + "".join(f"{cell},1\n" for cell in cells)), ".csv")["a"]
    assert column.kind == kind
    if kind == NUMBER:
        assert_array_equal(column.load(), [int(cell, 16 if "x" in cell.lower() else 10) for cell in cells])


def test_a_value_may_span_lines_wherever_the_reader_cuts_the_file(tmp_path, reader):
    values = [f"{i}\n{'x' * 99}" for i in range(20_000)]
    path = write(tmp_path / "t.csv", "a,b\n" + "".join(f'1,"{value}"\n' for value in values))
    assert read_columns(path, ".csv")["b"].load().tolist() == values


@pytest.mark.parametrize("n_columns", [3, 60_000])
def test_rows_may_be_longer_than_a_mebibyte(tmp_path, reader, n_columns):
    cell = "x" * min(2_000_000 // n_columns, 100_000 if reader == "csv" else 2_000_000)
    text = ",".join(f"f{i}" for i in range(n_columns)) + f"\n{','.join([cell] * n_columns)}" * 3
    columns = read_columns(write(tmp_path / "t.csv", text), ".csv")
    assert len(columns) == n_columns
    assert columns[f"f{n_columns - 1}"].load().tolist() == [cell] * 3


def test_a_quote_left_open_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(columns_module, "BLOCK_BYTES", 1000)
    path = write(tmp_path / "t.csv", "a,b\n" + "1,2\n" * 1000 + '"' + "1,2\n" * 1000)
    with pytest.raises(DataError, match=r"a row is longer than 1,000 bytes: is a quote left open\?"):
        read_columns(path, ".csv")


def test_a_mark_of_the_byte_order_is_no_part_of_a_name(tmp_path, reader):
    assert list(read_columns(write(tmp_path / "t.csv", "a,b\n1,2\n", "utf-8-sig"), ".csv")) == ["a", "b"]


def test_compressed_csv(tmp_path, reader):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n1,2\n"))
    assert_array_equal(read_columns(path, ".csv")["b"].load(), [2])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "t.csv"),
        (b"a,b\n", "no rows"),
        (b"a,b\n1,2\n3\n", "as many values"),
        (b"a,a\n1,2\n", "more than one column named 'a'"),
        (b"a,b\n\xff\xfe,2\n", "UTF-8"),
    ],
)
def test_what_is_no_csv_is_refused(tmp_path, reader, content, words):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_columns(path, ".csv")
    assert "t.csv" in str(caught.value)


@pytest.fixture
def table():
    return pa.table(
        {
            "half": pa.array([1, 2, 3], pa.float16()),
            "whole": pa.array([1, None, 3], pa.int32()),
            "flag": pa.array([True, False, True]),
            "holes": pa.array([True, None, False]),
            "money": pa.array([1, 2, 3], pa.decimal128(5, 2)),
            "price": pa.array([Decimal("0.5"), 1, 2], pa.decimal128(5, 2)),
            "number": pa.array([2**53, 2**53 + 1, 2**53 + 2], pa.decimal128(38, 0)),
            "huge": pa.array([10**30, 1, 2], pa.decimal128(38, 0)),
            "text": pa.array(["a", None, "c"], pa.large_string()),
            "category": pa.array(["a", "b", None]).dictionary_encode(),
            "day": pa.array([1, 2, 3], pa.date32()),
            "list": pa.array([["a"], ["b"], []]),
        }
    )


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
def test_columns_of_arrow_and_parquet(tmp_path, table, suffix):
    from pyarrow import feather, parquet

    path = tmp_path / f"t{suffix}"
    (parquet.write_table if suffix == ".parquet" else feather.write_feather)(table, path)
    columns = read_columns(path, suffix)
    kinds = [column.kind for column in columns.values()]
    assert kinds[:10] == [NUMBER] * 8 + [TEXT] * 2
    assert kinds[10].startswith("date32")
    assert kinds[11].startswith("list")
    assert columns["half"].load().dtype == np.float16
    assert columns["flag"].load().dtype == bool
    assert columns["number"].load().tolist() == [2**53, 2**53 + 1, 2**53 + 2]
    for name, expected in {
        "whole": [1, np.nan, 3],
        "holes": [1, np.nan, 0],
        "money": [1, 2, 3],
        "price": [0.5, 1, 2],
        "huge": [1e30, 1, 2],
        "text": ["a", None, "c"],
        "category": ["a", "b", None],
    }.items():
        assert_array_equal(columns[name].load(), np.array(expected, columns[name].load().dtype))


@pytest.mark.parametrize("dtype", [pa.list_(pa.float32()), pa.list_(pa.float32(), 2), pa.large_list(pa.int16())])
def test_vectors_of_one_length_are_columns(tmp_path, dtype):
    from pyarrow import parquet

    vectors = [[1, 2], [3, 4], [5, 6]]
    parquet.write_table(
        pa.table({"a": [1, 2, 3], "e": pa.array(vectors, dtype), "b": [1, 2, 3]}), tmp_path / "t.parquet"
    )
    columns = read_columns(tmp_path / "t.parquet", ".parquet")
    assert list(columns) == ["a", "e[0]", "e[1]", "b"]
    assert columns["e[1]"].kind == NUMBER
    assert_array_equal(np.column_stack([columns["e[0]"].load(), columns["e[1]"].load()]), vectors)


def test_a_vector_takes_no_name_from_another_column(tmp_path):
    from pyarrow import parquet

    parquet.write_table(pa.table({"e[0]": [1, 2], "e": [[3.0, 4.0], [5.0, 6.0]]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"more than one column named 'e\[0\]'"):
        read_columns(tmp_path / "t.parquet", ".parquet")


@pytest.mark.parametrize("vectors", [[[1, 2], [3]], [[1, 2], None], [["a"], ["b"]], [[], []]])
def test_other_lists_are_no_numbers(tmp_path, vectors):
    from pyarrow import parquet

    dtype = None if any(vectors) else pa.list_(pa.float32())
    parquet.write_table(pa.table({"e": pa.array(vectors, dtype)}), tmp_path / "t.parquet")
    assert read_columns(tmp_path / "t.parquet", ".parquet")["e"].kind.startswith("list")


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_broken_files_are_refused(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    path.write_bytes(b"PAR1 and not much more")
    with pytest.raises(DataError, match=f"t{suffix} cannot be read as"):
        read_columns(path, suffix)


@pytest.mark.parametrize("suffix", [".parquet", ".feather"])
def test_damaged_pages_are_refused(tmp_path, suffix):
    from pyarrow import feather, parquet

    path, table = tmp_path / f"t{suffix}", pa.table({"a": [1.5, 2.5] * 500})
    if suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        feather.write_feather(table, path, compression="lz4")
    content = path.read_bytes()
    place = content.index(b"PAR1" if suffix == ".parquet" else bytes.fromhex("04224d18")) + 4
    path.write_bytes(content[:place] + b"\xff" * 8 + content[place + 8 :])
    with pytest.raises(DataError, match=rf"t{suffix} cannot be read as .* write it anew"):
        read_columns(path, suffix)


@pytest.mark.parametrize("damage", ["end", "middle", "begin"])
def test_damaged_compressed_csv_is_refused(tmp_path, reader, damage):
    rng = np.random.default_rng(0)
    content = bytearray(gzip.compress("\n".join(["a", *map(str, rng.normal(size=10_000))]).encode()))
    if damage == "end":
        del content[len(content) // 2 :]
    else:
        place = 10 if damage == "begin" else len(content) // 2
        content[place : place + 20] = b"\xff" * 20
    (tmp_path / "t.csv.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"t.csv.gz cannot be read as CSV"):
        read_columns(tmp_path / "t.csv.gz", ".csv")


@pytest.mark.parametrize("suffix", [".parquet", ".feather"])
def test_without_pyarrow_it_is_asked_for(tmp_path, monkeypatch, suffix):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'gpusoftmax\[data\]'"):
        read_columns(tmp_path / f"t{suffix}", suffix)
