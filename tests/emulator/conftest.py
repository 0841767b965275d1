"""What the emulator's tests share: compile and run a piece of CUDA, or skip where NVRTC is missing."""

import pytest

from emulator import toolchain
from emulator.cupy_standin import installed, real
from emulator.ptx import launch


@pytest.fixture(scope="session")
def nvrtc():
    """Skip, with the reason, where CUDA C++ cannot be compiled."""
    reason = toolchain.why_missing()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def real_cupy():
    """Skip where CuPy's names and signatures cannot be looked up."""
    if real.cupy() is None:
        pytest.skip("CuPy is not installed: its signatures are not known")


@pytest.fixture
def run(nvrtc):
    """Return a function that compiles CUDA C++ and interprets one of its kernels."""

    def run(source, args, grid=1, block=32, *, name="k", shared=0, arch="compute_90", **options):
        code = toolchain.compile_ptx(source, (name,), arch, ("-lineinfo",))
        return launch(code.ptx, code.symbols[name], grid, block, args, shared, **options)

    return run


@pytest.fixture
def run_body(run):
    """Return a function that runs the body of `k(T* out, int n)` with `i` as the thread's number in the grid."""

    def run_body(body, args, grid=1, block=32, parameters="float* out", **options):
        head = "const int i = blockIdx.x * blockDim.x + threadIdx.x;"
        return run(f'extern "C" __global__ void k({parameters}) {{ {head} {body} }}', args, grid, block, **options)

    return run_body


@pytest.fixture
def machine():
    """A machine with one imitated GPU."""
    with installed() as machine:
        yield machine


@pytest.fixture
def cp(machine):
    """The stand-in, as `import cupy` finds it."""
    import cupy

    return cupy
