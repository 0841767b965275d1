"""Calling a function in a process of its own, where nothing has run before."""

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

from bench.results import error_of


def call(function: Callable, *args: Any, n_cpus: int | None = None, limit_seconds: float = 900) -> Any:
    """Return ``function(*args)`` from a new interpreter that may use `n_cpus` of this process's CPUs.

    Raises
    ------
    RuntimeError
        The function raised, the process died, or it was not done after `limit_seconds`.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, args), daemon=True)
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    try:
        if n_cpus is not None:
            os.sched_setaffinity(0, sorted(cpus)[:n_cpus])  # inherited, and heeded by every thread pool
        process.start()
    finally:
        if n_cpus is not None:
            os.sched_setaffinity(0, cpus)
    sender.close()
    try:
        if not receiver.poll(limit_seconds):
            raise RuntimeError(f"not done after {limit_seconds:.0f} s")
        is_done, answer = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"its process ended with exit code {process.exitcode}") from None
    finally:
        process.kill()
    if not is_done:
        raise RuntimeError(answer)
    return answer


def _answer(sender: Any, function: Callable, args: tuple) -> None:
    try:
        sender.send((True, function(*args)))
    except Exception as error:  # to be raised by `call`
        sender.send((False, error_of(error)["error"]))
