"""Decode requests share passes as others do, take their turns by tokens, and get the bits that they get alone.

S: new positions of one stream   D: hidden size
"""

import asyncio
import threading

import pytest
import torch
from joined_steps import Step, arrived, decoded, nano, ragged_steps
from scheduled_steps import PATIENCE_S, Bench, bench, forward, held_up
from torch import Tensor

from fednano.errors import FieldInvalid
from fednano.model.decoding import DecodingState
from fednano.model.language import LanguageModel
from services.server.decode_pass import DecodeWork
from services.server.requests import DecodeRequest
from services.server.seat import Seat

# The prompts of each stream.
STREAMS = ((5, 9), (3,), (1,), (24, 2, 2))
SINGLES = 3


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return nano()


@pytest.fixture(scope="module")
def own_model() -> LanguageModel:
    """What the others' answers are compared with: not for their thread."""
    return nano()


class Stream:
    """A client that sends prompts, then single positions."""

    def __init__(self, seat: Seat, prompts: tuple[int, ...]) -> None:
        self.seat = seat
        self.state = DecodingState()
        generator = torch.Generator().manual_seed(len(prompts))
        self._lengths = [prompts, *[(1,) * len(prompts)] * SINGLES]
        self.inputs = [torch.randn(sum(lengths), 128, generator=generator) for lengths in self._lengths]

    def request(self, at: int) -> DecodeRequest:
        work = DecodeWork(state=self.state, inputs_embeds=arrived(self.inputs[at]), sequence_lengths=self._lengths[at])
        return DecodeRequest(
            client=self.seat.client,
            token_count=len(self.inputs[at]),
            stream=self.seat,
            work=work,
            output_kind="hidden_states",
        )

    async def run(self) -> list[Tensor]:
        outputs = []
        for at in range(1 + SINGLES):
            outputs.append(decoded(await self.seat.decode(self.request(at))))
            self.seat.awaits_next()
        return outputs

    def alone(self, model: LanguageModel) -> list[Tensor]:
        state = DecodingState()
        return [
            model.decode(state, inputs_SD, lengths, "hidden_states")
            for inputs_SD, lengths in zip(self.inputs, self._lengths, strict=True)
        ]


async def queued(here: Bench) -> tuple[threading.Event, "asyncio.Task[object]"]:
    """The thread is held up until the event is set, so that all that is asked meanwhile is looked at together."""
    gate = threading.Event()
    held: asyncio.Task[object] = asyncio.create_task(here.scheduler.ask(held_up(gate)))
    await asyncio.sleep(0.01)
    return gate, held


async def test_streams_share_every_pass_and_get_the_bits_they_get_alone(
    model: LanguageModel, own_model: LanguageModel
) -> None:
    async with bench(model, window_s=1.0) as here, asyncio.timeout(PATIENCE_S):
        streams = [Stream(here.seat(), prompts) for prompts in STREAMS]
        outputs = await asyncio.gather(*(stream.run() for stream in streams))
        assert here.passes("decode") == 1 + SINGLES
    for stream, got in zip(streams, outputs, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(got, stream.alone(own_model), strict=True))


async def test_a_stream_alone_among_idle_sessions_waits_for_nobody(model: LanguageModel) -> None:
    async with bench(model) as here, asyncio.timeout(PATIENCE_S):
        here.seats(5)
        await Stream(here.seat(), (3,)).run()


async def test_a_stream_whose_session_has_gone_is_not_waited_for(model: LanguageModel) -> None:
    async with bench(model) as here, asyncio.timeout(PATIENCE_S):
        goes, stays, _ = Stream(here.seat(), (3,)), Stream(here.seat(), (2,)), here.seat()
        await asyncio.gather(goes.seat.decode(goes.request(0)), stays.seat.decode(stays.request(0)))
        waiting = asyncio.create_task(stays.seat.decode(stays.request(1)))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        goes.seat.close()
        await waiting


async def test_without_batching_every_stream_has_its_own_passes(model: LanguageModel) -> None:
    async with bench(model, joins=False) as here, asyncio.timeout(PATIENCE_S):
        streams = [Stream(here.seat(), prompts) for prompts in STREAMS]
        await asyncio.gather(*(stream.run() for stream in streams))
        assert here.passes("decode") == len(STREAMS) * (1 + SINGLES)


async def test_a_light_client_is_in_the_next_pass_however_much_a_heavy_one_decodes(model: LanguageModel) -> None:
    async with bench(model, max_joined_tokens=16, window_s=0.0) as here:
        heavy = [Stream(here.seat("heavy"), (4,)) for _ in range(8)]
        light = Stream(here.seat("light"), (4,))
        gate, held = await queued(here)
        asked = [asyncio.create_task(stream.seat.decode(stream.request(0))) for stream in heavy]
        await asyncio.sleep(0)
        own = asyncio.create_task(light.seat.decode(light.request(0)))
        await asyncio.sleep(0)
        gate.set()
        await own
        # Half of the sixteen tokens are its share: of the heavy client's eight streams two were in that pass.
        assert sum(task.done() for task in asked) <= 4
        await asyncio.gather(held, *asked)


async def test_decoding_takes_its_turn_among_training_and_shares_no_pass_with_it(model: LanguageModel) -> None:
    steps: list[Step] = ragged_steps(nano(), lengths=[(100,)] * 6)
    async with bench(model, max_joined_tokens=100, window_s=0.0) as here:
        trainers, stream = here.seats(6, client="trains"), Stream(here.seat("decodes"), (3,))
        gate, held = await queued(here)
        training = [asyncio.create_task(forward(seat, step)) for seat, step in zip(trainers, steps, strict=True)]
        await asyncio.sleep(0)
        own = asyncio.create_task(stream.seat.decode(stream.request(0)))
        await asyncio.sleep(0)
        gate.set()
        await own
        assert sum(task.done() for task in training) < len(training)
        await asyncio.gather(held, *training)
        assert here.passes("forward") == 6


async def test_what_is_wrong_with_one_stream_is_told_to_it_alone(
    model: LanguageModel, own_model: LanguageModel
) -> None:
    async with bench(model, window_s=1.0) as here, asyncio.timeout(PATIENCE_S):
        good, bad = Stream(here.seat(), (5, 2)), Stream(here.seat(), (3,))
        bad.inputs[0][1, 7] = torch.inf
        output, refusal = await asyncio.gather(
            good.seat.decode(good.request(0)), bad.seat.decode(bad.request(0)), return_exceptions=True
        )
        assert isinstance(output, tuple)
        assert torch.equal(decoded(output), good.alone(own_model)[0])
        assert isinstance(refusal, FieldInvalid)
        assert here.passes("decode") == 1
        assert bad.state.lengths == []
