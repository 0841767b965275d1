"""Errors and warnings that name what was given, what was expected and what to do."""

from sklearn.exceptions import ConvergenceWarning

__all__ = ["ConvergenceWarning", "DataError", "DeviceError", "ModelFileError", "NonFiniteError", "WorkspaceError"]

LOGITS_LEFT = "Logits left the range of {}: rescale the features as they were in fit, or give X as float64."


class WorkspaceError(ValueError):
    """The smallest possible block does not fit `memory_budget`; the message names a budget that would."""


class NonFiniteError(ValueError):
    """The logits, the loss or the gradient left the range of the compute dtype."""


class DeviceError(RuntimeError):
    """The device asked for cannot be used; the message says why and what to do."""


class DataError(ValueError):
    """A data file cannot be used as it is; the message says which part of it and what to do."""


class ModelFileError(ValueError):
    """A model file cannot be trusted, or a model cannot be written to one; the message says which file and why."""
