"""Files that commands write: looked at before the work, not after it."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpusoftmax.exceptions import DataError


def check_output(path: Path | None, suffixes: Sequence[str], *inputs: Path) -> None:
    """Raise unless a file of one of these suffixes can be written, as far as can be known beforehand.

    Raises
    ------
    DataError
        Another suffix, or one of the files that are read.
    OSError
        There is no such folder, no right to write in it, or something there that is no file.
    """
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise DataError(f"{path} has no suffix that can be written: give it {' or '.join(suffixes)}.")
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "Is a folder: give the name of a file", str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "Is no ordinary file: give the name of one", str(path))
    if any(path.exists() and each.exists() and path.samefile(each) for each in inputs):
        raise DataError(f"{path} is read, and would be overwritten: give another name.")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "There is no such folder: make it first", str(folder))
    if not os.access(folder, os.W_OK):
        raise PermissionError(
            errno.EACCES, "Not allowed to write here: choose a folder in which you may write", str(folder)
        )


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give the name of a new file beside `path`, which takes its place when it is whole and is gone if it never is."""
    place = path.resolve()  # a link stays one
    temporary = place.with_name(f".{place.name}-{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        temporary.replace(place)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error  # libraries have words of their own
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
