"""Files that are written whole or not at all, whatever happens on the way."""

import contextlib
import errno
import os
import secrets
from pathlib import Path

REMEDIES = {
    errno.ENOSPC: "Free some space, or choose another disk",
    errno.EDQUOT: "Free some of your quota, or choose another disk",
    errno.ENOENT: "Make its folder first",
    errno.EACCES: "Choose a folder in which you may write",
    errno.EROFS: "Choose a folder in which you may write",
}


def write_atomically(path, *parts) -> None:
    """Write bytes to a file that is at every moment the old one or the new one.

    They go to a temporary file beside it, ``.gpusoftmax-….tmp``, which reaches the disk before it takes the name. An
    error leaves nothing behind; a killed process may leave the temporary file, which nobody reads.

    Parameters
    ----------
    path : str or path-like
        A symbolic link is followed.
    parts : bytes-like

    Raises
    ------
    OSError
        It could not be written; what was there is unchanged. The message says why and what to do.
    """
    path = Path(path).resolve()
    if path.exists() and not path.is_file():
        what = "is a folder" if path.is_dir() else "is no ordinary file"
        raise OSError(errno.EISDIR if path.is_dir() else errno.EINVAL, f"{what}: give the name of a file", str(path))
    temporary = path.with_name(f".gpusoftmax-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:  # made anew, with the rights that the umask leaves
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        n_bytes = sum(memoryview(part).nbytes for part in parts)
        remedy = REMEDIES.get(error.errno or 0, "See to that, or choose another place")
        raise OSError(
            error.errno,
            f"{error.strerror}: its {n_bytes:,} bytes were not written, and what was there is unchanged. {remedy}",
            str(path),
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Bring a new name to the disk, on systems that can: the file under it is whole in any case."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
