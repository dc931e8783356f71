"""The LLM server from its settings to its end: loads the model, tries how to share passes, serves until a signal."""

import asyncio

import torch

from fednano.metrics import RpcMetrics, new_registry, serve_metrics
from fednano.model.language import LanguageModel
from fednano.model.ranks import Ranks
from fednano.rpc.gate import gate_terms
from fednano.rpc.listening import check_can_serve
from fednano.rpc.server import serving, until_signalled
from fednano.telemetry import get_logger
from fednano.v1.split_service_pb2_grpc import add_SplitServiceServicer_to_server
from services.server.backbone import follow, followers_of, join_ranks, load_backbone
from services.server.exactness import choose_batching
from services.server.memory_budget import may_pack
from services.server.metrics import ServerMetrics
from services.server.model_thread import ModelThread
from services.server.servicer import SERVICE, SplitServicer
from services.server.settings import ServerSettings

log = get_logger("server")
LAST_CALLS_S = 1.0


def run(settings: ServerSettings) -> None:
    """This process's part: all of it, or that of one of the processes which torchrun started."""
    ranks = join_ranks(settings)
    if ranks is None or ranks.is_lead:
        asyncio.run(serve(settings, ranks))
    else:
        follow(settings, ranks)


async def serve(settings: ServerSettings, ranks: Ranks | None = None) -> None:
    """Serves until SIGTERM or SIGINT, for all ``ranks``."""
    # A large model takes minutes to read: what is wrong with an address or a certificate is told before.
    check_can_serve(settings.listen, settings.security)
    # Not in the model's thread, whose deadline is that of a pass.
    model = await asyncio.to_thread(load_backbone, settings, ranks)
    with followers_of(model):
        settings = await asyncio.to_thread(_with_batching, settings, model)
        await _serve_model(settings, model)


async def _serve_model(settings: ServerSettings, model: LanguageModel) -> None:
    registry = new_registry()
    with serve_metrics(registry, settings.metrics_listen) as metrics_address, gate_terms(settings) as gate:
        thread = ModelThread(
            threads=settings.threads,
            max_queued=settings.max_queued_passes,
            timeout_s=settings.pass_timeout_s,
            metrics=ServerMetrics(registry),
        )
        try:
            log.info("starting", settings=settings.shown())
            servicer = SplitServicer(model, thread, settings)
            async with serving(
                {SERVICE: lambda server: add_SplitServiceServicer_to_server(servicer, server)},
                settings.listen,
                settings.security,
                # What is left after the drain is no step.
                grace_s=min(settings.shutdown_grace_s, LAST_CALLS_S),
                ready_file=settings.ready_file,
                metrics=RpcMetrics(registry),
                metrics_address=metrics_address,
                gate=gate,
            ) as running:
                await until_signalled()
                await running.health.enter_graceful_shutdown()
                await servicer.drain(settings.shutdown_grace_s)
        finally:
            thread.close()


def _with_batching(settings: ServerSettings, model: LanguageModel) -> ServerSettings:
    # In this thread: bits depend on how many there are.
    torch.set_num_threads(settings.threads)
    packed = _pack(settings, model)
    chosen = choose_batching(settings.batching, model)
    log.info(
        "batching",
        asked=settings.batching,
        chosen=chosen,
        row_tile=model.row_tile,
        decode_row_tile=model.decoder.row_tile,
        packed=packed,
    )
    return settings.model_copy(update={"batching": chosen})


def _pack(settings: ServerSettings, model: LanguageModel) -> str:
    """What has its weights laid out anew now, in a word for the log."""
    if settings.packed_weights == "on" and model.packed_bytes():
        model.pack()
        return "all"
    if settings.packed_weights == "auto" and may_pack(model):
        model.pack(decoding_only=True)
        return "decoding"
    return "nothing"
