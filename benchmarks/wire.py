"""Tensors between a client and the LLM server: our frames against plain TCP, and what each encoding costs and saves.

Both ends are processes of their own on loopback. "One way" waits for a word that all has come, "echo" for the same
tensor back; the contestants take turns. Frames are what clients and server use, from tensor to tensor; TCP is a length
and the bytes, into fresh memory too.

S: tokens of a packed batch   D: hidden size
"""

import argparse
import asyncio
import json
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.round_report import conditions, conditions_line
from benchmarks.split_server import PLAINTEXT, model_folder, serve
from benchmarks.split_steps import ragged_passes, train
from benchmarks.wire_peer import PATIENCE_S, receive_exactly, wire_peer
from fednano.model.manifest import read_manifest
from fednano.rpc.channels import open_channel
from fednano.split.frames import FrameStream
from fednano.split.session import SessionTerms, StepSession
from fednano.split.traffic import Traffic
from fednano.v1 import split_service_pb2 as pb
from fednano.v1.split_service_pb2_grpc import SplitServiceStub
from fednano.v1.tensor_pb2 import ENCODING_RAW
from fednano.wire.chunks import split_chunks
from fednano.wire.encodings import ENCODINGS_BY_NAME
from fednano.wire.heap import keep_freed_memory
from fednano.wire.tensors import encode_tensor

KIB = 1024
# Tensor there, tensor or nothing back.
Exchange = Callable[[Tensor, bool], Awaitable[None]]
Frames = FrameStream[pb.StreamStepsRequest, pb.StreamStepsResponse]


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Seconds of each repeat."""

    size_bytes: int
    echo: bool
    tcp_s: list[float]
    frames_s: list[float]

    @property
    def ratio(self) -> float:
        """How fast frames are, TCP being 1."""
        return statistics.median(self.tcp_s) / statistics.median(self.frames_s)


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Both passes of one client's steps in one encoding; bytes are of tensors, in both directions."""

    encoding: str
    tokens: int
    step_bytes: int
    step_s: list[float]

    @property
    def token_bytes(self) -> float:
        return self.step_bytes / self.tokens


def tcp_exchange(address: str) -> Exchange:
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def exchange(tensor: Tensor, echo: bool) -> None:
        payload = encode_tensor(tensor, ENCODING_RAW)[1]
        connection.sendall(payload.nbytes.to_bytes(8, "little") + bytes([echo]))
        connection.sendall(payload)
        receive_exactly(connection, payload.nbytes if echo else 1)

    return exchange


def frames_exchange(stream: Frames) -> Exchange:
    async def exchange(tensor: Tensor, echo: bool) -> None:
        spec, payload = encode_tensor(tensor, ENCODING_RAW)
        await stream.send(pb.StreamStepsRequest(forward=pb.ForwardStep(inputs_embeds=spec, requires_grad=echo)))
        for chunk in split_chunks(payload):
            await stream.send(pb.StreamStepsRequest(chunk=chunk))
        answer = await stream.receive()
        await stream.receive_tensor(answer.forward_result.output, tuple(tensor.shape) if echo else (0,))

    return exchange


async def race(addresses: dict[str, str], sizes_bytes: Sequence[int], repeats: int) -> list[Transfer]:
    async with open_channel(addresses["frames"], PLAINTEXT) as channel:
        call = SplitServiceStub(channel).StreamSteps()
        stream = Frames(call, peer="the echo", progress_timeout_s=PATIENCE_S)
        contestants = [tcp_exchange(addresses["tcp"]), frames_exchange(stream)]
        found = []
        for size_bytes in sizes_bytes:
            tensor = torch.randn(size_bytes // 4)
            for echo in (False, True):
                taken_s = await _laps(contestants, tensor, echo, repeats)
                found.append(Transfer(size_bytes=size_bytes, echo=echo, tcp_s=taken_s[0], frames_s=taken_s[1]))
        stream.cancel()
    return found


async def _laps(contestants: Sequence[Exchange], tensor: Tensor, echo: bool, repeats: int) -> list[list[float]]:
    """By contestant and repeat; who goes first changes, and the first repeat warms up."""
    taken_s: list[list[float]] = [[] for _ in contestants]
    for repeat in range(repeats + 1):
        for index in range(len(contestants))[:: 1 if repeat % 2 else -1]:
            start_s = time.perf_counter()
            await contestants[index](tensor, echo)
            if repeat:
                taken_s[index].append(time.perf_counter() - start_s)
    return taken_s


async def steps_by_encoding(address: str, folder: Path, repeats: int, steps: int) -> list[Encoded]:
    """One client's steps, a session for each encoding, taking turns."""
    manifest = read_manifest(folder / "server")
    (step,) = ragged_passes(1, manifest.hidden_size, sequences=8)
    taken_s: dict[str, list[float]] = {name: [] for name in ENCODINGS_BY_NAME}
    traffic = {name: Traffic() for name in ENCODINGS_BY_NAME}
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(open_channel(address, PLAINTEXT))
        sessions = {}
        for name, encoding in ENCODINGS_BY_NAME.items():
            terms = SessionTerms(manifest=manifest, run="runs/wire", peer=address, encoding=encoding)
            sessions[name] = await StepSession.open(SplitServiceStub(channel), terms, traffic[name])
            stack.callback(sessions[name].cancel)
        for repeat in range(repeats + 1):
            for name in list(sessions)[:: 1 if repeat % 2 else -1]:
                start_s = time.perf_counter()
                await train(sessions[name], step, 1 + repeat * steps, steps)
                if repeat:
                    taken_s[name].append((time.perf_counter() - start_s) / steps)
    step_count = (repeats + 1) * steps
    return [
        Encoded(
            encoding=name,
            tokens=len(step.inputs_embeds_SD),
            step_bytes=(traffic[name].activations_bytes + traffic[name].gradients_bytes) // step_count,
            step_s=taken_s[name],
        )
        for name in sessions
    ]


def measure_encodings(model: str, repeats: int, steps: int) -> list[Encoded]:
    with tempfile.TemporaryDirectory(prefix="fednano-wire-") as scratch:
        folder = model_folder(model, Path(scratch))
        # Alone, sessions that wait for company would only wait.
        with serve(folder, Path(scratch), "--join-window-s", "0") as address:
            return asyncio.run(steps_by_encoding(address, folder, repeats, steps))


def print_tables(transfers: Sequence[Transfer], encoded: Sequence[Encoded]) -> None:
    print("| size, KiB | direction | TCP, ms | frames, ms | frames, MB/s | ratio |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for one in transfers:
        tcp_ms, frames_ms = (1e3 * statistics.median(each) for each in (one.tcp_s, one.frames_s))
        rate = one.size_bytes * (1 + one.echo) / frames_ms / 1e3
        words = [str(one.size_bytes // KIB), "echo" if one.echo else "one way", f"{tcp_ms:.2f}", f"{frames_ms:.2f}"]
        print(f"| {' | '.join(words)} | {rate:.0f} | {one.ratio:.2f} |")
    print()
    print("| encoding | bytes a token | bytes a step | of raw | ms a step | of raw |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for each in encoded:
        share = each.step_bytes / encoded[0].step_bytes
        step_ms, raw_ms = (1e3 * statistics.median(taken_s) for taken_s in (each.step_s, encoded[0].step_s))
        cells = [each.encoding, f"{each.token_bytes:.0f}", str(each.step_bytes), f"{share:.3f}"]
        print(f"| {' | '.join(cells)} | {step_ms:.1f} | {step_ms / raw_ms:.2f} |")
    print(conditions_line())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wire", description=__doc__)
    parser.add_argument("--sizes", default="64,256,1024,4096,16384,65536", help="KiB; commas between them")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--model", default="5M", help="of the steps: nano, 5M, 30M, 110M, or a folder")
    parser.add_argument("--steps", type=int, default=3, help="steps in a repeat")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    with wire_peer() as addresses:
        sizes_bytes = [int(size) * KIB for size in given.sizes.split(",")]
        transfers = asyncio.run(race(addresses, sizes_bytes, given.repeats))
    encoded = measure_encodings(given.model, given.repeats, given.steps)
    if given.json:
        found = {"transfers": [asdict(one) for one in transfers], "encodings": [asdict(one) for one in encoded]}
        print(json.dumps({"conditions": conditions(), **found}, indent=2))
    else:
        print_tables(transfers, encoded)
    return 0


if __name__ == "__main__":
    sys.exit(main())
