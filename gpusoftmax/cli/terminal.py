"""What a command says, and where: people's text on standard error, one JSON object or predictions on standard output."""

import errno
import json
import math
import sys
import warnings
from collections.abc import Mapping
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import typer

OURS = (ValueError, TypeError, ImportError, OSError, MemoryError, RuntimeError)  # whose messages are written for people
ERROR, INTERRUPTED = 1, 130


class Terminal:
    """A command's connection to its user, for as long as it runs: errors inside become one line and an exit code.

    Parameters
    ----------
    is_json : bool
        Write `result`, or the error, as one JSON object to standard output.
    is_quiet : bool
        Leave out text for people, but for warnings and errors.
    is_debug : bool
        Let errors through, with their tracebacks.
    """

    def __init__(self, *, is_json: bool = False, is_quiet: bool = False, is_debug: bool = False):
        self.is_json = is_json
        self.is_quiet = is_quiet
        self.is_debug = is_debug
        self.result: dict[str, Any] | None = None

    @cached_property
    def console(self) -> Any:
        from rich.console import Console

        return Console(stderr=True, highlight=False, markup=False)

    @property
    def shows_progress(self) -> bool:
        return not self.is_quiet and sys.stderr.isatty()

    def say(self, text: Any = "") -> None:
        """Show text, or something that rich can draw, unless quiet."""
        if not self.is_quiet:
            self._show(text)

    def say_table(self, columns: Mapping[str, list], *, title: str | None = None) -> None:
        """Show columns side by side, numbers to the right, unless quiet."""
        from rich.table import Table

        table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name, cells in columns.items():
            is_text = any(isinstance(cell, str) for cell in cells)
            table.add_column(name, justify="left" if is_text else "right", overflow="fold")
        for row in zip(*columns.values(), strict=True):
            table.add_row(*map(shown, row))
        self.say(table)

    def warn(self, text: str) -> None:
        self._show(f"Warning: {' '.join(text.split())}")

    def _show(self, text: Any) -> None:
        # What is read by programs, or kept in a file, is not broken into lines as for a window.
        self.console.print(text, soft_wrap=isinstance(text, str) and not self.console.is_terminal)

    def __enter__(self) -> Self:
        self._catcher = warnings.catch_warnings()
        self._catcher.__enter__()
        # Names are matched by the command line itself, which gives models arrays.
        warnings.filterwarnings("ignore", "X does not have valid feature names", UserWarning)
        warnings.showwarning = lambda message, *_, **__: self.warn(str(message))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._catcher.__exit__(kind, error, traceback)
        if error is None:
            if self.is_json and self.result is not None:
                write_json(self.result)
            return
        if isinstance(error, KeyboardInterrupt):
            self._show("Interrupted: nothing more was written.")
            raise typer.Exit(INTERRUPTED) from None
        if self.is_debug or isinstance(error, BrokenPipeError) or not isinstance(error, Exception) or is_usage(error):
            return  # typer has answers to a reader that has gone, and to its own exceptions
        text = in_words(error)
        self._show(f"Error: {text}")
        if self.is_json:
            write_json({"error": text})
        raise typer.Exit(ERROR) from None


def is_usage(error: BaseException) -> bool:
    """Whether it is typer's own: a wrong option, with exit code 2, or an end that was asked for."""
    return isinstance(error, typer.Exit | typer.Abort | typer.BadParameter)


def in_words(error: Exception) -> str:
    """Return what went wrong and what to do, in one line."""
    message = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        return f"{what}{ADVICE.get(error.errno or 0, '.')}"
    if isinstance(error, MemoryError):
        return f"There is too little memory ({message or 'no more is known'}): take fewer rows or features."
    if isinstance(error, OURS):
        return message
    return f"{type(error).__name__}: {message}. This should not happen: run it again with --debug, and report what it says."


ADVICE = {
    errno.ENOENT: ": check the name, or make its folder.",
    errno.EISDIR: ": give the name of a file.",
    errno.EACCES: ": choose a file that you may read, or a folder in which you may write.",
    errno.EPERM: ": choose a file that you may read, or a folder in which you may write.",
    errno.EROFS: ": choose another folder.",
    errno.ENOSPC: ": free some, or choose another disk.",
    errno.EDQUOT: ": free some of your quota, or choose another disk.",
}


def shown(value: Any) -> str:
    """Return a value as a table shows it."""
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def write_json(result: Mapping[str, Any]) -> None:
    """Write one line of JSON to standard output: NaN as null, infinities as text, NumPy's values as Python's."""
    json.dump(plain(result), sys.stdout, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")
    sys.stdout.flush()


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
