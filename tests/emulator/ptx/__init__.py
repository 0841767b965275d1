"""An interpreter of the PTX that NVRTC emits, with memory checks, in NumPy."""

from .buffers import Buffer, SparseBuffer
from .faults import Fault, Unsupported
from .machine import launch
from .program import load_program

__all__ = ["Buffer", "Fault", "SparseBuffer", "Unsupported", "launch", "load_program"]
