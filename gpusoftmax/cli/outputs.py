"""Files that commands write: looked at before the work, not after it."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpusoftmax.exceptions import DataError
from gpusoftmax.tables import suffix_of


def check_output(path: Path | None, suffixes: Sequence[str]) -> None:
    """Raise unless a file of one of these suffixes can be written, as far as can be known beforehand.

    Raises
    ------
    DataError
        Another suffix.
    OSError
        There is no such folder, or no right to write in it.
    """
    if path is None:
        return
    if suffix_of(path) not in suffixes:
        raise DataError(f"{path} has no suffix that can be written: give it {' or '.join(suffixes)}.")
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "Is a folder: give the name of a file", str(path))
    folder = path.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "There is no such folder: make it first", str(folder))
    if not os.access(folder, os.W_OK):
        raise PermissionError(
            errno.EACCES, "Not allowed to write here: choose a folder in which you may write", str(folder)
        )


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give the name of a new file beside `path`, which takes its place when it is whole and is gone if it never is."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error  # libraries have words of their own
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
