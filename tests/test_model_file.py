import hashlib
import json
import os
import struct
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy

from gpusoftmax.exceptions import ModelFileError
from gpusoftmax.model_file import pack, unpack

RNG = np.random.default_rng(0)
TENSORS = {"coef": RNG.normal(size=(50, 500)).astype(np.float32), "intercept": RNG.normal(size=50)}
METADATA = {"library_version": "7", "labels": [f"label {i}" for i in range(50)]}
SLACK_BYTES = 64_000  # of Python objects, whatever the size of the file


def packed(tensors=TENSORS, metadata=METADATA):
    return b"".join(pack(tensors, metadata))


def forged(header, body=b"", name="sha256"):
    """Return a file with a true hash: what nobody damaged, but somebody made."""
    if not isinstance(header, bytes):
        entry = {"dtype": "U8", "shape": [32], "data_offsets": [len(body), len(body) + 32]}
        header = json.dumps(header | {name: entry}).encode()
    content = struct.pack("<Q", len(header)) + header + body
    return content + hashlib.sha256(content).digest()


@pytest.fixture
def read(tmp_path):
    """Return a function that unpacks bytes."""

    with (tmp_path / "model").open("wb", buffering=0) as file:  # opening it anew takes a hundred times as long

        def read(data):
            file.seek(0)
            file.write(data)
            file.truncate()
            return unpack(file.name)

        yield read


def test_tensors_and_metadata_come_back(read):
    tensors, metadata = read(packed())
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, TENSORS[name], strict=True)
        assert tensor.flags.writeable
    assert metadata == METADATA


def test_the_same_content_is_the_same_bytes():
    assert len({packed() for _ in range(10)}) == 1


@pytest.mark.parametrize("layout", [np.asfortranarray, lambda a: np.repeat(a, 2, axis=1)[:, ::2], lambda a: a[::-1]])
def test_arrays_of_any_layout(read, layout):
    array = layout(TENSORS["coef"])
    np.testing.assert_array_equal(read(packed({"coef": array}))[0]["coef"], array)


def test_safetensors_reads_it_and_anyone_can_check_the_hash(tmp_path):
    data = packed()
    (tmp_path / "model").write_bytes(data)
    with safetensors.safe_open(tmp_path / "model", framework="np") as file:
        assert set(file.keys()) == {"coef", "intercept", "sha256"}
        assert json.loads(file.metadata()["gpusoftmax"])["format_version"] == 1
        assert file.get_tensor("sha256").tobytes() == data[-32:] == hashlib.sha256(data[:-32]).digest()


def corruptions(data, n, seed):
    """Yield so many damaged copies: bytes flipped, set, deleted or inserted, half of them in the header."""
    rng = np.random.default_rng(seed)
    n_header = 8 + int.from_bytes(data[:8], "little")
    while n:
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 1, 1, 2, 8])):
            at = int(rng.integers(n_header if rng.random() < 0.5 else len(data) - 8))
            match rng.integers(4):
                case 0:
                    damaged[at] ^= 1 << int(rng.integers(8))
                case 1:
                    damaged[at] = rng.integers(256)
                case 2:
                    del damaged[at]
                case 3:
                    damaged.insert(at, rng.integers(256))
        if damaged != data:
            n -= 1
            yield bytes(damaged)


def assert_refused(read, damaged, n_text=0):
    """Assert that a file is refused, and for no more memory than twice its size, or four times what is text of it."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    with pytest.raises(ModelFileError):
        read(damaged)
    peak = tracemalloc.get_traced_memory()[1] - before
    assert peak < max(2 * len(damaged), 4 * n_text) + SLACK_BYTES


@pytest.fixture
def traced():
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("traced")
def test_every_one_of_3000_corruptions_is_refused(read):
    for damaged in corruptions(packed(), 3000, seed=0):
        assert_refused(read, damaged)


@pytest.mark.usefixtures("traced")
def test_every_byte_of_the_header_counts(read):
    data = packed()
    for at in range(8 + int.from_bytes(data[:8], "little")):
        assert_refused(read, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def test_the_header_is_padded_by_what_is_checked_too():
    sizes = {int.from_bytes(packed(metadata={"name": "x" * n})[:8], "little") for n in range(8)}
    assert len(sizes) <= 2  # of eight lengths of text: the others are padding


@pytest.mark.usefixtures("traced")
def test_every_one_of_200_truncations_is_refused(read):
    data = packed()
    lengths = [*range(100), *np.linspace(100, len(data) - 33, 67).astype(int), *range(len(data) - 33, len(data))]
    assert len(lengths) == 200
    for length in lengths:
        assert_refused(read, data[:length])


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
MARK = {"__metadata__": {"gpusoftmax": '{"format":"gpusoftmax","format_version":1}'}}


def marked(text):
    return {"__metadata__": {"gpusoftmax": text}}


def test_a_forged_file_can_be_read(read):
    # The refusals below are for what is wrong with each, not for how they are made.
    assert read(forged(MARK | {"a": TENSOR}, bytes(8)))[0]["a"].tolist() == [0, 0]


FORGERIES = {
    "empty": b"",
    "another file": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "a pickle": b"\x80\x04\x95" + bytes(100),
    "header larger than the file": struct.pack("<Q", 1 << 62) + bytes(100),
    "header of nothing": forged(b""),
    "header is no JSON": forged(b"{" * 100),
    "header is no UTF-8": forged(b'{"\xff":1}'),
    "header is UTF-16": forged('{"a":1}'.encode("utf-16")),
    "header is a list": forged(b"[1]"),
    "header is nested deeply": forged(b"[" * 1_000_000),
    "header of another model": forged({"a": TENSOR}, bytes(8)),
    "metadata is text": forged(b'{"__metadata__":"x"}'),
    "metadata is nested deeply": forged(marked("[" * 1_000_000)),
    "metadata is a list": forged(marked("[]")),
    "metadata is a number": forged(marked("1")),
    "metadata has NaN": forged(marked('{"format":"gpusoftmax","format_version":1,"x":NaN}')),
    "metadata has a long number": forged(marked('{"format":"gpusoftmax","format_version":1' + "0" * 9999 + "}")),
    "format is another": forged(marked('{"format":"sklearn","format_version":1}')),
    "version is true": forged(marked('{"format":"gpusoftmax","format_version":true}')),
    "version is nothing": forged(marked('{"format":"gpusoftmax","format_version":0}')),
    "hash has another name": forged(MARK, name="hash"),
    "hash is not the last": forged(MARK | {"z": TENSOR}, bytes(8), name="z"),
    "two hashes": forged(MARK | {"sha256": TENSOR | {"dtype": "U8", "shape": [8]}}, bytes(8), name="z"),
    "offsets with a hole": forged(MARK | {"a": TENSOR | {"data_offsets": [8, 16]}}, bytes(16)),
    "offsets that overlap": forged(MARK | {"a": TENSOR, "b": TENSOR}, bytes(8)),
    "offsets outside": forged(MARK | {"a": TENSOR | {"data_offsets": [0, 1 << 40]}}, bytes(8)),
    "a huge shape": forged(MARK | {"a": TENSOR | {"shape": [1 << 40]}}, bytes(8)),
    "a shape that overflows": forged(MARK | {"a": TENSOR | {"shape": [1 << 62, 4, 4]}}, bytes(8)),
    "a huge shape of nothing": forged(MARK | {"a": TENSOR | {"shape": [0, 1 << 62], "data_offsets": [0, 0]}}),
    "a dtype that NumPy lacks": forged(MARK | {"a": TENSOR | {"dtype": "BF16", "shape": [4]}}, bytes(8)),
    "a dtype that nobody has": forged(MARK | {"a": TENSOR | {"dtype": "F31"}}, bytes(8)),
}


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("data", FORGERIES.values(), ids=FORGERIES)
def test_what_is_made_wrong_is_refused(read, data):
    assert_refused(read, data, n_text=len(data))


def test_a_newer_format_wants_a_newer_version(read):
    text = '{"format":"gpusoftmax","format_version":2,"library_version":"9.1"}'
    with pytest.raises(ModelFileError, match=r"gpusoftmax '9.1' wrote it in version 2.*update gpusoftmax"):
        read(forged(marked(text)))


def test_damage_says_so_and_what_to_do(read):
    data = packed()
    with pytest.raises(ModelFileError, match=r"does not match its SHA-256: it is damaged. Copy or download it again"):
        read(data[:-40] + b"\0" + data[-39:])


def test_a_large_file_that_is_no_model_is_not_read(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.write(forged({"a": TENSOR}, bytes(8)))
        file.truncate(1 << 40)  # sparse: it takes no space
    with pytest.raises(ModelFileError, match="not that of a gpusoftmax model"):
        unpack(tmp_path / "large")


@pytest.mark.usefixtures("traced")
def test_twice_the_file_is_allocated_at_most(tmp_path):
    (tmp_path / "model").write_bytes(packed({"coef": np.ones((1000, 2000), np.float32)}))
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    tensors, _ = unpack(tmp_path / "model")
    now, peak = (bytes_ - before for bytes_ in tracemalloc.get_traced_memory())
    assert peak < 2 * tensors["coef"].nbytes + SLACK_BYTES
    assert now < tensors["coef"].nbytes + SLACK_BYTES


def test_folders_and_pipes_are_no_models(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ModelFileError, match="no ordinary file"):
            unpack(path)
    with pytest.raises(FileNotFoundError):
        unpack(tmp_path / "missing")


def test_more_text_than_a_header_holds_is_refused():
    with pytest.raises(ModelFileError, match=r"take 100,000,\d+ bytes of text"):
        pack(TENSORS, {"labels": "x" * 100_000_000})
