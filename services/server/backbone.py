"""The language model as the settings want it: on which device, in which type, with which weights."""

import torch

from fednano.errors import SettingsInvalid
from fednano.model.language import LanguageModel, load_language_model
from fednano.model.manifest import resolve_model
from fednano.telemetry import get_logger
from services.server.settings import ServerSettings

log = get_logger("server")


def load_backbone(settings: ServerSettings) -> LanguageModel:
    """Raises SettingsInvalid or ModelInvalid, which say what to change."""
    model = load_language_model(
        resolve_model(settings.model) / "server",
        getattr(torch, settings.compute_type),
        choose_device(settings.device),
        quantize=None if settings.quantize == "none" else settings.quantize,
    )
    log.info(
        "model_loaded",
        model=model.manifest.model,
        digest=model.manifest.digest,
        device=str(model.device),
        compute_type=settings.compute_type,
        quantize=settings.quantize,
    )
    return model


def choose_device(asked: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA where there is any. Raises SettingsInvalid where it is not there."""
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise SettingsInvalid(f"--device {asked}: give cpu, cuda, cuda:0 or auto") from None
    if device.type not in ("cpu", "cuda"):
        raise SettingsInvalid(f"--device {asked}: only cpu and cuda are supported; give auto for what is there")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        message = f"--device {asked}: torch sees {torch.cuda.device_count()} CUDA devices; give cpu, or auto"
        raise SettingsInvalid(message)
    return device
