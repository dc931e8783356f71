"""One session on the LLM server: forward and backward passes over one StreamSteps stream.

S: tokens of a packed batch   D: hidden size   V: vocabulary   N: answer positions
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fednano.errors import StreamMalformed, Unsupported
from fednano.model.edge import OutputKind
from fednano.model.manifest import Manifest
from fednano.split.frames import FrameStream
from fednano.split.traffic import Traffic
from fednano.tracing import trace_metadata, traceparent
from fednano.v1 import split_service_pb2 as pb
from fednano.v1.tensor_pb2 import ENCODING_RAW, Encoding, TensorSpec
from fednano.wire.chunks import split_chunks
from fednano.wire.encodings import ENCODING_NAMES
from fednano.wire.tensors import encode_tensor

if TYPE_CHECKING:
    from fednano.v1.split_service_pb2_grpc import SplitServiceAsyncStub

OUTPUT_KINDS = {"hidden_states": pb.OUTPUT_KIND_HIDDEN_STATES, "logits": pb.OUTPUT_KIND_LOGITS}


@dataclass(frozen=True, kw_only=True)
class SessionTerms:
    """What a client asks of each session, and how long it waits for each frame of it."""

    manifest: Manifest
    # Format: runs/{run}
    run: str
    # What to call the server in messages.
    peer: str
    encoding: "Encoding.ValueType" = ENCODING_RAW
    progress_timeout_s: float = 60.0
    # Whether labels will be sent, for the loss to be computed there.
    loss_on_server: bool = False

    def opening(self) -> pb.OpenSession:
        return pb.OpenSession(
            model_digest=self.manifest.digest,
            run=self.run,
            encoding=self.encoding,
            loss_on_server=self.loss_on_server,
        )

    def check_granted(self, opened: pb.SessionOpened) -> None:
        """Raises Unsupported unless the server grants the encoding that was asked for."""
        if opened.encoding != self.encoding:
            asked, granted = (ENCODING_NAMES.get(each, str(each)) for each in (self.encoding, opened.encoding))
            message = f"{self.peer} opened the session with the encoding {granted}, not {asked}"
            raise Unsupported(message, field="session_opened.encoding", value=granted)

    def output_width(self, output_kind: OutputKind) -> int:
        return self.manifest.hidden_size if output_kind == "hidden_states" else self.manifest.vocab_size


@dataclass(frozen=True, kw_only=True, eq=False)
class Pass:
    """A forward pass with all that it takes to do it again."""

    step_id: int
    inputs_embeds_SD: Tensor
    sequence_lengths: tuple[int, ...]
    output_positions: tuple[int, ...]
    output_kind: OutputKind
    requires_grad: bool


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LabelledPass:
    """A step whose loss the server computes, with all that it takes to do it again."""

    step_id: int
    inputs_embeds_SD: Tensor
    sequence_lengths: tuple[int, ...]
    output_positions: tuple[int, ...]
    answer_ids_N: Tensor
    weights_N: Tensor


class StepSession:
    """An open session. Its methods are for one task at a time; after any error it is of no more use."""

    def __init__(
        self,
        stream: FrameStream[pb.StreamStepsRequest, pb.StreamStepsResponse],
        terms: SessionTerms,
        traffic: Traffic,
    ) -> None:
        self._stream = stream
        self._terms = terms
        self._traffic = traffic

    @classmethod
    async def open(cls, stub: "SplitServiceAsyncStub", terms: SessionTerms, traffic: Traffic) -> "StepSession":
        stream = FrameStream[pb.StreamStepsRequest, pb.StreamStepsResponse](
            stub.StreamSteps(metadata=trace_metadata()), peer=terms.peer, progress_timeout_s=terms.progress_timeout_s
        )
        await stream.send(pb.StreamStepsRequest(open_session=terms.opening()))
        answer = await stream.receive()
        _expect(answer.WhichOneof("frame"), "session_opened", terms)
        terms.check_granted(answer.session_opened)
        return cls(stream, terms, traffic)

    async def forward(self, step: Pass) -> Tensor:
        """[N, D] or [N, V]."""
        spec, payload = encode_tensor(step.inputs_embeds_SD, self._terms.encoding)
        header = pb.ForwardStep(
            step_id=step.step_id,
            inputs_embeds=spec,
            sequence_lengths=step.sequence_lengths,
            output_positions=step.output_positions,
            output_kind=OUTPUT_KINDS[step.output_kind],
            requires_grad=step.requires_grad,
            traceparent=traceparent(),
        )
        await self._send(pb.StreamStepsRequest(forward=header), payload)
        answer = await self._stream.receive()
        _expect(answer.WhichOneof("frame"), "forward_result", self._terms)
        result = answer.forward_result
        _expect_step(result.step_id, step.step_id)
        shape = (len(step.output_positions), self._terms.output_width(step.output_kind))
        output = await self._stream.receive_tensor(result.output, shape)
        self._traffic.activations_bytes += _bytes_of(spec, result.output)
        return output

    async def backward(self, step: Pass, grad_output: Tensor) -> Tensor:
        """grad_inputs_embeds [S, D] of a pass that this session has done forward."""
        spec, payload = encode_tensor(grad_output, self._terms.encoding)
        await self._send(
            pb.StreamStepsRequest(
                backward=pb.BackwardStep(step_id=step.step_id, grad_output=spec, traceparent=traceparent())
            ),
            payload,
        )
        answer = await self._stream.receive()
        _expect(answer.WhichOneof("frame"), "backward_result", self._terms)
        result = answer.backward_result
        _expect_step(result.step_id, step.step_id)
        grad_SD = await self._stream.receive_tensor(result.grad_inputs_embeds, tuple(step.inputs_embeds_SD.shape))
        self._traffic.gradients_bytes += _bytes_of(spec, result.grad_inputs_embeds)
        return grad_SD

    async def loss(self, step: LabelledPass) -> tuple[Tensor, Tensor]:
        """The losses of the answer tokens [N], and the gradient of their weighted sum [S, D]."""
        spec, payload = encode_tensor(step.inputs_embeds_SD, self._terms.encoding)
        header = pb.LossStep(
            step_id=step.step_id,
            inputs_embeds=spec,
            sequence_lengths=step.sequence_lengths,
            output_positions=step.output_positions,
            answer_ids=step.answer_ids_N.tolist(),
            weights=step.weights_N.tolist(),
            traceparent=traceparent(),
        )
        await self._send(pb.StreamStepsRequest(loss=header), payload)
        answer = await self._stream.receive()
        _expect(answer.WhichOneof("frame"), "loss_result", self._terms)
        result = answer.loss_result
        _expect_step(result.step_id, step.step_id)
        if len(result.nll) != len(step.output_positions):
            message = f"{self._terms.peer} sent {len(result.nll)} losses for {len(step.output_positions)} answer tokens"
            raise StreamMalformed(message, peer=self._terms.peer)
        grad_SD = await self._stream.receive_tensor(result.grad_inputs_embeds, tuple(step.inputs_embeds_SD.shape))
        self._traffic.activations_bytes += spec.size_bytes
        self._traffic.gradients_bytes += result.grad_inputs_embeds.size_bytes
        return torch.tensor(list(result.nll)), grad_SD

    def cancel(self) -> None:
        """Ends the session; the server frees what it kept for it."""
        self._stream.cancel()

    async def _send(self, header: pb.StreamStepsRequest, payload: memoryview) -> None:
        await self._stream.send(header)
        for frame in _chunk_frames(payload):
            await self._stream.send(frame)


def _chunk_frames(payload: memoryview) -> Iterator[pb.StreamStepsRequest]:
    for chunk in split_chunks(payload):
        yield pb.StreamStepsRequest(chunk=chunk)


def _expect(got: str | None, wanted: str, terms: SessionTerms) -> None:
    if got != wanted:
        raise StreamMalformed(f"{terms.peer} answered with {got}, not {wanted}", peer=terms.peer)


def _expect_step(got: int, wanted: int) -> None:
    if got != wanted:
        raise StreamMalformed(f"the answer is for step {got}, not for step {wanted}")


def _bytes_of(*specs: TensorSpec) -> int:
    return sum(spec.size_bytes for spec in specs)
