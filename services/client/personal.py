"""FedDPA-F's second stage (Yang et al. 2024): a client's own adapter beside the global one, which never leaves it.

Inference is x + w * global(x) + (1 - w) * local(x), where global(x) and local(x) are what each adapter adds. Adapters
are linear, so the two together are one adapter of twice the rank: R components of each.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fednano.model.adapter import NanoAdapters
from fednano.v1 import run_pb2


def personal_training(config: run_pb2.RunConfig) -> run_pb2.TrainConfig:
    """How the client's own adapter is tuned: as in any round, but for the number of epochs where that is said."""
    train = run_pb2.TrainConfig()
    train.CopyFrom(config.train)
    if config.personal.local_epochs:
        train.local_epochs, train.local_steps = config.personal.local_epochs, 0
    return train


def combined(
    whole: Mapping[str, Tensor], own: Mapping[str, Tensor], weight: float, config: run_pb2.AdapterConfig
) -> NanoAdapters:
    """Adapters that add ``weight`` times what ``whole`` does, and the rest to 1 times what ``own`` does."""
    # Twice the rank at twice alpha: the scale alpha / rank stays.
    adapters = NanoAdapters(
        list(config.modalities), hidden_size=config.hidden_size, rank=2 * config.rank, alpha=2 * config.alpha
    )
    state: dict[str, Tensor] = {}
    for name in whole:
        if name.endswith(".down.weight"):
            state[name] = torch.cat([whole[name], own[name]], dim=0)
        else:
            state[name] = torch.cat([weight * whole[name], (1 - weight) * own[name]], dim=1)
    adapters.load_state_dict(state)
    return adapters
