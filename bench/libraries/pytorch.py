"""PyTorch: `cross_entropy(linear(X))`, forward and backward, eager and compiled, on a CPU or a CUDA GPU."""

from dataclasses import dataclass

from bench.libraries.base import Pass, n_threads, need, need_cuda


def tensors(data, params, device: str):
    """Return X, targets and the leaves weight (n_classes, n_features) and bias on a device."""
    torch = need("torch", "PyTorch")
    if device == "cuda":
        need_cuda(torch)
    torch.set_num_threads(n_threads())  # its own choice leaves out half of hyper-threads
    X, targets, weight, bias = (torch.from_numpy(array).to(device) for array in (data.X, data.targets, *params))
    return X, targets, weight.requires_grad_(), bias.requires_grad_()


def make_pass(loss_of, weight, bias) -> Pass:
    """Return the evaluation of ``loss_of()`` and of its gradients in `weight` and `bias`."""
    torch = need("torch", "PyTorch")
    synchronise = torch.cuda.synchronize if weight.is_cuda else lambda: None

    def run():
        loss = loss_of()
        gradients = torch.autograd.grad(loss, (weight, bias))
        synchronise()
        return loss, *gradients

    return Pass(run, lambda result: (result[0].item(), result[1].T.cpu().numpy(), result[2].cpu().numpy()))


@dataclass(frozen=True)
class PyTorch:
    """PyTorch on a device, eager or compiled."""

    name: str = "PyTorch"
    device: str = "cpu"
    is_compiled: bool = False

    @property
    def settings(self) -> str:
        return "cross_entropy(linear(X))" + ", torch.compile" * self.is_compiled

    def lay_out(self, W, b):
        return W.T.copy(), b

    def prepare_pass(self, data, params):
        X, targets, weight, bias = tensors(data, params, self.device)
        torch = need("torch")

        def loss_of(X, targets, weight, bias):
            return torch.nn.functional.cross_entropy(torch.nn.functional.linear(X, weight, bias), targets)

        if self.is_compiled:
            loss_of = torch.compile(loss_of)
        return make_pass(lambda: loss_of(X, targets, weight, bias), weight, bias)
