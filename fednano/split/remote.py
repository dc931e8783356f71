"""The frozen language model behind the network, as a differentiable function like any other.

Gradients cross the cut in a ``torch.autograd.Function``: ``loss.backward()`` asks the server for the gradient of the
inputs and goes on in this process.

S: tokens of a packed batch   D: hidden size   V: vocabulary   N: answer positions
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fednano.errors import NoProgress
from fednano.model.batch import PackedBatch
from fednano.model.edge import NanoEdge, OutputKind
from fednano.split.decode import DecodeStream, greedy_decode
from fednano.split.redo import redo
from fednano.split.session import Pass, SessionTerms, StepSession
from fednano.split.traffic import Traffic
from fednano.tracing import span

if TYPE_CHECKING:
    from fednano.v1.split_service_pb2_grpc import SplitServiceAsyncStub
    from fednano.v1.tensor_pb2 import Encoding

ResultT = TypeVar("ResultT")


class RemoteLanguageModel:
    """For one thread at a time, and never the one that runs ``loop``.

    Sessions are opened when they are needed. Where one is lost, a new one does the pass again from inputs kept here, on
    the next of ``replicas``, servers of the same model, and on ``stub`` again after the last of them;
    ``give_up_after_s`` bounds how long that is tried, ``abandoned`` ends it at once.
    """

    def __init__(
        self,
        stub: "SplitServiceAsyncStub",
        loop: asyncio.AbstractEventLoop,
        terms: SessionTerms,
        *,
        give_up_after_s: float = 600.0,
        abandoned: threading.Event | None = None,
        replicas: "Sequence[SplitServiceAsyncStub]" = (),
    ) -> None:
        # The one in use is the first.
        self._stubs = deque([stub, *replicas])
        self._loop = loop
        self._terms = terms
        self._give_up_after_s = give_up_after_s
        self._step_ids = count(1)
        self._session: StepSession | None = None
        # The passes that the session at hand has done forward and still keeps, each as it was sent there.
        self._held: dict[Pass, Pass] = {}
        self.traffic = Traffic()
        self._abandoned = abandoned or threading.Event()

    @property
    def encoding(self) -> "Encoding.ValueType":
        """How tensors travel: what comes back depends on it."""
        return self._terms.encoding

    def forward(
        self,
        inputs_embeds_SD: Tensor,
        sequence_lengths: Sequence[int],
        output_positions: Sequence[int],
        output_kind: OutputKind,
    ) -> Tensor:
        """[N, D] or [N, V]; differentiable in ``inputs_embeds_SD``."""
        step = Pass(
            step_id=next(self._step_ids),
            inputs_embeds_SD=inputs_embeds_SD.detach(),
            sequence_lengths=tuple(sequence_lengths),
            output_positions=tuple(output_positions),
            output_kind=output_kind,
            requires_grad=torch.is_grad_enabled() and inputs_embeds_SD.requires_grad,
        )
        # The server may compute in another type than this process, and its answers come to the CPU.
        output: Tensor = _RemotePass.apply(inputs_embeds_SD, self, step)  # type: ignore[no-untyped-call]
        return output

    def pass_forward(self, step: Pass) -> Tensor:
        with span("forward", step_id=step.step_id, tokens=len(step.inputs_embeds_SD)):
            return self._redo(lambda: self._run(self._forward(step)), "forward pass")

    def pass_backward(self, step: Pass, grad_output: Tensor) -> Tensor:
        with span("backward", step_id=step.step_id, tokens=len(step.inputs_embeds_SD)):
            return self._redo(lambda: self._run(self._backward(step, grad_output)), "backward pass")

    def greedy_answers(self, edge: NanoEdge, prompts: PackedBatch, max_new_tokens: int) -> list[list[int]]:
        """Each prompt's answer as ids. A lost stream starts the batch over."""
        eos_token_id = edge.parts.processor.eos_token_id

        def attempt() -> list[list[int]]:
            stream = DecodeStream(self._stubs[0], self._terms, self.traffic, self._run)
            try:
                return greedy_decode(
                    edge, stream.decode, prompts, eos_token_id=eos_token_id, max_new_tokens=max_new_tokens
                )
            finally:
                self._loop.call_soon_threadsafe(stream.cancel)

        with span("answers", examples=prompts.example_count):
            return self._redo(attempt, "decoding")

    def close(self) -> None:
        """Ends the session, if any. The next pass opens another."""
        session, self._session = self._session, None
        self._held.clear()
        if session is not None:
            self._loop.call_soon_threadsafe(session.cancel)

    def _redo(self, attempt: Callable[[], ResultT], what: str) -> ResultT:
        return redo(
            attempt,
            what=what,
            give_up_after_s=self._give_up_after_s,
            abandoned=self._abandoned,
            before_retry=lambda: self._stubs.rotate(-1),
        )

    def _run(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Waits for ``work`` on the loop. Frames have their own deadlines: this one only guards against a dead loop."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(self._give_up_after_s + self._terms.progress_timeout_s)
        except FutureTimeoutError:
            future.cancel()
            raise NoProgress(f"{self._terms.peer} did not finish in time", peer=self._terms.peer) from None

    async def _forward(self, step: Pass) -> Tensor:
        session = await self._open()
        # Ids grow within a session: a pass that is done again comes after those that were sent meanwhile.
        sent = replace(step, step_id=next(self._step_ids))
        try:
            output = await session.forward(sent)
        except BaseException:
            self._drop(session)
            raise
        if step.requires_grad:
            self._held[step] = sent
        return output

    async def _backward(self, step: Pass, grad_output: Tensor) -> Tensor:
        session = await self._open()
        if step not in self._held:
            await self._forward(step)
        try:
            grad_SD = await session.backward(self._held[step], grad_output)
        except BaseException:
            self._drop(session)
            raise
        del self._held[step]
        return grad_SD

    async def _open(self) -> StepSession:
        if self._session is None:
            self._session = await StepSession.open(self._stubs[0], self._terms, self.traffic)
        return self._session

    def _drop(self, session: StepSession) -> None:
        session.cancel()
        self._session = None
        self._held.clear()


class _RemotePass(torch.autograd.Function):
    """Keeps the inputs, in its Pass, until the backward pass: a lost session is redone from them."""

    @staticmethod
    def forward(ctx: Any, inputs_embeds_SD: Tensor, remote: RemoteLanguageModel, step: Pass) -> Tensor:
        ctx.remote, ctx.step = remote, step
        return remote.pass_forward(step).to(inputs_embeds_SD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        grad_SD = ctx.remote.pass_backward(ctx.step, grad_output).to(ctx.step.inputs_embeds_SD)
        return grad_SD, None, None
