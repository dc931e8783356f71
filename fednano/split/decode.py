"""Greedy decoding of a batch of prompts, the language model one position at a time behind the network.

B: batch   S: new positions of all sequences   D: hidden size   V: vocabulary   n: sequences that have not ended
"""

from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from fednano.errors import StreamMalformed
from fednano.model.batch import PackedBatch
from fednano.model.edge import OutputKind
from fednano.split.frames import FrameStream
from fednano.split.session import OUTPUT_KINDS, SessionTerms
from fednano.split.traffic import Traffic
from fednano.tracing import trace_metadata
from fednano.v1 import split_service_pb2 as pb
from fednano.wire.chunks import split_chunks
from fednano.wire.tensors import encode_tensor

if TYPE_CHECKING:
    from fednano.v1.split_service_pb2_grpc import SplitServiceAsyncStub

# New positions [S, D] and how many each sequence gets, to outputs [n, D] or [n, V] at the last position of each.
DecodeStep = Callable[[Tensor, Sequence[int], OutputKind], Tensor]
Frames = FrameStream[pb.DecodeRequest, pb.DecodeResponse]


class DecodingEdge(Protocol):
    """What stays with the client: prompts and chosen tokens to inputs, outputs to logits."""

    @property
    def output_kind(self) -> OutputKind: ...

    def __call__(self, batch: PackedBatch, /) -> Tensor: ...

    def next_embeds(self, token_ids_B: Tensor, /) -> Tensor: ...

    def logits(self, outputs_ND: Tensor, /) -> Tensor: ...


@torch.no_grad()
def greedy_decode(
    edge: DecodingEdge, decode: DecodeStep, prompts: PackedBatch, *, eos_token_id: int, max_new_tokens: int
) -> list[list[int]]:
    """The likeliest next token again and again, for each prompt: at most ``max_new_tokens``, the end token included."""
    answers: list[list[int]] = [[] for _ in range(prompts.example_count)]
    active = list(range(prompts.example_count))
    inputs_embeds_SD, lengths = edge(prompts), list(prompts.sequence_lengths)
    for _ in range(max_new_tokens):
        token_ids_n = edge.logits(decode(inputs_embeds_SD, lengths, edge.output_kind)).argmax(dim=-1)
        for index, token_id in zip(active, token_ids_n.tolist(), strict=True):
            answers[index].append(token_id)
        going_n = token_ids_n != eos_token_id
        active = [index for index, going in zip(active, going_n.tolist(), strict=True) if going]
        if not active:
            break
        inputs_embeds_SD = edge.next_embeds(token_ids_n[going_n])
        lengths = [int(index in active) for index in range(prompts.example_count)]
    return answers


class DecodeStream:
    """One Decode stream, called in step by a thread other than the loop's; ``run`` does the work on the loop."""

    def __init__(
        self,
        stub: "SplitServiceAsyncStub",
        terms: SessionTerms,
        traffic: Traffic,
        run: Callable[[Coroutine[Any, Any, Tensor]], Tensor],
    ) -> None:
        self._stub = stub
        self._terms = terms
        self._traffic = traffic
        self._run = run
        self._stream: Frames | None = None

    def decode(self, inputs_embeds_SD: Tensor, sequence_lengths: Sequence[int], output_kind: OutputKind) -> Tensor:
        """A ``DecodeStep``. The first one opens the stream."""
        return self._run(self._decode(inputs_embeds_SD, sequence_lengths, output_kind))

    def cancel(self) -> None:
        if self._stream is not None:
            self._stream.cancel()

    async def _decode(
        self, inputs_embeds_SD: Tensor, sequence_lengths: Sequence[int], output_kind: OutputKind
    ) -> Tensor:
        stream = await self._open()
        spec, payload = encode_tensor(inputs_embeds_SD, self._terms.encoding)
        header = pb.DecodeStep(
            inputs_embeds=spec, sequence_lengths=sequence_lengths, output_kind=OUTPUT_KINDS[output_kind]
        )
        await stream.send(pb.DecodeRequest(step=header))
        for chunk in split_chunks(payload):
            await stream.send(pb.DecodeRequest(chunk=chunk))
        answer = await stream.receive()
        if answer.WhichOneof("frame") != "result":
            raise StreamMalformed(f"{self._terms.peer} answered a step with no result", peer=self._terms.peer)
        shape = (sum(map(bool, sequence_lengths)), self._terms.output_width(output_kind))
        output = await stream.receive_tensor(answer.result.output, shape)
        self._traffic.activations_bytes += spec.size_bytes + answer.result.output.size_bytes
        return output.to(inputs_embeds_SD)

    async def _open(self) -> Frames:
        if self._stream is None:
            stream = Frames(
                self._stub.Decode(metadata=trace_metadata()),
                peer=self._terms.peer,
                progress_timeout_s=self._terms.progress_timeout_s,
            )
            await stream.send(pb.DecodeRequest(open_session=self._terms.opening()))
            answer = await stream.receive()
            if answer.WhichOneof("frame") != "session_opened":
                raise StreamMalformed(f"{self._terms.peer} did not open the session", peer=self._terms.peer)
            self._terms.check_granted(answer.session_opened)
            self._stream = stream
        return self._stream
