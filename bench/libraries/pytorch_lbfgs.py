"""PyTorch's L-BFGS with its strong-Wolfe line search, full batch."""

from dataclasses import dataclass

from bench.libraries.base import need
from bench.libraries.pytorch import PyTorch, tensors

OPTIONS = {
    "line_search_fn": "strong_wolfe",
    "history_size": 100,  # of 10, 20, 50 and 100, fewest passes and seconds on digits, letters and mnist10k
    "tolerance_grad": 1e-6,  # at 1e-4 it ends short of scikit-learn's objective
    "max_iter": 20_000,
    "max_eval": 40_000,
}


@dataclass(frozen=True)
class PyTorchLBFGS:
    """PyTorch's optimiser on a device."""

    name: str = "PyTorch LBFGS"
    device: str = "cpu"
    settings: str = ", ".join(f"{name}={value}" for name, value in OPTIONS.items())

    def fit(self, data, record):
        X, targets, weight, bias = tensors(data, PyTorch().lay_out(*data.zeros()), self.device)
        torch = need("torch")
        optimizer = torch.optim.LBFGS([weight, bias], **OPTIONS)
        strength = (2 if data.n_classes == 2 else 1) / (data.C * len(X))  # two columns share what one would hold

        def params():
            return weight.detach().T.cpu().numpy(), bias.detach().cpu().numpy()

        def closure():
            optimizer.zero_grad()
            logits = torch.nn.functional.linear(X, weight, bias)
            value = torch.nn.functional.cross_entropy(logits, targets) + 0.5 * strength * weight.square().sum()
            value.backward()
            record.passes(1)
            record.point(params)
            return value

        optimizer.step(closure)
        return params()
