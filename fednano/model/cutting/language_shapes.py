"""Which tensors a server half must have, asked of transformers, which is to load them."""

from collections.abc import Mapping
from typing import Any

import torch

from fednano.errors import ModelInvalid


def language_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of the causal language model with the settings ``config``; tied ones once."""
    try:
        # Here, for an edge half is cut without it.
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        message = "to cut a server half install fednano[server]; an edge half needs none of it (--only edge)"
        raise ModelInvalid(message) from error
    settings = {name: value for name, value in config.items() if name != "model_type"}
    try:
        language = AutoConfig.for_model(config["model_type"], **settings)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(language)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelInvalid(f"config.json: transformers makes no language model of text_config: {error}") from error
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=True)} | {
        name: tuple(buffer.shape) for name, buffer in model.named_buffers() if name in model.state_dict()
    }
