"""What a command says, and where: people's text on standard error, JSON or predictions on standard output."""

import contextlib
import errno
import json
import math
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TextIO

import typer

ERROR, INTERRUPTED = 1, 130
STDOUT = "standard output"


class Terminal:
    """A command's connection to its user, for as long as it runs: errors inside become one line and an exit code.

    Parameters
    ----------
    is_json : bool
        Write the answer, or the error, as one JSON object to standard output.
    is_quiet : bool
        Leave out text for people, but for warnings and errors.
    is_debug : bool
        Let errors through, with their tracebacks.
    """

    def __init__(self, *, is_json: bool = False, is_quiet: bool = False, is_debug: bool = False):
        self.is_json = is_json
        self.is_quiet = is_quiet
        self.is_debug = is_debug

    @property
    def shows_progress(self) -> bool:
        return not self.is_quiet and sys.stderr.isatty()

    def say(self, text: str = "") -> None:
        """Show text, unless quiet."""
        if not self.is_quiet:
            self._show(text)

    def say_table(self, columns: Mapping[str, list], *, left: Sequence[str] = (), title: str | None = None) -> None:
        """Show columns side by side, some of them to the left, unless quiet."""
        if self.is_quiet:
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in columns:
            table.add_column(name, justify="left" if name in left else "right", overflow="fold")
        for row in zip(*columns.values(), strict=True):
            table.add_row(*(Text(shown(cell)) for cell in row))
        Console(stderr=True).print(table)

    def answer(self, result: Mapping[str, Any]) -> None:
        """Write what a command found out as JSON, where that is asked for."""
        if self.is_json:
            write_json(result)

    def warn(self, text: str) -> None:
        self._show(f"Warning: {' '.join(text.split())}")

    def _show(self, text: str) -> None:
        if sys.stderr.isatty():  # what is read by programs, or kept in a file, is not broken into lines
            text = textwrap.fill(
                text, max(20, shutil.get_terminal_size().columns - 1), break_long_words=False, break_on_hyphens=False
            )
        sys.stderr.write(f"{text}\n")

    def __enter__(self) -> Self:
        self._catcher = warnings.catch_warnings()
        self._catcher.__enter__()
        warnings.simplefilter("ignore")  # what is meant for programmers
        warnings.simplefilter("always", UserWarning)
        # Names are matched by the command line itself, which gives models arrays.
        warnings.filterwarnings("ignore", "X does not have valid feature names", UserWarning)
        warnings.showwarning = lambda message, *_, **__: self.warn(str(message))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._catcher.__exit__(kind, error, traceback)
        if isinstance(error, KeyboardInterrupt):
            self._show("Interrupted: nothing more was written.")
            raise typer.Exit(INTERRUPTED) from None
        if self.is_debug or not isinstance(error, Exception) or is_typers(error):
            return
        text = in_words(error)
        self._show(f"Error: {text}")
        if isinstance(error, OSError) and error.filename == STDOUT:  # there is no way left to say it in JSON
            with contextlib.suppress(OSError):  # what it still holds must not fail again at the interpreter's end
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        elif self.is_json:
            write_json({"error": text})
        raise typer.Exit(ERROR) from None


def is_typers(error: Exception) -> bool:
    """Whether typer has an answer to it: wrong usage, an end that was asked for, a reader that has gone."""
    return isinstance(error, typer.BadParameter | typer.Exit | typer.Abort | BrokenPipeError)


def in_words(error: Exception) -> str:
    """Return what went wrong and what to do, in one line."""
    from gpusoftmax.exceptions import DeviceError

    message = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        is_bare = error.strerror == os.strerror(error.errno)  # others say what to do
        what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        return f"{what}{ADVICE.get(error.errno, '') if is_bare else ''}".rstrip(".") + "."
    if isinstance(error, MemoryError):
        return f"There is too little memory ({message or 'no more is known'}): take fewer rows or features."
    if isinstance(error, ValueError | TypeError | ImportError | OSError | DeviceError):
        return message  # written for people
    return f"{type(error).__name__}: {message}. This should not happen: run it with --debug, and report what it says."


ADVICE = {
    errno.ENOENT: ": check the name, or make its folder",
    errno.EISDIR: ": give the name of a file",
    errno.EACCES: ": choose a file that you may read, or a folder in which you may write",
    errno.EPERM: ": choose a file that you may read, or a folder in which you may write",
    errno.EROFS: ": choose another folder",
    errno.ENOSPC: ": free some, or choose another disk",
    errno.EDQUOT: ": free some of your quota, or choose another disk",
}


def shown(value: Any) -> str:
    """Return a value as a table shows it."""
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def write_json(result: Mapping[str, Any]) -> None:
    """Write one line of JSON to standard output: NaN as null, infinities as text, NumPy's values as Python's.

    What standard output cannot encode is escaped.
    """
    value = plain(result)
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    with standard_output() as stdout:
        try:
            text.encode(stdout.encoding or "utf-8")
        except UnicodeEncodeError:
            text = json.dumps(value, allow_nan=False)
        stdout.write(f"{text}\n")


@contextlib.contextmanager
def standard_output() -> Iterator[TextIO]:
    """Give standard output, and let its errors be known as such."""
    try:
        yield sys.stdout
        sys.stdout.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, STDOUT) from error


def plain(value: Any) -> Any:
    """Return a value in types that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if type(value).__module__ == "numpy":
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
