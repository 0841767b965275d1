"""Every kernel and whole passes at tiny sizes, for compute-sanitizer to watch: python -m bench.gpu_check.tiny_run."""

import sys
from pathlib import Path

from bench.gpu_check import answers
from bench.gpu_check.base import Run


def main() -> int:
    """Run, and return 1 where an answer is wrong."""
    import cupy

    cupy.cuda.set_allocator(None)  # a block of the pool is larger than its array: overruns would go unseen
    run = Run(Path(), is_tiny=True)
    rows = answers.kernels(run) + answers.passes(run)
    return int(not all(row["is_right"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
