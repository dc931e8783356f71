"""Between the sessions and the model's thread: which requests make the next pass, and when it is worth a wait.

A pass has the waiting requests of one kind, of any clients, in the order of a deficit round robin, up to a number of
tokens. Whatever it has, each member gets the bits that it would get alone (see fednano.model.packing).
"""

import asyncio
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fednano.errors import NoProgress, ServerBusy
from fednano.model.language import LanguageModel
from services.server.decode_turns import DecodeTurns
from services.server.dispatch import Dispatch
from services.server.fair_queue import FairQueue
from services.server.graph_memory import GraphMemory, KeptStep
from services.server.leads import Leads
from services.server.model_thread import ModelThread
from services.server.recent_clients import RecentClients
from services.server.requests import AnswerT, AnyRequest, DecodeRequest, Request
from services.server.waiting import Waiting

# Small against a pass, for then who asks for little is served early; it bounds nothing else.
QUANTUM_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class SchedulerTerms:
    """``joins`` false runs every request by itself."""

    joins: bool
    window_s: float
    max_joined_tokens: int
    max_waiting: int
    timeout_s: float


class Scheduler:
    """For one event loop, which runs all of it but the passes themselves."""

    def __init__(self, model: LanguageModel, thread: ModelThread, memory: GraphMemory, terms: SchedulerTerms) -> None:
        self._terms = terms
        self._memory = memory
        self._metrics = thread.metrics
        self._dispatch = Dispatch(model, thread, memory)
        self._queue: FairQueue[AnyRequest] = FairQueue(QUANTUM_TOKENS)
        self._recent = RecentClients()
        self._leads = Leads()
        self._turns = DecodeTurns(terms.window_s if terms.joins else 0.0)
        self._sessions = 0
        self._arrived = asyncio.Event()
        # Alive while anything waits; it ends by itself, for every session that ends takes its request away.
        self._runner: asyncio.Task[None] | None = None

    @contextmanager
    def session(self) -> Iterator[None]:
        """Counts a session, for which others may be worth waiting."""
        self._sessions += 1
        try:
            yield
        finally:
            self._sessions -= 1
            self._arrived.set()

    def check_place(self) -> None:
        """Raises ServerBusy where no more requests may wait."""
        if len(self._queue) >= self._terms.max_waiting:
            raise ServerBusy("the model's queue is full: try again in a moment")

    async def ask(self, request: Request[AnswerT]) -> AnswerT:
        """The answer, or the refusal. Raises ServerBusy at once where the queue is full, NoProgress after the bound.

        Where the caller is cancelled, the request is withdrawn: it is not begun, and nobody waits for it.
        """
        self.check_place()
        if isinstance(request, DecodeRequest):
            self._turns.forget(request.stream)
        self._queue.push(request)
        self._leads.asked(request.client, self._now_s())
        self._metrics.queue_length.inc()
        self._arrived.set()
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run(), name="scheduler")
        try:
            async with asyncio.timeout(self._terms.timeout_s):
                return await request.answer
        except TimeoutError:
            message = f"no answer in {self._terms.timeout_s:g} s: send smaller passes, or try again later"
            raise NoProgress(message) from None
        finally:
            self._queue.remove(request)
            self._metrics.queue_length.dec()
            self._arrived.set()

    def expect(self, stream: Hashable) -> None:
        """The decode stream has its answer, and is worth a wait until it asks for its next positions."""
        self._turns.answered(stream, self._now_s())

    def expect_no_more(self, stream: Hashable) -> None:
        self._turns.forget(stream)
        self._arrived.set()

    def forget(self, step: KeptStep) -> None:
        """The step gets no backward pass: its group waits for it no more."""
        self._memory.release(step)
        self._arrived.set()

    async def _run(self) -> None:
        while len(self._queue):
            self._arrived.clear()
            taken = self._take()
            if taken:
                await self._run_pass(taken)
                continue
            waiting = self._waiting()
            ready_at_s = min(waiting.ready_at_s(request) for request in self._queue)
            await _wait(self._arrived, max(ready_at_s - self._now_s(), 0.0))

    async def _run_pass(self, members: list[AnyRequest]) -> None:
        start_s, decoders = self._now_s(), [member for member in members if isinstance(member, DecodeRequest)]
        await self._dispatch.run(members)
        tokens: Counter[Hashable] = Counter()
        for member in members:
            tokens[member.client] += member.token_count
        self._leads.served(tokens, self._now_s())
        if decoders:
            self._turns.passed(start_s, self._now_s())
        for member in decoders:
            self.expect(member.stream)

    def _take(self) -> list[AnyRequest]:
        """The members of the next pass; none where it is better to wait."""
        now_s, waiting = self._now_s(), self._waiting()
        waiting_count = Counter(request.client for request in self._queue)
        for client in waiting_count:
            self._recent.note(client, now_s)
        ready = {request.client for request in self._queue if waiting.ready_at_s(request) <= now_s}
        share_tokens = self._terms.max_joined_tokens // self._recent.count(now_s)

        def accepts(request: AnyRequest, taken: list[AnyRequest]) -> bool:
            if not taken:
                # Who has a single request waiting only keeps pace, however long his steps are.
                goes_after = waiting_count[request.client] > 1 and self._leads.is_ahead(request.client, ready)
                return waiting.ready_at_s(request) <= now_s and not goes_after
            if not self._terms.joins or not waiting.may_join(request, taken[0]):
                return False
            return self._has_room(request, taken) and _has_share(request, taken, share_tokens)

        taken = self._queue.take(accepts)
        # A pass over a retained graph costs the same however many of its members are there.
        for request in waiting.rest_of_group(taken):
            self._queue.take_out_of_turn(request)
            taken.append(request)
        return taken

    def _has_room(self, request: AnyRequest, taken: list[AnyRequest]) -> bool:
        tokens = sum(member.token_count for member in taken) + request.token_count
        return tokens <= self._terms.max_joined_tokens and (
            isinstance(request, DecodeRequest) or self._memory.fits(tokens)
        )

    def _waiting(self) -> Waiting:
        window_s = self._terms.window_s if self._terms.joins else 0.0
        return Waiting(list(self._queue), sessions=self._sessions, window_s=window_s, turns=self._turns)

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()


def _has_share(request: AnyRequest, taken: list[AnyRequest], share_tokens: int) -> bool:
    """Whether its client may have more of this pass: others who are at work will want the next one soon."""
    own = [member.token_count for member in taken if member.client == request.client]
    return not own or sum(own) + request.token_count <= share_tokens


async def _wait(event: asyncio.Event, wait_s: float) -> None:
    try:
        async with asyncio.timeout(wait_s):
            await event.wait()
    except TimeoutError:
        return
