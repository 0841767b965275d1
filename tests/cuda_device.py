"""The CUDA device of the tests: CuPy's stand-in, whose kernels run in the PTX interpreter, or a real one.

``pytest --device cuda`` takes the machine's own, with nothing else changed.
"""

from contextlib import contextmanager

import pytest
from emulator import toolchain

is_real = False  # set by conftest


@contextmanager
def cuda(**machine):
    """Let `import cupy` find a CUDA device; skip where there is neither one nor NVRTC to imitate it with.

    Parameters are those of `emulator.cupy_standin.installed`, and are for the imitation only.
    """
    if is_real:
        if machine:
            pytest.skip("an imitated machine")
        yield None
        return
    if reason := toolchain.why_missing():
        pytest.skip(reason)
    from emulator.cupy_standin import installed

    with installed(**machine) as imitated:
        yield imitated
