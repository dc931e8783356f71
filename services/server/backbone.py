"""The language model as the settings want it: on which device, in which type, with which weights."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fednano.errors import PeerUnavailable, SettingsInvalid
from fednano.model.language import LanguageModel, load_language_model
from fednano.model.manifest import resolve_model
from fednano.model.ranks import Ranks
from fednano.model.spread import LeadModel, load_follower, load_lead
from fednano.telemetry import get_logger
from services.server.settings import ServerSettings

log = get_logger("server")


def load_backbone(settings: ServerSettings, ranks: Ranks | None = None) -> LanguageModel:
    """The whole model, or the lead's share of it. Raises SettingsInvalid or ModelInvalid, which say what to change."""
    folder, dtype = resolve_model(settings.model) / "server", getattr(torch, settings.compute_type)
    quantize = None if settings.quantize == "none" else settings.quantize
    if ranks is None:
        model = load_language_model(folder, dtype, choose_device(settings.device), quantize=quantize)
    else:
        model = load_lead(folder, dtype, ranks)
    log.info(
        "model_loaded",
        model=model.manifest.model,
        digest=model.manifest.digest,
        device=str(model.device),
        compute_type=settings.compute_type,
        quantize=settings.quantize,
        processes=ranks.size if ranks else 1,
    )
    return model


def join_ranks(settings: ServerSettings) -> Ranks | None:
    """The processes that hold the model together, once all are there; None where this one holds it alone."""
    if not settings.tensor_parallel:
        return None
    if not torch.distributed.is_torchelastic_launched():
        raise SettingsInvalid("--tensor-parallel: start with torchrun --nproc-per-node N -m services.server")
    if settings.quantize != "none":
        raise SettingsInvalid("--tensor-parallel spreads whole weights alone: leave --quantize out")
    if settings.device != "auto":
        raise SettingsInvalid("--tensor-parallel gives each process its own device: say --device auto")
    return Ranks.join()


def follow(settings: ServerSettings, ranks: Ranks) -> None:
    """A follower's life: until the lead ends. Signals are the lead's matter; torchrun sends them to all."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(settings.threads)
    folder = resolve_model(settings.model) / "server"
    follower = load_follower(folder, getattr(torch, settings.compute_type), ranks)
    log.info("following", rank=ranks.rank, device=str(ranks.device))
    try:
        follower.run()
    except RuntimeError as error:
        raise PeerUnavailable(f"rank {ranks.rank} has lost the others: {error}") from error


@contextmanager
def followers_of(model: LanguageModel) -> Iterator[None]:
    """Awake while the block runs, where the model has any; they end with it."""
    if not isinstance(model, LeadModel):
        yield
        return
    with model.leading():
        yield


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
