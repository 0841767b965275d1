"""A line search for many problems at once, one evaluation at a time.

Each problem holds its own bracket. After an evaluation, `is_acceptable` says which trial steps may be taken and
`next_step` proposes the others' next trial. Both see only values and slopes along the line, one per problem.
"""

from dataclasses import dataclass

import numpy as np

SUFFICIENT_DECREASE = 1e-4
CURVATURE = 0.9


@dataclass(frozen=True)
class Bracket:
    """What each problem's search knows: the line at step 0, and the steps known to be too short and too long."""

    value: np.ndarray
    slope: np.ndarray
    low: np.ndarray
    low_slope: np.ndarray
    high: np.ndarray

    @classmethod
    def open(cls, value: np.ndarray, slope: np.ndarray) -> "Bracket":
        """Return a fresh bracket: nothing is known beyond step 0."""
        return cls(value, slope, np.zeros_like(slope), slope.copy(), np.full_like(slope, np.inf))


def is_acceptable(bracket: Bracket, step, value, slope, noise: float):
    """Say which steps may be taken: those whose decrease the value shows, or the slope.

    Values tell apart two points only as long as their difference exceeds their rounding; slopes keep their accuracy
    near the minimum. So a step passes by Armijo's rule, or by approximate Wolfe (Hager & Zhang 2005, SIAM J. Optim. 16,
    170-192), which lets the value rise by ``noise · |value|``, or because the line still falls at its end: a convex
    function has then fallen by ``step · |slope|`` at least. What is not finite is never accepted.
    """
    armijo = value <= bracket.value + SUFFICIENT_DECREASE * step * bracket.slope
    flat = (value <= bracket.value + noise * np.abs(bracket.value)) & (
        slope <= (2 * SUFFICIENT_DECREASE - 1) * bracket.slope
    )
    return np.isfinite(value) & np.isfinite(slope) & (armijo | flat | (slope <= 0))


def is_too_short(bracket: Bracket, slope):
    """Say which acceptable steps end on a slope that is still nearly as steep as at the start."""
    return slope < CURVATURE * bracket.slope


def next_step(bracket: Bracket, step, slope, acceptable):
    """Return the next trial steps and the brackets they come from.

    A step that was acceptable but too short becomes the lower end; any other becomes the upper end. The new trial is
    the secant estimate of where the slope vanishes, held inside the bracket; without an upper end it grows fourfold at
    most.
    """
    finite = np.isfinite(slope)
    low = np.where(acceptable, step, bracket.low)
    low_slope = np.where(acceptable, slope, bracket.low_slope)
    high = np.where(acceptable, bracket.high, step)
    with np.errstate(all="ignore"):
        previous, previous_slope = bracket.low, bracket.low_slope
        secant = previous - previous_slope * (step - previous) / (slope - previous_slope)
    width = np.where(np.isfinite(high), high - low, 3 * step)
    # An upper end that the last trial did not improve means a kink: bisect, or the secant creeps.
    reach = np.where(np.isfinite(bracket.high), 0.5, np.where(np.isfinite(high), 0.9, 1.0))
    inside = np.clip(secant, low + 0.1 * width, low + reach * width)
    fallback = np.where(np.isfinite(high), low + np.where(finite, 0.5, 0.1) * width, 2 * step)
    trial = np.where(finite & np.isfinite(secant), inside, fallback)
    return trial, Bracket(bracket.value, bracket.slope, low, low_slope, high)
