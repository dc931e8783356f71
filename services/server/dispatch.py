"""Runs one pass for its members: room for its graph before, answers and accounts afterwards."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar, cast

import torch

from fednano.errors import FednanoError, PeerUnavailable, ServerBusy, WireError
from fednano.model.language import LanguageModel
from fednano.model.packing import padded
from services.server.decode_pass import run_decode
from services.server.graph_memory import GraphMemory
from services.server.loss_pass import run_loss
from services.server.metrics import PassKind
from services.server.model_thread import ModelThread
from services.server.passes import Encoded, run_again, run_backward, run_forward
from services.server.requests import (
    AnyRequest,
    BackwardRequest,
    DecodeRequest,
    ForwardRequest,
    LoneRequest,
    LossRequest,
)
from services.server.waiting import uses_graph

ResultT = TypeVar("ResultT")


class PassAbandoned(FednanoError):
    """Nobody waits for the pass any more: it ended between two layers."""


class Dispatch:
    """One pass at a time; all accounts are kept on the event loop."""

    def __init__(self, model: LanguageModel, thread: ModelThread, memory: GraphMemory) -> None:
        self._model = model
        self._thread = thread
        self._memory = memory

    async def run(self, members: Sequence[AnyRequest]) -> None:
        """Answers or refuses every member; all are of one kind."""
        first = members[0]
        if isinstance(first, ForwardRequest):
            await self._forward(cast(Sequence[ForwardRequest], members))
        elif isinstance(first, BackwardRequest):
            await self._backward(cast(Sequence[BackwardRequest], members))
        elif isinstance(first, DecodeRequest):
            await self._decode(cast(Sequence[DecodeRequest], members))
        elif isinstance(first, LossRequest):
            await self._loss(cast(Sequence[LossRequest], members))
        elif isinstance(first, LoneRequest):
            await self._alone(first)

    async def _forward(self, members: Sequence[ForwardRequest]) -> None:
        rows = self._rows(members)
        keeping = self._memory.keeping(rows) if members[0].keeps_graph else "nothing"
        self._memory.make_room(rows, keeping)
        works, output_kind = [member.work for member in members], members[0].output_kind
        keeps_graph, checkpointed = keeping != "nothing", keeping == "layers"
        outcome = await self._attempt(
            lambda: run_forward(self._model, works, output_kind, keeps_graph=keeps_graph, checkpointed=checkpointed),
            "forward",
            members,
        )
        if outcome is None:
            return
        if checkpointed:
            self._thread.metrics.checkpointed.inc()
        for member, answer in zip(members, outcome.answers, strict=True):
            if isinstance(answer, WireError):
                member.refuse(answer)
            elif member.answer.done():
                # It has gone meanwhile: nobody will ask for its backward pass.
                answer.step.forget_graph()
            else:
                member.fulfil(answer)
        if outcome.graph is not None and outcome.graph.members:
            self._memory.keep(outcome.graph)

    async def _backward(self, members: Sequence[BackwardRequest]) -> None:
        works, graph = [member.work for member in members], members[0].work.step.graph
        if graph is not None and uses_graph(graph, members):
            places = [graph.members[work.step] for work in works]
            self._memory.drop(graph)
            answers = await self._attempt(lambda: run_backward(graph, places, works), "backward", members)
        else:
            answers = await self._again(members)
        for member, answer in zip(members, answers or [], strict=False):
            if isinstance(answer, WireError):
                member.refuse(answer)
            else:
                member.fulfil(answer)

    async def _again(self, members: Sequence[BackwardRequest]) -> list[Encoded | WireError] | None:
        for member in members:
            self._memory.release(member.work.step)
        rows, works = self._rows(members), [member.work for member in members]
        keeping = self._memory.keeping_again(rows)
        self._memory.make_room(rows, keeping)
        checkpointed = keeping == "layers"
        outcome = await self._attempt(
            lambda: run_again(self._model, works, checkpointed=checkpointed), "backward", members
        )
        if outcome is None:
            return None
        answers, size_bytes = outcome
        self._thread.metrics.recomputed.inc(len(members))
        self._memory.learn(rows, size_bytes, checkpointed=checkpointed)
        return answers

    async def _decode(self, members: Sequence[DecodeRequest]) -> None:
        works, output_kind = [member.work for member in members], members[0].output_kind
        answers = await self._attempt(lambda: run_decode(self._model, works, output_kind), "decode", members)
        for member, answer in zip(members, answers or [], strict=False):
            if isinstance(answer, WireError):
                member.refuse(answer)
            else:
                member.fulfil(answer)

    async def _loss(self, members: Sequence[LossRequest]) -> None:
        rows, works = self._rows(members), [member.work for member in members]
        keeping = self._memory.keeping_again(rows)
        self._memory.make_room(rows, keeping)
        checkpointed = keeping == "layers"
        outcome = await self._attempt(lambda: run_loss(self._model, works, checkpointed=checkpointed), "loss", members)
        if outcome is None:
            return
        answers, seen_rows, size_bytes = outcome
        if seen_rows:
            self._memory.learn(seen_rows, size_bytes, checkpointed=checkpointed)
        for member, answer in zip(members, answers, strict=True):
            if isinstance(answer, WireError):
                member.refuse(answer)
            else:
                member.fulfil(answer)

    async def _alone(self, request: LoneRequest) -> None:
        answer = await self._attempt(request.run, request.kind, [request])
        if answer is not None:
            request.fulfil(answer)

    async def _attempt(
        self, work: Callable[[], ResultT], kind: PassKind, members: Sequence[AnyRequest]
    ) -> ResultT | None:
        """What the model's thread made of it; None where it failed, which all members have been told then.

        Where all members have gone meanwhile, the pass ends before its next layer.
        """
        tokens = sum(member.token_count for member in members)

        def check() -> None:
            # Read in the model's thread: whether a future is done changes once and for good.
            if all(member.answer.done() for member in members):
                raise PassAbandoned("nobody waits for this pass any more")

        def checked() -> ResultT:
            with self._model.layers.checked(check):
                return work()

        size = {"tokens": tokens, "members": len(members), "sequences": sum(each.sequence_count for each in members)}
        running = asyncio.ensure_future(self._thread.run(checked, kind=kind, **size))
        await asyncio.wait({running})
        failure = PeerUnavailable("the server is stopping") if running.cancelled() else running.exception()
        if failure is None:
            self._note_shares(members)
            return running.result()
        if isinstance(failure, PassAbandoned):
            self._thread.metrics.abandoned.labels(kind).inc()
        if isinstance(failure, torch.OutOfMemoryError):
            self._memory.drop_all()
            failure = ServerBusy("the device's memory is full: try again in a moment", retry_after_s=2.0)
        for member in members:
            member.refuse(failure)
        return None

    def _note_shares(self, members: Sequence[AnyRequest]) -> None:
        tokens: Counter[Hashable] = Counter()
        for member in members:
            tokens[member.client] += member.token_count
        self._thread.metrics.shares.note(tokens, time.monotonic())

    def _rows(self, members: Sequence[AnyRequest]) -> int:
        return sum(padded(member.token_count, self._model.row_tile) for member in members)
