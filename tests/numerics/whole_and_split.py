"""The nano model whole in this process, and split over a real loopback connection, with the same edge half.

D: hidden size   P: image tokens
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch

from fednano.model.adapter import MODALITIES, NanoAdapters
from fednano.model.batch import EncodedExample
from fednano.model.edge import NanoEdge, image_embeds
from fednano.model.language import LanguageModel, load_language_model
from fednano.model.parts import load_edge, resolve_model
from fednano.prompt import Prompt
from fednano.rpc.channels import open_channel
from fednano.rpc.server import serving
from fednano.split.loss import LabelledLanguageModel
from fednano.split.remote import RemoteLanguageModel
from fednano.split.session import SessionTerms
from fednano.v1.split_service_pb2_grpc import SplitServiceStub, add_SplitServiceServicer_to_server
from services.server.model_thread import ModelThread
from services.server.servicer import SERVICE, SplitServicer
from services.server.settings import ServerSettings

QUESTIONS = ("how many circles are there ?", "which shape is red ?", "is it ?", "how many red shapes are there in it ?")
ANSWERS = ("3", "circle", "two red", "7")


def nano_language() -> LanguageModel:
    torch.set_num_threads(1)
    return load_language_model(resolve_model("nano") / "server")


def nano_edge(*, up_std: float) -> NanoEdge:
    """Adapters of rank 4 away from zero, the same at each call."""
    torch.manual_seed(7)
    parts = load_edge(resolve_model("nano") / "edge")
    adapters = NanoAdapters(MODALITIES, hidden_size=parts.manifest.hidden_size, rank=4, alpha=8)
    for modality in MODALITIES:
        adapter = adapters.of(modality)
        assert adapter is not None
        torch.nn.init.normal_(adapter.up.weight, std=up_std)
    return NanoEdge(parts, adapters)


def ragged_examples(edge: NanoEdge) -> list[EncodedExample]:
    """Prompts and answers of different lengths, each with a picture of noise."""
    processor = edge.parts.processor
    pixels_BCHW = torch.rand(len(QUESTIONS), 3, 64, 64) * 2 - 1
    return [
        EncodedExample(
            prompt_ids=tuple(processor.prompt_ids(Prompt(question=question))),
            answer_ids=tuple(processor.answer_ids(answer)),
            image_embeds_PD=embeds_PD,
        )
        for question, answer, embeds_PD in zip(QUESTIONS, ANSWERS, image_embeds(edge.parts, pixels_BCHW), strict=True)
    ]


@asynccontextmanager
async def remote_language(
    edge: NanoEdge, language: LanguageModel, *, loss_on_server: bool = False
) -> AsyncIterator[RemoteLanguageModel]:
    """For threads other than the caller's: wrap work in ``asyncio.to_thread``."""
    settings = ServerSettings(insecure=True, allow_loss_on_server=loss_on_server)
    thread = ModelThread(threads=1, max_queued=4, timeout_s=20.0)
    servicer = SplitServicer(language, thread, settings)
    services = {SERVICE: lambda server: add_SplitServiceServicer_to_server(servicer, server)}
    terms = SessionTerms(
        manifest=edge.parts.manifest,
        run="runs/test",
        peer="the server",
        progress_timeout_s=20.0,
        loss_on_server=loss_on_server,
    )
    remote_class = LabelledLanguageModel if loss_on_server else RemoteLanguageModel
    try:
        async with (
            serving(services, "127.0.0.1:0", settings.security, grace_s=0.2) as running,
            open_channel(running.address, settings.security) as channel,
        ):
            stub = SplitServiceStub(channel)
            yield remote_class(stub, asyncio.get_running_loop(), terms, give_up_after_s=20.0)
    finally:
        thread.close()
