"""A real server on loopback and a client that is driven frame by frame.

Dimensions: S tokens of a packed batch, N outputs, D hidden size, V vocabulary.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio
import torch
from torch import Tensor

from fednano.errors import (
    WireError,
)
from fednano.model.language import LanguageModel
from fednano.rpc.channels import open_channel
from fednano.rpc.server import serving
from fednano.rpc.status import from_rpc_error
from fednano.v1 import split_service_pb2 as pb
from fednano.v1 import tensor_pb2 as tpb
from fednano.v1.split_service_pb2_grpc import SplitServiceStub, add_SplitServiceServicer_to_server
from fednano.wire.chunks import Assembly, split_chunks
from fednano.wire.tensors import decode_tensor, encode_tensor
from services.server.model_thread import ModelThread
from services.server.servicer import SERVICE, SplitServicer
from services.server.settings import ServerSettings

if TYPE_CHECKING:
    # Exists only in the generated types.
    from fednano.v1.split_service_pb2_grpc import SplitServiceAsyncStub

NANO = Path(__file__).resolve().parents[2] / "fednano" / "model" / "presets" / "nano" / "server"
LENGTHS = [5, 9, 2]
POSITIONS = [3, 4, 13, 15]
PATIENCE_S = 20.0


SPEC, _ = encode_tensor(torch.zeros(16, 128), tpb.ENCODING_RAW)


@asynccontextmanager
async def split_service(model: LanguageModel, **settings: Any) -> AsyncIterator["SplitServiceAsyncStub"]:
    chosen = ServerSettings(insecure=True, shutdown_grace_s=0.2, **settings)
    thread = ModelThread(threads=1, max_queued=chosen.max_queued_passes, timeout_s=chosen.pass_timeout_s)
    servicer = SplitServicer(model, thread, chosen)
    services = {SERVICE: lambda server: add_SplitServiceServicer_to_server(servicer, server)}
    try:
        async with (
            serving(services, "127.0.0.1:0", chosen.security, grace_s=0.2) as running,
            open_channel(running.address, chosen.security) as channel,
        ):
            yield SplitServiceStub(channel)
    finally:
        thread.close()


class Client:
    """One stream, driven frame by frame; a refusal comes up as the error that the server raised."""

    def __init__(self, call: Any, request_type: type) -> None:
        self.call = call
        self.request_type = request_type
        # Of what is sent.
        self.encoding: tpb.Encoding.ValueType = tpb.ENCODING_RAW

    async def send(self, **frame: Any) -> None:
        try:
            await asyncio.wait_for(self.call.write(self.request_type(**frame)), PATIENCE_S)
        except asyncio.InvalidStateError:
            raise await self.error() from None
        except grpc.aio.AioRpcError:
            raise await self.error() from None

    async def read(self) -> Any:
        try:
            response = await asyncio.wait_for(self.call.read(), PATIENCE_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, "the server") from None
        assert response is not grpc.aio.EOF
        return response

    async def error(self) -> WireError:
        code, words = await self.call.code(), await self.call.details()
        error = grpc.aio.AioRpcError(
            code, await self.call.initial_metadata(), await self.call.trailing_metadata(), details=words
        )
        return from_rpc_error(error, "the server")

    async def open(self, model: LanguageModel, encoding: "tpb.Encoding.ValueType" = tpb.ENCODING_RAW) -> Any:
        opening = pb.OpenSession(model_digest=model.manifest.digest, run="runs/test", encoding=encoding)
        await self.send(open_session=opening)
        return (await self.read()).session_opened

    async def send_chunks(self, payload: memoryview) -> None:
        for chunk in split_chunks(payload):
            await self.send(chunk=chunk)

    async def read_tensor(self, spec: tpb.TensorSpec) -> Tensor:
        assembly = Assembly(spec.size_bytes)
        while not assembly.is_complete:
            assembly.add((await self.read()).chunk)
        return decode_tensor(spec, assembly.payload)

    async def send_forward(self, step_id: int, inputs_SD: Tensor, **changes: Any) -> None:
        spec, payload = encode_tensor(inputs_SD, self.encoding)
        await self.send(forward=forward_header(spec, step_id=step_id, **changes))
        await self.send_chunks(payload)

    async def forward(self, step_id: int, inputs_SD: Tensor, **changes: Any) -> Tensor:
        await self.send_forward(step_id, inputs_SD, **changes)
        result = (await self.read()).forward_result
        assert result.step_id == step_id
        return await self.read_tensor(result.output)

    async def backward(self, step_id: int, grad_N: Tensor) -> Tensor:
        spec, payload = encode_tensor(grad_N, self.encoding)
        await self.send(backward=pb.BackwardStep(step_id=step_id, grad_output=spec))
        await self.send_chunks(payload)
        result = (await self.read()).backward_result
        return await self.read_tensor(result.grad_inputs_embeds)

    async def decode(self, inputs_SD: Tensor, lengths: list[int]) -> Tensor:
        spec, payload = encode_tensor(inputs_SD, self.encoding)
        step = pb.DecodeStep(inputs_embeds=spec, sequence_lengths=lengths, output_kind=pb.OUTPUT_KIND_LOGITS)
        await self.send(step=step)
        await self.send_chunks(payload)
        return await self.read_tensor((await self.read()).result.output)


def forward_header(spec: tpb.TensorSpec, **changes: Any) -> pb.ForwardStep:
    fields: dict[str, Any] = {
        "step_id": 1,
        "inputs_embeds": spec,
        "sequence_lengths": LENGTHS,
        "output_positions": POSITIONS,
        "output_kind": pb.OUTPUT_KIND_HIDDEN_STATES,
        "requires_grad": True,
    }
    return pb.ForwardStep(**(fields | changes))


def steps(stub: "SplitServiceAsyncStub") -> Client:
    return Client(stub.StreamSteps(timeout=60), pb.StreamStepsRequest)


def inputs(seed: int = 0, tokens: int = 16) -> Tensor:
    return torch.randn(tokens, 128, generator=torch.Generator().manual_seed(seed))


def in_process(model: LanguageModel, inputs_SD: Tensor, grad_N: Tensor, kind: Any) -> tuple[Tensor, Tensor]:
    leaf_SD = inputs_SD.clone().requires_grad_()
    outputs_N = model.forward(leaf_SD, LENGTHS, POSITIONS, kind)
    (grad_SD,) = torch.autograd.grad(outputs_N, leaf_SD, grad_N)
    return outputs_N.detach(), grad_SD
