"""How well models do, from their logits: rare, the same on every device.

Whatever namespace `xp` the arrays belong to computes it, as in `kernels.curvature`.
"""

import numpy as np

PIECE_NUMBERS = 1 << 14  # logits looked at together: NumPy copies what it finds the largest of


class ScoreSums:
    """Running sums of loss, of correct rows, of curvature and of row weights, each (n_sets, n_problems) in float64.

    Curvature is the trace of the softmax's Jacobian, ``s_i (1 - ‖y_i‖²)``: how much of it a metric should see.

    The rows of a set are those to which it gives weight: rows of training, rows held out.
    """

    def __init__(self, xp, n_sets: int, n_problems: int):
        self.xp = xp
        self.loss, self.correct, self.spread, self.weight = (xp.zeros((n_sets, n_problems)) for _ in range(4))

    def add(self, other: "ScoreSums") -> None:
        self.loss += other.loss
        self.correct += other.correct
        self.spread += other.spread
        self.weight += other.weight


def add_scores(z, targets, weights, sums: ScoreSums) -> None:
    """Add some rows' scores to the sums; see `kernels.reference.scores`.

    Overwrites logits z (n_problems, n_classes, rows); weights (rows, n_sets · n_problems) or (rows, 1).
    """
    n_problems, n_classes, n_rows = z.shape
    step = max(1, PIECE_NUMBERS // (n_problems * n_classes))
    for start in range(0, n_rows, step):
        rows = slice(start, start + step)
        _add_piece(z[:, :, rows], targets[rows], weights[rows], sums)


def _add_piece(z, targets, weights, sums: ScoreSums) -> None:
    xp, (n_problems, _, n_rows) = sums.xp, z.shape
    problems, rows = xp.arange(n_problems)[:, np.newaxis], xp.arange(n_rows)
    likeliest = z.argmax(axis=1)
    z -= z.max(axis=1, keepdims=True)
    if targets.ndim == 1:
        correct, given = likeliest == targets, z[problems, targets, rows]
    else:
        correct, given = targets[rows, likeliest], xp.einsum("pkn,nk->pn", z, targets)
    total = xp.exp(z, out=z).sum(axis=1)
    loss = xp.log(total) - given
    z /= total[:, np.newaxis]
    spread = xp.einsum("pkn,pkn->pn", z, 1 - z)  # no cancellation where the model is sure
    shape = (*sums.loss.shape, n_rows)
    weights = xp.broadcast_to(weights.T.reshape(-1, n_problems if weights.shape[1] > 1 else 1, n_rows), shape)
    weights = weights.astype(np.float64)
    sums.loss += (weights * loss).sum(axis=2)
    sums.correct += (weights * correct).sum(axis=2)
    sums.spread += (weights * spread).sum(axis=2)
    sums.weight += weights.sum(axis=2)
