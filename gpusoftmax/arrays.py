"""Where arrays live: what the rooms above ask of a device to compute with its arrays."""

from typing import Any, Protocol

import numpy as np


class Arrays(Protocol):
    """The functions for arrays of one place, and the only ways in and out of it."""

    @property
    def xp(self) -> Any:
        """The namespace of functions for these arrays."""

    def to_device(self, array, dtype=None):
        """Return a NumPy array there."""

    def to_host(self, array) -> np.ndarray:
        """Return an array of that place as a NumPy array: where a host waits for its device."""

    def inverse_cholesky(self, A):
        """Return T with ``Tᵀ A T = I``, upper triangular, for a symmetric A (n, n), which it overwrites.

        Raises LinAlgError where A is not positive definite in its precision.
        """

    def eigenvectors(self, A, B) -> tuple[np.ndarray, Any]:
        """Return w (n,), on the host, and T with ``Tᵀ A T = diag(w)`` and ``Tᵀ B T = I``; overwrites B.

        Raises LinAlgError where B is not positive definite in its precision.
        """
