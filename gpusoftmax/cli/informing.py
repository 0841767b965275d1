"""`gpusoftmax info`: what is installed, what computes, what is missing; or what a model file holds."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpusoftmax.cli.terminal import Terminal

NEEDED = ("numpy", "scipy", "scikit-learn", "threadpoolctl", "safetensors", "typer", "rich")
OPTIONAL = {  # distribution: what it is for, how to install it
    "pyarrow": ("Parquet, Arrow, fast CSV", "pip install 'gpusoftmax[data]'"),
    "matplotlib": ("pictures and reports", "pip install 'gpusoftmax[plots]'"),
    "onnx": ("exports to ONNX", "pip install 'gpusoftmax[onnx]'"),
    "pandas": ("results as data frames", "pip install pandas"),
}
CUPY = ("cupy-cuda13x", "cupy-cuda12x", "cupy")


def info(terminal: Terminal) -> None:
    """Show versions, processors and BLAS, the GPU or why there is none, and what could be installed."""
    result: dict[str, Any] = {
        "gpusoftmax": installed("gpusoftmax"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: installed(name) for name in NEEDED},
        "optional": {name: installed(name) for name in OPTIONAL} | {"cupy": cupy_version()},
        "n_processors": len(os.sched_getaffinity(0)),
        "blas": attempt(blas),
        "cuda": attempt(cuda),
    }
    missing = {name: ways for name, ways in OPTIONAL.items() if result["optional"][name] is None}
    terminal.say(f"gpusoftmax {result['gpusoftmax']}, Python {result['python']}, {result['platform']}")
    have = result["packages"] | {name: number for name, number in result["optional"].items() if number}
    terminal.say("With " + ", ".join(f"{name} {number or 'missing'}" for name, number in have.items()))
    terminal.say(f"CPU: {result['n_processors']} processors; {result['blas']}")
    terminal.say(f"GPU: {result['cuda']}")
    for name, (purpose, command) in missing.items():
        terminal.say(f"Missing: {name}, for {purpose}: {command}")
    terminal.answer(result)


def inform_of_model(terminal: Terminal, path: Path) -> None:
    """Show what a model file holds."""
    from gpusoftmax.persistence import load_model

    model = load_model(path)
    names = getattr(model, "feature_names_in_", None)
    changed = {name: value for name, value in model.get_params().items() if value != type(model)().get_params()[name]}
    terminal.say(f"{path}: {len(model.classes_):,} classes, {model.n_features_in_:,} features, {model.coef_.dtype}")
    terminal.say(f"Classes: {_some(model.classes_)}")
    terminal.say(f"Features: {'without names' if names is None else _some(names)}")
    terminal.say(f"Parameters: {', '.join(f'{name}={value!r}' for name, value in changed.items()) or 'the defaults'}")
    status = getattr(model, "status_", None)  # files of others may lack what a fit leaves
    figures = {"objective": model.objective_, "largest gradient": model.gradient_norm_, "passes": model.n_passes_}
    known = ", ".join(f"{name} {value:.6g}" for name, value in figures.items() if value is not None)
    terminal.say(f"The fit {'is not known' if status is None else status.sentence}: {known or 'no figures'}.")
    terminal.answer(
        {
            "model": path,
            "classes": model.classes_,
            "n_features": model.n_features_in_,
            "features": names,
            "dtype": str(model.coef_.dtype),
            "parameters": model.get_params(),
            "status": None if status is None else status.name,
            "objective": model.objective_,
            "gradient_norm": model.gradient_norm_,
            "n_iter": int(model.n_iter_[0]) if hasattr(model, "n_iter_") else None,  # not kept of folds
            "n_passes": model.n_passes_,
        }
    )


def _some(names, n_most: int = 10) -> str:
    more = f" and {len(names) - n_most:,} more" if len(names) > n_most else ""
    return ", ".join(map(str, names[:n_most])) + more


def installed(name: str) -> str | None:
    """Return the version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cupy_version() -> str | None:
    """Return the version of CuPy, whose distribution is named after the CUDA that it is built for."""
    return next((number for number in map(installed, CUPY) if number), None)


def attempt(probe) -> str:
    """Return what a probe says, or why it fails: this command never does."""
    try:
        return probe()
    except Exception as error:
        return " ".join(str(error).split()) or type(error).__name__


def blas() -> str:
    """Return which BLAS computes, with how many threads."""
    import numpy as np  # noqa: F401 - it loads its BLAS
    from threadpoolctl import threadpool_info

    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    return (
        "; ".join(f"{pool['internal_api']} {pool['version']} with {pool['num_threads']} threads" for pool in pools)
        or "no BLAS that threadpoolctl knows"
    )


def cuda() -> str:
    """Return the GPU in words."""
    from gpusoftmax.backends.cuda import load_cupy

    cupy = load_cupy("device='cuda'")
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    free, total = cupy.cuda.runtime.memGetInfo()
    return f"{properties['name'].decode()}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
