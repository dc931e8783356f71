"""Greedy decoding over gRPC on loopback against transformers' ``generate`` of the whole model in one process.

Prompts of 24 to 40 tokens, 32 new ones each, and both sides must choose the same. Then several clients with a prompt
each, together against one after the other: their positions share passes.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.decode_contestants import Answers, Client, WholeModel
from benchmarks.round_report import conditions, conditions_line
from benchmarks.split_server import PLAINTEXT, model_folder, serve
from fednano.rpc.channels import open_channel

PROMPT_TOKENS = (24, 40)
Contestant = Callable[[], Answers]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Seconds for the answers to all prompts, by contestant and repeat."""

    model: str
    threads: int
    batching: str
    prompts: int
    new_tokens: int
    seconds: dict[str, list[float]]

    def ratio(self, above: str, below: str) -> float:
        """The median over the repeats of the ratio within one: what disturbs a repeat disturbs all that race in it."""
        pairs = zip(self.seconds[above], self.seconds[below], strict=True)
        return statistics.median(one / other for one, other in pairs)

    def token_ms(self, contestant: str) -> float:
        """Milliseconds for a token of each prompt."""
        return 1e3 * statistics.median(self.seconds[contestant]) / self.new_tokens


def race(contestants: dict[str, Contestant], repeats: int) -> dict[str, list[float]]:
    """Seconds by contestant and repeat; all must agree. Who goes first changes from repeat to repeat."""
    taken_s: dict[str, list[float]] = {name: [] for name in contestants}
    # The first one warms up.
    for repeat in range(repeats + 1):
        answers = {}
        for name in list(contestants)[:: 1 if repeat % 2 else -1]:
            start_s = time.perf_counter()
            answers[name] = contestants[name]()
            if repeat:
                taken_s[name].append(time.perf_counter() - start_s)
        first, *others = answers.values()
        assert all(other == first for other in others), "the contestants chose different tokens"
    return taken_s


async def measure(
    whole: WholeModel, address: str, sizes: Sequence[int], clients: int, repeats: int, new_tokens: int
) -> list[tuple[int, dict[str, list[float]]]]:
    """For each batch size ours against generate, then so many clients together against one after the other."""
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        # One thread for each client: the loop's own pool has fewer.
        threads = stack.enter_context(ThreadPoolExecutor(clients))
        team = []
        for _ in range(clients):
            channel = await stack.enter_async_context(open_channel(address, PLAINTEXT))
            team.append(Client(whole, channel, loop, address))
        results = []
        for size in sizes:
            prompts = whole.prompts(size, PROMPT_TOKENS)
            pair: dict[str, Contestant] = {
                "generate": lambda prompts=prompts: whole.generate(prompts, new_tokens),  # type: ignore[misc]
                "ours": lambda prompts=prompts: team[0].answers(prompts, new_tokens),  # type: ignore[misc]
            }
            results.append((size, await asyncio.to_thread(race, pair, repeats)))
        own = [[prompt] for prompt in whole.prompts(clients, PROMPT_TOKENS, seed=1)]
        both: dict[str, Contestant] = {
            "together": lambda: [
                answers[0] for answers in threads.map(lambda one, mine: one.answers(mine, new_tokens), team, own)
            ],
            "one by one": lambda: [
                client.answers(prompts, new_tokens)[0] for client, prompts in zip(team, own, strict=True)
            ],
        }
        results.append((clients, await asyncio.to_thread(race, both, repeats)))
    return results


def compete(given: argparse.Namespace, batching: str) -> list[Figures]:
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory(prefix="fednano-decode-") as scratch, ExitStack() as stack:
        folder = model_folder(given.model, Path(scratch))
        flags = ("--threads", str(given.threads), "--batching", batching)
        address = stack.enter_context(serve(folder, Path(scratch), *flags))
        sizes = [int(size) for size in given.prompts.split(",")]
        work = measure(WholeModel(folder / "server"), address, sizes, given.clients, given.repeats, given.new_tokens)
        return [
            Figures(
                model=given.model,
                threads=given.threads,
                batching=batching,
                prompts=size,
                new_tokens=given.new_tokens,
                seconds=seconds,
            )
            for size, seconds in asyncio.run(work)
        ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__)
    parser.add_argument("--model", default="30M", help="nano, 5M, 30M, 110M, or a folder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts", default="1,8,32", help="batch sizes, with commas between them")
    parser.add_argument("--clients", type=int, default=8, help="clients that decode together, a prompt each")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batching", default="exact")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    all_figures = [one for batching in given.batching.split(",") for one in compete(given, batching)]
    if given.json:
        print(json.dumps({"conditions": conditions(), "figures": [asdict(one) for one in all_figures]}, indent=2))
        return 0
    print("| model | batching | prompts | contestants | ms for a token of each | | ratio |")
    print("| --- | --- | ---: | --- | ---: | ---: | ---: |")
    for one in all_figures:
        below, above = one.seconds
        cells = [one.model, one.batching, str(one.prompts), f"{above} / {below}"]
        taken = [f"{one.token_ms(name):.1f}" for name in (above, below)]
        print(f"| {' | '.join([*cells, *taken])} | {one.ratio(above, below):.2f} |")
    print(conditions_line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
