"""Floors: what no pass can do without. Their gradients are nobody's, so nothing is checked."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from bench.libraries.base import Pass, n_threads

CHUNK_BYTES = 1 << 18


@dataclass(frozen=True)
class TwoGemms:
    """The two matrix products of a pass, into arrays allocated once."""

    name: str = "two GEMMs"
    device: str = "cpu"
    settings: str = "X @ W, then X.T @ Z"

    def lay_out(self, W, b):
        return W

    def prepare_pass(self, data, params):
        Z, gradient = np.empty((len(data.X), data.n_classes), params.dtype), np.empty_like(params)

        def run():
            np.matmul(data.X, params, out=Z)
            np.matmul(data.X.T, Z, out=gradient)

        return Pass(run, None)


@dataclass(frozen=True)
class ReadOnce:
    """One read of X through memory: a sum of squares, every thread on its own rows."""

    name: str = "one read of X"
    device: str = "cpu"
    settings: str = "x @ x over chunks of 256 KB"

    def lay_out(self, W, b):
        return None

    def prepare_pass(self, data, params):
        parts = np.array_split(data.X.reshape(-1), n_threads())
        step = CHUNK_BYTES // data.X.itemsize
        pool = ThreadPoolExecutor(len(parts))

        def read(part):
            return sum(float(chunk @ chunk) for chunk in (part[i : i + step] for i in range(0, len(part), step)))

        return Pass(lambda: sum(pool.map(read, parts)), None, lambda: threadpool_limits(1, "blas"))
