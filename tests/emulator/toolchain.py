"""NVRTC and ptxas without a GPU: CUDA C++ to PTX, and PTX to the facts ptxas reports.

`cupy.RawModule.compile()` and `cupy.RawKernel` ask the CUDA driver for the device and fail without one,
so this module calls `cupy.cuda.nvrtc` directly.  ptxas comes from the `nvidia-cuda-nvcc` wheel.
"""

import functools
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple


class CompileError(Exception):
    """NVRTC or ptxas refused the source; the message is its log."""


class Compiled(NamedTuple):
    """A module in PTX.  `symbols` maps a requested name to the name in the PTX."""

    ptx: str
    symbols: dict[str, str]


class KernelFacts(NamedTuple):
    """What ptxas says about one kernel; bytes are per thread, except `shared_bytes` (static, per block)."""

    registers: int
    spill_bytes: int  # stores and loads
    stack_bytes: int
    shared_bytes: int


@functools.lru_cache
def _nvrtc():
    """CuPy's bindings, kept for the time when the stand-in hides CuPy."""
    from cupy.cuda import nvrtc

    nvrtc.getVersion()  # loads the library
    return nvrtc


def why_missing():
    """Return why NVRTC cannot be used here, or None."""
    try:
        _nvrtc()
    except Exception as error:  # a missing library is an ImportError, a RuntimeError or an OSError
        return f"NVRTC cannot be loaded: {type(error).__name__}: {error}".split("\n")[0]
    return None


def nvrtc_version():
    """Return (major, minor)."""
    return _nvrtc().getVersion()


@functools.lru_cache(maxsize=512)
def compile_ptx(source, names, arch="compute_90", options=()):
    """Compile CUDA C++ to PTX.

    Parameters
    ----------
    source : str
    names : tuple of str
        Kernel names or name expressions such as ``"kernel<float, 4>"``.
    arch : str
        Virtual architecture, for example ``"compute_90"``.
    options : tuple of str
        Further NVRTC options.  C++17 is the default, as in CuPy.
    """
    nvrtc = _nvrtc()
    standard = () if any("std=" in option for option in options) else ("--std=c++17",)
    program = nvrtc.createProgram(source, "kernels.cu", (), ())
    try:
        for name in names:
            nvrtc.addNameExpression(program, name)
        try:
            nvrtc.compileProgram(program, (f"--gpu-architecture={arch}", *standard, *options))
        except nvrtc.NVRTCError as error:
            raise CompileError(nvrtc.getProgramLog(program)) from error
        ptx = _text(nvrtc.getPTX(program))
        return Compiled(ptx, {name: _text(nvrtc.getLoweredName(program, name)) for name in names})
    finally:
        nvrtc.destroyProgram(program)


def _text(value):
    return (value.decode() if isinstance(value, bytes) else value).rstrip("\0")


def find_ptxas():
    """Return the path of the ptxas installed by the nvidia-cuda-nvcc wheel.

    A ptxas older than NVRTC rejects its PTX ("Unsupported .version"), so the one on PATH is not used.
    """
    for folder in sys.path:
        found = sorted(Path(folder or ".").glob("nvidia/*/bin/ptxas"))
        if found:
            return str(found[0])
    raise FileNotFoundError("ptxas not found: pip install nvidia-cuda-nvcc, in the version of NVRTC")


@functools.lru_cache(maxsize=512)
def ptxas_facts(ptx, arch):
    """Assemble PTX for one architecture (``"sm_90"``); return {PTX name: KernelFacts}."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernels.ptx")
        source.write_text(ptx, encoding="utf-8")
        command = [find_ptxas(), "-v", f"-arch={arch}", "-o", str(Path(folder, "out.cubin")), str(source)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise CompileError(result.stderr or result.stdout)
    return _read_facts(result.stderr + result.stdout)


def _read_facts(report):
    facts, name, stack, spill = {}, None, 0, 0
    for line in report.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)'", line):
            name = match[1]
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, spill = int(match[1]), int(match[2]) + int(match[3])
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            facts[name] = KernelFacts(int(match[1]), spill, stack, int(shared[1]) if shared else 0)
    return facts
