"""Where the next solution of a path is likely to lie, given the last ones. Knows vectors and their parameter only."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from gpusoftmax.arrays import Arrays

LENGTH = 3  # solutions that a guess needs
MOST_GROWTH = 1.5  # of the velocity, from one step to the next
LONGEST = 4.0  # step ahead, in last ones: what lies farther is anyone's guess


@dataclass(frozen=True)
class Trail:
    """The last solutions of every problem's path, the newest last.

    Parameters
    ----------
    arrays : Arrays
        Where params live.
    params : tuple of arrays of shape (n_features + 1, n_problems, n_classes), at most three
    times : tuple of arrays of shape (n_problems,), host, float64
        The parameter of the path at each.
    """

    arrays: Arrays
    params: tuple = ()
    times: tuple[np.ndarray, ...] = ()

    def extended(self, params, time: np.ndarray) -> Self:
        """Return the trail that goes on to `params`, which nobody may modify then."""
        return replace(self, params=(*self.params, params)[-LENGTH:], times=(*self.times, time)[-LENGTH:])

    def step_to(self, time: np.ndarray):
        """Return the guessed change of params from the newest to `time`, or None; zero where there is no guess.

        The velocity of a path goes on to grow or to decay as it last did: between its last two steps, its component
        along the older changed by some factor. A path that runs off evenly (coefficients of separable classes grow with
        the logarithm of C) and one that settles (towards the unpenalised optimum, at the rate 1 / C) are both met.
        """
        if len(self.params) < LENGTH:
            return None
        oldest, middle, newest = self.params
        before, last = (later - earlier for earlier, later in ((oldest, middle), (middle, newest)))
        inner = self.arrays.xp.stack([(before * last).sum(axis=(0, 2)), (before * before).sum(axis=(0, 2))])
        along, square = self.arrays.to_host(inner).astype(np.float64)
        with np.errstate(all="ignore"):
            duration, last_duration, ahead = np.diff([*self.times, time], axis=0)
            growth = np.clip(along / square * duration / last_duration, 0, MOST_GROWTH)
            factor = growth ** ((last_duration + ahead) / (duration + last_duration)) * ahead / last_duration
            factor = np.where((ahead <= LONGEST * last_duration) & np.isfinite(factor), factor, 0.0)
        return self.arrays.to_device(factor[:, np.newaxis], last.dtype) * last

    def select(self, places, kept: np.ndarray) -> Self:
        """Return the trail of some problems, whose numbers `kept` are `places` where params are."""
        params, times = (each[:, places] for each in self.params), (each[kept] for each in self.times)
        return replace(self, params=tuple(params), times=tuple(times))
