"""SplitService between gRPC and the sessions; it translates and decides nothing but how many streams are open."""

from collections.abc import AsyncIterable, AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import torch

from fednano.errors import WireError
from fednano.model.language import LanguageModel
from fednano.model.quantized import Precision
from fednano.security.identity import peer_identity
from fednano.v1 import split_service_pb2 as pb
from fednano.v1 import split_service_pb2_grpc as rpc
from fednano.v1 import tensor_pb2 as tpb
from fednano.wire.encodings import ENCODINGS_BY_NAME
from services.server.cache_memory import CacheMemory
from services.server.decoding import DecodeSession
from services.server.frames import Frames
from services.server.graph_memory import GraphMemory
from services.server.input_budget import InputBudget
from services.server.memory_budget import (
    graph_budget_bytes,
    guessed_layer_row_bytes,
    guessed_row_bytes,
    input_budget_bytes,
)
from services.server.metrics import SessionKind
from services.server.model_thread import ModelThread
from services.server.open_streams import OpenStreams
from services.server.scheduler import Scheduler, SchedulerTerms
from services.server.seat import Seat
from services.server.session import StepSession
from services.server.settings import ServerSettings

SERVICE = pb.DESCRIPTOR.services_by_name["SplitService"].full_name
_COMPUTE_TYPES = {
    torch.float32: tpb.DATA_TYPE_FLOAT32,
    torch.float16: tpb.DATA_TYPE_FLOAT16,
    torch.bfloat16: tpb.DATA_TYPE_BFLOAT16,
}
_QUANTIZATIONS: dict[Precision | None, "pb.Quantization.ValueType"] = {
    None: pb.QUANTIZATION_NONE,
    "int8": pb.QUANTIZATION_INT8,
    "int4": pb.QUANTIZATION_INT4,
}

Context = grpc.aio.ServicerContext[Any, Any]


class SplitServicer(rpc.SplitServiceServicer):
    """One for a process: all its streams share the model and its thread."""

    def __init__(self, model: LanguageModel, thread: ModelThread, settings: ServerSettings) -> None:
        self._model = model
        self._settings = settings
        self._metrics = thread.metrics
        self._inputs = InputBudget(_given(settings.input_memory_bytes, input_budget_bytes()), thread.metrics)
        graph_bytes = _given(settings.graph_memory_bytes, graph_budget_bytes(model))
        memory = GraphMemory(
            graph_bytes,
            guessed_row_bytes(model),
            thread.metrics,
            checkpointing=settings.activation_checkpointing,
            first_layer_row_bytes=guessed_layer_row_bytes(model),
        )
        self._scheduler = Scheduler(model, thread, memory, scheduler_terms(settings, model))
        self._caches = CacheMemory(memory, model.decoder.position_bytes(), thread.metrics)
        self._streams = OpenStreams(settings.max_sessions)

    async def drain(self, grace_s: float) -> None:
        """Steps that were begun are finished within ``grace_s`` seconds; sessions are handed back to their clients."""
        await self._streams.drain(grace_s)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        del request, context
        model = self._model
        return pb.GetModelResponse(
            model=pb.Model(
                name=model.manifest.model,
                digest=model.manifest.digest,
                hidden_size=model.hidden_size,
                vocab_size=model.vocab_size,
                max_sequence_length=model.max_sequence_length,
                max_pass_tokens=self._settings.max_pass_tokens,
                compute_type=_COMPUTE_TYPES[model.dtype],
                encodings=[ENCODINGS_BY_NAME[name] for name in self._settings.wire_encodings],
                quantization=_QUANTIZATIONS[model.quantize],
            )
        )

    async def StreamSteps(
        self, request_iterator: AsyncIterable[pb.StreamStepsRequest], context: Context
    ) -> AsyncIterator[pb.StreamStepsResponse]:
        frames: Frames[pb.StreamStepsRequest, pb.StreamStepsResponse] = self._frames(request_iterator, context)
        async with self._stream(frames, "steps"), self._seat(context) as seat:
            await StepSession(frames, self._model, seat, self._settings).run()
        # The session has written every response itself, each under a deadline, which a yield could not have.
        left: tuple[pb.StreamStepsResponse, ...] = ()
        for response in left:
            yield response

    async def Decode(
        self, request_iterator: AsyncIterable[pb.DecodeRequest], context: Context
    ) -> AsyncIterator[pb.DecodeResponse]:
        frames: Frames[pb.DecodeRequest, pb.DecodeResponse] = self._frames(request_iterator, context)
        async with self._stream(frames, "decode"), self._seat(context) as seat:
            with self._caches.stream() as room:
                await DecodeSession(frames, self._model, seat, room, self._settings).run()
        left: tuple[pb.DecodeResponse, ...] = ()
        for response in left:
            yield response

    def _frames(self, requests: AsyncIterable[Any], context: Context) -> Frames[Any, Any]:
        progress_s, idle_s = self._settings.progress_timeout_s, self._settings.idle_timeout_s
        return Frames(requests, context, self._metrics, progress_s=progress_s, idle_s=idle_s)

    @asynccontextmanager
    async def _seat(self, context: Context) -> AsyncIterator[Seat]:
        seat = Seat(self._scheduler, self._inputs, _client(context))
        with self._scheduler.session():
            try:
                yield seat
            finally:
                seat.close()

    @asynccontextmanager
    async def _stream(self, frames: Frames[Any, Any], kind: SessionKind) -> AsyncIterator[None]:
        try:
            with self._streams.place(frames), self._metrics.session(kind):
                yield
        except WireError:
            await frames.linger()
            raise


def scheduler_terms(settings: ServerSettings, model: LanguageModel) -> SchedulerTerms:
    # A core is busy with few rows, and longer passes only make others wait; a GPU is not.
    enough_tokens = 1024 if model.device.type == "cpu" else 8192
    return SchedulerTerms(
        joins=settings.batching != "off",
        window_s=settings.join_window_s,
        max_joined_tokens=_given(settings.max_joined_tokens, enough_tokens),
        max_waiting=settings.max_queued_passes,
        timeout_s=settings.pass_timeout_s,
    )


def _client(context: Context) -> Hashable:
    """Whom fairness is owed to: who a certificate says it is, otherwise the connection."""
    identity = peer_identity(context)
    return str(identity) if identity else context.peer()


def _given(asked: int | None, otherwise: int) -> int:
    return otherwise if asked is None else asked
