"""NumPy as most would write it: whole n_rows x n_classes arrays."""

from dataclasses import dataclass

import numpy as np

from bench.libraries.base import Pass


@dataclass(frozen=True)
class Naive:
    """Plain NumPy."""

    name: str = "naive NumPy"
    device: str = "cpu"
    settings: str = "whole arrays"

    def lay_out(self, W, b):
        return W, b

    def prepare_pass(self, data, params):
        W, b = params
        X, targets, rows = data.X, data.targets, np.arange(len(data.X))

        def run():
            Z = X @ W + b
            Z -= Z.max(axis=1, keepdims=True)
            Y = np.exp(Z)
            total = Y.sum(axis=1, keepdims=True)
            Y /= total
            log_total = np.log(total).mean(dtype=np.float64)
            if data.is_soft:
                loss = log_total - np.vdot(targets, Z) / len(X)
                Y -= targets
            else:
                loss = log_total - Z[rows, targets].mean(dtype=np.float64)
                Y[rows, targets] -= 1
            return loss, X.T @ Y / len(X), Y.sum(axis=0) / len(X)

        return Pass(run, lambda result: result)
