"""FedProx's term (Li et al. 2020): what holds a client's adapters near the global ones while it trains them."""

import torch
from torch import Tensor, nn


class ProximalTerm:
    """(mu / 2) * |theta - theta_global|^2 over all trainable parameters; theta_global is where they stand now."""

    def __init__(self, adapters: nn.Module, mu: float) -> None:
        self._mu = mu
        self._pairs = [(parameter, parameter.detach().clone()) for parameter in adapters.parameters()] if mu else []

    def __call__(self) -> Tensor:
        """The term, differentiable: its gradient is mu * (theta - theta_global). With mu 0 it has none."""
        squares = [(parameter - start).square().sum() for parameter, start in self._pairs]
        return 0.5 * self._mu * torch.stack(squares).sum() if squares else torch.zeros(())
