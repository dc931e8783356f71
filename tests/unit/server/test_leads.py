"""What clients have had is remembered while they are away for a moment; and one with 64 times the load has no more."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import cast

import torch
from prometheus_client import CollectorRegistry

from fednano.model.language import LanguageModel
from fednano.model.packing import Passage
from services.server.dispatch import Dispatch
from services.server.graph_memory import GraphMemory, KeptStep
from services.server.leads import CREDIT_TOKENS, LEAD_TOKENS, RECENT_S, Leads
from services.server.metrics import ServerMetrics
from services.server.model_thread import ModelThread
from services.server.passes import ForwardAnswer, ForwardWork
from services.server.requests import AnyRequest, ForwardRequest
from services.server.scheduler import Scheduler, SchedulerTerms

LIGHT, HEAVY_SESSIONS, RACE_S = 7, 64, 3.0


def test_who_had_a_step_more_than_the_others_on_average_is_ahead() -> None:
    leads = Leads()
    for client in "abc":
        leads.asked(client, 0.0)
    leads.served({"a": LEAD_TOKENS + 50, "b": 100}, 0.0)
    assert leads.is_ahead("a", {"a", "b", "c"})
    assert not leads.is_ahead("a", {"a", "b"})
    assert not leads.is_ahead("b", {"a", "b", "c"})
    assert not leads.is_ahead("a", {"a"})


def test_a_new_client_begins_level_with_the_least_and_credit_has_an_end() -> None:
    leads = Leads()
    leads.asked("a", 0.0)
    leads.served({"a": 10 * CREDIT_TOKENS}, 0.0)
    leads.asked("new", 0.1)
    assert not leads.is_ahead("a", {"new"})
    leads.served({"a": 10 * CREDIT_TOKENS}, 0.1)
    leads.asked("new", 0.2)
    assert leads.is_ahead("a", {"new"})
    # However much the other had meanwhile, so much makes them level.
    leads.served({"new": CREDIT_TOKENS}, 0.2)
    assert not leads.is_ahead("a", {"new"})


def test_who_was_not_seen_for_a_second_is_forgotten() -> None:
    leads = Leads()
    leads.asked("a", 0.0)
    leads.served({"a": 1000}, 0.0)
    leads.asked("b", 1.1 * RECENT_S)
    leads.asked("a", 1.2 * RECENT_S)
    assert not leads.is_ahead("a", {"b"})


class TimedPasses:
    """Stands for the model: a pass takes 4 ms and 50 microseconds for each token."""

    async def run(self, members: Sequence[AnyRequest]) -> None:
        await asyncio.sleep(0.004 + 0.00005 * sum(member.token_count for member in members))
        empty = Passage(inputs_embeds_SD=torch.zeros(0, 1), sequence_lengths=(), output_positions=())
        step = KeptStep(passage=empty, output_kind="hidden_states", output_shape=(0, 0))
        for member in members:
            member.fulfil(cast(ForwardAnswer, step))


async def test_a_client_with_64_times_the_load_has_no_more_tokens_than_the_others() -> None:
    metrics = ServerMetrics(CollectorRegistry())
    thread = ModelThread(threads=1, max_queued=4, timeout_s=20, metrics=metrics)
    terms = SchedulerTerms(joins=True, window_s=0.002, max_joined_tokens=1024, max_waiting=100, timeout_s=20)
    model = cast(LanguageModel, None)
    scheduler = Scheduler(model, thread, GraphMemory(1 << 40, 1, metrics), terms)
    scheduler._dispatch = cast(Dispatch, TimedPasses())
    loop, pauses, tokens = asyncio.get_running_loop(), random.Random(0), Counter[str]()
    until_s = loop.time() + RACE_S

    async def train(client: str) -> None:
        with scheduler.session():
            while loop.time() < until_s:
                work = cast(ForwardWork, None)
                request = ForwardRequest(
                    client=client, token_count=120, work=work, output_kind="hidden_states", keeps_graph=False
                )
                await scheduler.ask(request)
                tokens[client] += 120 if loop.time() < until_s else 0
                await asyncio.sleep(pauses.uniform(0.004, 0.012))

    light = [f"light-{number}" for number in range(LIGHT)]
    await asyncio.gather(*map(train, [*light, *["heavy"] * HEAVY_SESSIONS]))
    thread.close()
    jain = sum(tokens.values()) ** 2 / (len(tokens) * sum(count**2 for count in tokens.values()))
    assert jain >= 0.95, tokens
