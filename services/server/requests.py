"""What sessions ask of the scheduler: one request each at a time."""

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from fednano.model.packing import OutputKind
from services.server.decode_pass import DecodeWork
from services.server.loss_pass import LossAnswer, LossWork
from services.server.metrics import PassKind
from services.server.passes import BackwardWork, Encoded, ForwardAnswer, ForwardWork

AnswerT = TypeVar("AnswerT")


def _new_answer() -> "asyncio.Future[Any]":
    return asyncio.get_running_loop().create_future()


def _now_s() -> float:
    return asyncio.get_running_loop().time()


@dataclass(eq=False, kw_only=True)
class Request(Generic[AnswerT]):
    """``client`` is whom fairness is owed to; he may have several sessions."""

    client: Hashable
    token_count: int
    answer: "asyncio.Future[AnswerT]" = field(default_factory=_new_answer)
    arrived_s: float = field(default_factory=_now_s)

    @property
    def sequence_count(self) -> int:
        return 1

    def refuse(self, error: BaseException) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)

    def fulfil(self, answer: AnswerT) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)


@dataclass(eq=False, kw_only=True)
class ForwardRequest(Request[ForwardAnswer]):
    work: ForwardWork
    output_kind: OutputKind
    keeps_graph: bool

    @property
    def sequence_count(self) -> int:
        return len(self.work.sequence_lengths)


@dataclass(eq=False, kw_only=True)
class BackwardRequest(Request[Encoded]):
    work: BackwardWork

    @property
    def sequence_count(self) -> int:
        return len(self.work.step.passage.sequence_lengths)


@dataclass(eq=False, kw_only=True)
class DecodeRequest(Request[Encoded]):
    """``stream`` is whose next positions these are."""

    stream: Hashable
    work: DecodeWork
    output_kind: OutputKind

    @property
    def sequence_count(self) -> int:
        return sum(map(bool, self.work.sequence_lengths))


@dataclass(eq=False, kw_only=True)
class LossRequest(Request[LossAnswer]):
    work: LossWork

    @property
    def sequence_count(self) -> int:
        return len(self.work.forward.sequence_lengths)


@dataclass(eq=False, kw_only=True)
class LoneRequest(Request[Encoded]):
    """Work that joins no other's."""

    run: Callable[[], Encoded]
    kind: PassKind


AnyRequest = Request[Any]
