"""A step whose loss the server computes, in one round trip, against the same step in two, over real gRPC.

One client without a head of its own, so that the two trips carry logits and their gradient. Both give the same bits.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.round_report import conditions, conditions_line
from benchmarks.split_server import PLAINTEXT, model_folder, serve
from benchmarks.split_steps import ragged_passes
from fednano.model.manifest import Manifest, read_manifest
from fednano.rpc.channels import open_channel
from fednano.split.session import LabelledPass, Pass, SessionTerms, StepSession
from fednano.split.traffic import Traffic
from fednano.v1.split_service_pb2_grpc import SplitServiceStub


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Seconds of a step for each repeat, and tensor bytes of a step."""

    model: str
    tokens: int
    two_trips_s: list[float]
    one_trip_s: list[float]
    two_trips_bytes: int
    one_trip_bytes: int

    @property
    def ratio(self) -> float:
        pairs = zip(self.one_trip_s, self.two_trips_s, strict=True)
        return statistics.median(one / two for one, two in pairs)


class Contest:
    """The same step in both ways, on one session."""

    def __init__(self, session: StepSession, traffic: Traffic, step: Pass, vocab_size: int) -> None:
        self._session, self._traffic, self._step = session, traffic, step
        generator = torch.Generator().manual_seed(0)
        self._answer_ids_N = torch.randint(vocab_size, (len(step.output_positions),), generator=generator)
        self._weights_N = torch.full((len(step.output_positions),), 0.125)
        self._step_id = 0

    async def two_trips(self) -> torch.Tensor:
        own = Pass(**{**vars(self._step), "step_id": self._next_id(), "output_kind": "logits"})
        logits_NV = (await self._session.forward(own)).requires_grad_()
        nll_N = F.cross_entropy(logits_NV, self._answer_ids_N, reduction="none")
        (grad_NV,) = torch.autograd.grad(nll_N, logits_NV, self._weights_N)
        return await self._session.backward(own, grad_NV)

    async def one_trip(self) -> torch.Tensor:
        step = LabelledPass(
            step_id=self._next_id(),
            inputs_embeds_SD=self._step.inputs_embeds_SD,
            sequence_lengths=self._step.sequence_lengths,
            output_positions=self._step.output_positions,
            answer_ids_N=self._answer_ids_N,
            weights_N=self._weights_N,
        )
        return (await self._session.loss(step))[1]

    async def timed(self, *, one_trip: bool) -> tuple[float, int, torch.Tensor]:
        self._traffic.reset()
        start_s = time.perf_counter()
        gradient_SD = await (self.one_trip() if one_trip else self.two_trips())
        seconds = time.perf_counter() - start_s
        return seconds, self._traffic.activations_bytes + self._traffic.gradients_bytes, gradient_SD

    def _next_id(self) -> int:
        self._step_id += 1
        return self._step_id


async def race(address: str, name: str, manifest: Manifest, repeats: int) -> Figures:
    terms = SessionTerms(manifest=manifest, run="runs/loss", peer=address, loss_on_server=True)
    traffic, (step,) = Traffic(), ragged_passes(1, manifest.hidden_size, sequences=4)
    taken_s: dict[bool, list[float]] = {True: [], False: []}
    size_bytes = {True: 0, False: 0}
    async with open_channel(address, PLAINTEXT) as channel:
        session = await StepSession.open(SplitServiceStub(channel), terms, traffic)
        contest = Contest(session, traffic, step, manifest.vocab_size)
        for repeat in range(repeats + 1):
            gradients = {}
            for one_trip in (True, False) if repeat % 2 else (False, True):
                seconds, size_bytes[one_trip], gradients[one_trip] = await contest.timed(one_trip=one_trip)
                # The first one warms up.
                if repeat:
                    taken_s[one_trip].append(seconds)
            assert torch.equal(gradients[True], gradients[False]), "the two ways differ"
        session.cancel()
    return Figures(
        model=name,
        tokens=len(step.inputs_embeds_SD),
        two_trips_s=taken_s[False],
        one_trip_s=taken_s[True],
        two_trips_bytes=size_bytes[False],
        one_trip_bytes=size_bytes[True],
    )


def measure(name: str, *, repeats: int) -> Figures:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fednano-loss-") as scratch:
        folder = model_folder(name, Path(scratch))
        with serve(folder, Path(scratch), "--allow-loss-on-server") as address:
            return asyncio.run(race(address, name, read_manifest(folder / "server"), repeats))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loss_on_server", description=__doc__)
    parser.add_argument("--models", default="nano,5M", help="comma-separated: nano, 5M, 30M, 110M, or a folder")
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    figures = [measure(name, repeats=given.repeats) for name in given.models.split(",")]
    if given.json:
        print(json.dumps({"conditions": conditions(), "figures": [asdict(each) for each in figures]}, indent=2))
        return 0
    for each in figures:
        two_ms, one_ms = (1e3 * statistics.median(taken) for taken in (each.two_trips_s, each.one_trip_s))
        print(
            f"{each.model}, {each.tokens} tokens: two trips {two_ms:.1f} ms, {each.two_trips_bytes / 1e3:.0f} kB; ",
            end="",
        )
        print(f"one trip {one_ms:.1f} ms, {each.one_trip_bytes / 1e3:.0f} kB; median ratio {each.ratio:.2f}")
    print(conditions_line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
