"""Adam with a learning rate a group of parameters."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.adam import adam

from pipeline.backends._shared import LayerWeights
from pipeline.core.sections import LearningRates
from pipeline.training.checkpoints import State

Groups = list[tuple[list[nn.Parameter], float]]  # parameters with their learning rate


class Adam:
    """Adam (Kingma and Ba, 2015) with a learning rate a group, on torch's functional form.

    torch.optim.Adam is the same arithmetic, but importing the compiler that it registers with takes over a second,
    which is a third of what a small run costs.
    """

    def __init__(self, groups: Groups, *, weight_decay: float) -> None:
        self._weight_decay = weight_decay
        self._groups = [
            (parameters, rate, [(torch.zeros_like(p), torch.zeros_like(p), torch.tensor(0.0)) for p in parameters])
            for parameters, rate in groups
        ]

    @torch.no_grad()
    def step(self, *, factor: float = 1.0, clip: float | None = None) -> None:
        """Update every parameter that has a gradient, and clear the gradients.

        factor: on all learning rates. clip: the largest norm of all gradients together, which are scaled down to it.
        """
        if clip is not None:
            nn.utils.clip_grad_norm_([p for parameters, _, _ in self._groups for p in parameters], clip)
        for parameters, rate, states in self._groups:
            live = [(p, p.grad, *state) for p, state in zip(parameters, states, strict=True) if p.grad is not None]
            if live:
                values, gradients, means, squares, steps = (list(column) for column in zip(*live, strict=True))
                adam(
                    values, gradients, means, squares, [], steps,
                    foreach=None, fused=None, capturable=False, differentiable=False, amsgrad=False, maximize=False,
                    beta1=0.9, beta2=0.999, eps=1e-8, lr=rate * factor, weight_decay=self._weight_decay,
                )  # fmt: skip
            for parameter in parameters:
                parameter.grad = None

    def state(self) -> State:
        """Running means and squares of the gradients and the number of steps, of every parameter."""
        return {
            f"{i}.{j}.{name}": tensor
            for i, (_, _, states) in enumerate(self._groups)
            for j, state in enumerate(states)
            for name, tensor in zip(("mean", "square", "step"), state, strict=True)
        }

    def load(self, state: State) -> None:
        """Take up a state that `state` gave."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])


def groups(backend: nn.Module, loss: nn.Module, rates: LearningRates) -> Groups:
    """Parameters with their learning rates: the loss's vectors, the layer weightings, the rest of the backend."""
    weightings = [p for module in backend.modules() if isinstance(module, LayerWeights) for p in module.parameters()]
    special = {id(p) for p in weightings}
    rest = [p for p in backend.parameters() if id(p) not in special]
    return [(rest, rates.backend), (list(loss.parameters()), rates.centroids), (weightings, rates.layers)]
