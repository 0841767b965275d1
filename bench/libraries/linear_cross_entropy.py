"""Fused linear + cross-entropy of PyTorch itself, of Liger and of Cut Cross-Entropy: logits in chunks or on chip."""

from dataclasses import dataclass

from bench.libraries.base import UnavailableError, need
from bench.libraries.pytorch import make_pass, tensors


def _pytorch(X, targets, weight, bias):
    torch = need("torch", "PyTorch")
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise UnavailableError(f"needs a PyTorch with linear_cross_entropy, this one is {torch.__version__}")
    if len(weight) <= X.shape[1]:
        raise UnavailableError("needs more classes than features: below that PyTorch advises against its chunks")
    options = torch.nn.LinearCrossEntropyOptions()
    linear_cross_entropy = torch.nn.functional.linear_cross_entropy
    return lambda: linear_cross_entropy(X, weight, targets, linear_bias=bias, options=options)


def _liger(X, targets, weight, bias):
    functional = need("liger_kernel.transformers", "liger-kernel")
    loss = functional.LigerFusedLinearCrossEntropyLoss()
    return lambda: loss(weight, X, targets, bias)


def _cut_cross_entropy(X, targets, weight, bias):
    linear_cross_entropy = need("cut_cross_entropy", "cut-cross-entropy").linear_cross_entropy
    return lambda: linear_cross_entropy(X, weight, targets, bias=bias)


KERNELS = {"PyTorch linear_cross_entropy": _pytorch, "Liger": _liger, "Cut Cross-Entropy": _cut_cross_entropy}


@dataclass(frozen=True)
class LinearCrossEntropy:
    """One of `KERNELS` on a device."""

    kernel: str
    device: str = "cuda"
    settings: str = "defaults"

    @property
    def name(self) -> str:
        return self.kernel + " CUDA" * (self.device == "cuda")

    def lay_out(self, W, b):
        return W.T.copy(), b

    def prepare_pass(self, data, params):
        if data.is_soft:
            raise UnavailableError(f"needs labels: {self.kernel} takes no soft targets")
        X, targets, weight, bias = tensors(data, params, self.device)
        return make_pass(KERNELS[self.kernel](X, targets, weight, bias), weight, bias)
