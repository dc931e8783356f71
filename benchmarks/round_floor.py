"""The floor: a gRPC server that hands out bytes, takes bytes, merges in memory. Nothing is checked, nothing kept."""

import argparse
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np

from benchmarks.round_arena import Arena
from benchmarks.round_marks import send_mark
from benchmarks.round_payload import (
    SHAPES,
    Float32Array,
    initial_adapter,
    make_new,
    merge,
    update_of,
)

SERVICE = "floor.Floor"
OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
CALL_TIMEOUT_S = 300.0


def absent() -> str:
    return ""


def start(arena: Arena) -> None:
    ready = arena.folder / "ready"
    tls = [] if arena.certificates is None else ["--tls", str(arena.certificates.authority.parent)]
    counts = ("--clients", str(arena.clients), "--rounds", str(arena.total_rounds))
    arena.spawn([sys.executable, "-m", __name__, "--ready", ready, *counts, *tls], is_server=True)
    address = arena.wait_for_file(ready)
    for client in range(arena.clients):
        place = ("--address", address, "--marks", arena.marks, "--client", str(client))
        arena.spawn([sys.executable, "-m", __name__, *place, *counts, *tls])


class Floor:
    """Rounds in memory: whoever asks for a round waits until the one before it has all its updates."""

    def __init__(self, clients: int) -> None:
        self._clients = clients
        self._changed = threading.Condition()
        self._round_number = 1
        self._updates: list[list[Float32Array]] = []
        self._content = b"".join(tensor.tobytes() for tensor in initial_adapter())

    def pull(self, request: bytes, _context: grpc.ServicerContext) -> bytes:
        wanted = int(request)
        with self._changed:
            self._changed.wait_for(lambda: self._round_number >= wanted, CALL_TIMEOUT_S)
            return self._content

    def push(self, request: bytes, _context: grpc.ServicerContext) -> bytes:
        with self._changed:
            self._updates.append(_tensors(request))
            if len(self._updates) == self._clients:
                self._content = b"".join(tensor.tobytes() for tensor in merge(self._updates))
                self._updates = []
                self._round_number += 1
                self._changed.notify_all()
        return b""


def _tensors(content: bytes) -> list[Float32Array]:
    flat = np.frombuffer(content, np.float32)
    return [
        part.reshape(shape)
        for part, shape in zip(np.split(flat, 2 * len(SHAPES)), 2 * list(SHAPES.values()), strict=True)
    ]


def _serve(ready: Path, clients: int, tls: Path | None) -> None:
    floor = Floor(clients)
    server = grpc.server(ThreadPoolExecutor(2 * clients), options=OPTIONS)
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        name: grpc.unary_unary_rpc_method_handler(method)
        for name, method in (("Pull", floor.pull), ("Push", floor.push))
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    if tls is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        pair = ((tls / "end.key").read_bytes(), (tls / "end.pem").read_bytes())
        port = server.add_secure_port(
            "127.0.0.1:0", grpc.ssl_server_credentials([pair], (tls / "ca.pem").read_bytes(), True)
        )
    server.start()
    ready.write_text(f"127.0.0.1:{port}")
    server.wait_for_termination()


def _work(address: str, client: int, rounds: int, marks: Path, tls: Path | None) -> None:
    update = update_of(client)
    with _connect(address, tls) as channel:
        pull: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/Pull")
        push: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/Push")
        for number in range(1, rounds + 1):
            pull(str(number).encode(), timeout=CALL_TIMEOUT_S, wait_for_ready=True)
            send_mark(marks, number)
            make_new(update, number)
            push(b"".join(tensor.tobytes() for tensor in update), timeout=CALL_TIMEOUT_S)


def _connect(address: str, tls: Path | None) -> grpc.Channel:
    if tls is None:
        return grpc.insecure_channel(address, options=OPTIONS)
    pems = ((tls / name).read_bytes() for name in ("ca.pem", "end.key", "end.pem"))
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(*pems), options=OPTIONS)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--clients", "--rounds", "--client"):
        parser.add_argument(name, type=int)
    for name in ("--ready", "--tls", "--marks"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--address")
    given = parser.parse_args()
    if given.address is None:
        _serve(given.ready, given.clients, given.tls)
    else:
        _work(given.address, given.client, given.rounds, given.marks, given.tls)


if __name__ == "__main__":
    _main()
