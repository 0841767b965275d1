import errno
import os
import stat
from pathlib import Path

import pytest

from gpusoftmax.atomic_file import write_atomically


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def test_parts_are_written_in_order_and_nothing_else_is_left(tmp_path):
    write_atomically(tmp_path / "a", b"one ", memoryview(b"two"), b"")
    assert (tmp_path / "a").read_bytes() == b"one two"
    write_atomically(str(tmp_path / "a"), b"three")
    assert (tmp_path / "a").read_bytes() == b"three"
    assert names_in(tmp_path) == ["a"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_rights_are_those_that_the_umask_leaves(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


def test_bytes_and_name_reach_the_disk_in_this_order(tmp_path, monkeypatch):
    calls, sync, replace = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: calls.append(stat.S_ISDIR(os.fstat(file).st_mode)) or sync(file))
    monkeypatch.setattr(Path, "replace", lambda self, to: calls.append("replace") or replace(self, to))
    write_atomically(tmp_path / "a", b"x")
    assert calls == [False, "replace", True]


def raising(error):
    def fail(*_):
        raise error

    return fail


@pytest.mark.parametrize("target", [(os, "fsync"), (Path, "replace")])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt(), MemoryError()])
def test_the_old_file_survives_and_no_other_is_left(tmp_path, monkeypatch, target, error):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    monkeypatch.setattr(*target, raising(error))
    with pytest.raises(type(error)):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["a"]


def test_no_space_left_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", raising(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(
        OSError, match=r"No space left on device: its 3,000 bytes were not written.*Free some"
    ) as caught:
        write_atomically(tmp_path / "a", bytes(1000), bytes(2000))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "a"))


def test_a_real_limit_in_the_middle_of_a_write(tmp_path):
    resource = pytest.importorskip("resource")
    (tmp_path / "a").write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large: its 120,000 bytes were not written"):
            write_atomically(tmp_path / "a", bytes(60_000), bytes(60_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names_in(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Make its folder first: '.*/missing/a'"):
        write_atomically(tmp_path / "missing" / "a", b"x")


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a")
    for content in (b"one", b"two"):
        write_atomically(tmp_path / "link", content)
        assert (tmp_path / "real" / "a").read_bytes() == content
    assert (tmp_path / "link").is_symlink()


def test_what_is_no_ordinary_file_is_left_alone(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_atomically(tmp_path, b"x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no ordinary file"):
        write_atomically(tmp_path / "pipe", b"x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
