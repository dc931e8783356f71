"""Where an edge half computes, and in which type its frozen encoders do."""

from typing import Literal

import torch

from fednano.errors import SettingsInvalid
from fednano.model.parts import EdgeParts

DeviceChoice = Literal["auto", "cpu", "cuda", "mps"]
EncoderType = Literal["auto", "float32", "bfloat16"]


def choose_device(choice: DeviceChoice) -> torch.device:
    """The fastest there is for ``auto``. Raises SettingsInvalid where the one that is named is not there."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = next(name for name, is_there in present.items() if is_there) if choice == "auto" else choice
    if not present[name]:
        there = ", ".join(name for name, is_there in present.items() if is_there)
        raise SettingsInvalid(f"--device: torch finds no {name} device on this machine, only: {there}; give auto")
    return torch.device(name, 0) if name != "cpu" else torch.device("cpu")


def choose_encoder_type(choice: EncoderType, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 on a CUDA device that computes with it, float32 elsewhere: it keeps the bits there."""
    if choice == "auto":
        is_fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if is_fast else torch.float32
    return torch.bfloat16 if choice == "bfloat16" else torch.float32


def place(parts: EdgeParts, device: torch.device, encoder_type: torch.dtype) -> EdgeParts:
    """Moves the parts there, in place. Encoder and connector take the type; embedding and head stay float32."""
    for encoder in (parts.vision_encoder, parts.connector):
        encoder.to(device=device, dtype=encoder_type)
    is_tied = parts.head is not None and parts.head.weight is parts.token_embedding.weight
    parts.token_embedding.to(device)
    if parts.head is not None and is_tied:
        parts.head.weight = parts.token_embedding.weight
    elif parts.head is not None:
        parts.head.to(device)
    return parts
