"""Pictures of fits and models, on matplotlib Axes. They change no style but that of what they draw."""

from gpusoftmax.plots.coefficients import top_features
from gpusoftmax.plots.confusion import confusion_matrix
from gpusoftmax.plots.histories import convergence
from gpusoftmax.plots.regularization import regularization_path
from gpusoftmax.plots.reliability import reliability_diagram

__all__ = ["confusion_matrix", "convergence", "regularization_path", "reliability_diagram", "top_features"]
