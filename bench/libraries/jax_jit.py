"""JAX: `jit(value_and_grad)` of softmax cross-entropy."""

from dataclasses import dataclass

from bench.libraries.base import Pass, need


@dataclass(frozen=True)
class Jax:
    """JAX on its default device."""

    name: str = "JAX"
    device: str = "cpu"
    settings: str = "jit(value_and_grad)"

    def lay_out(self, W, b):
        return W, b

    def prepare_pass(self, data, params):
        jax = need("jax", "JAX")
        jax.config.update("jax_enable_x64", True)  # float32 stays float32
        numpy = jax.numpy

        def loss_of(params, X, targets):
            log_y = jax.nn.log_softmax(X @ params[0] + params[1])
            if targets.ndim == 2:
                return -(targets * log_y).sum(axis=1).mean()
            return -numpy.take_along_axis(log_y, targets[:, None], axis=1).mean()

        evaluate = jax.jit(jax.value_and_grad(loss_of))
        params, X, targets = jax.device_put((params, data.X, data.targets))

        return Pass(
            lambda: jax.block_until_ready(evaluate(params, X, targets)),
            lambda result: (float(result[0]), *map(jax.device_get, result[1])),
        )
