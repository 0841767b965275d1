"""A strict stand-in for the part of CuPy that a trainer needs, for machines without a GPU."""

from .errors import CUBLASError, CUDARuntimeError, ImplicitTransfer, OutOfMemoryError
from .functions import FUNCTIONS, install_methods
from .install import installed
from .products import dot
from .state import Facts, machine

FUNCTIONS["dot"] = dot
install_methods()

__all__ = [
    "CUBLASError",
    "CUDARuntimeError",
    "Facts",
    "ImplicitTransfer",
    "OutOfMemoryError",
    "installed",
    "machine",
]
