"""The installed CuPy, of which the stand-in asks names and signatures only; it works without a driver."""

import functools
import importlib
import inspect


@functools.lru_cache
def cupy():
    """Return the real module, or None where it cannot be imported.  First called before the stand-in hides it."""
    try:
        return importlib.import_module("cupy")
    except Exception:  # a broken installation raises whatever it likes
        return None


@functools.cache
def signature(path):
    """Return the signature of cupy.<path>, or None when it is not known (ufuncs have none)."""
    found = lookup(path)
    if found is None:
        return None
    try:
        return inspect.signature(found)
    except (TypeError, ValueError):
        return None


def lookup(path):
    """Return cupy.<path> of the real CuPy, or None."""
    found = cupy()
    for name in path.split("."):
        if found is None:
            return None
        found = getattr(found, name, None)
    return found
