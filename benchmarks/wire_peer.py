"""The far ends of the race over loopback, in a process of their own: an echo over plain TCP, and one over our frames.

`python -m benchmarks.wire_peer` prints the two addresses and serves until it is ended.
"""

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry

from benchmarks.split_server import PLAINTEXT, REPOSITORY, STOP_TIMEOUT_S
from fednano.rpc.server import serving
from fednano.telemetry import configure_logging
from fednano.v1 import split_service_pb2 as pb
from fednano.v1 import split_service_pb2_grpc as rpc
from fednano.v1 import tensor_pb2 as tpb
from fednano.wire.heap import keep_freed_memory
from fednano.wire.tensors import decode_tensor, encode_tensor
from services.server.frames import Frames
from services.server.metrics import ServerMetrics

SERVICE = pb.DESCRIPTOR.services_by_name["SplitService"].full_name
# Eight bytes of length, one that says whether to send the bytes back.
HEADER_BYTES = 9
PATIENCE_S = 60.0


class EchoServicer(rpc.SplitServiceServicer):
    """A forward pass without a model: the tensor comes back where ``requires_grad`` is set, otherwise an empty one."""

    async def StreamSteps(
        self, request_iterator: AsyncIterable[pb.StreamStepsRequest], context: Any
    ) -> AsyncIterator[pb.StreamStepsResponse]:
        frames: Frames[pb.StreamStepsRequest, pb.StreamStepsResponse] = Frames(
            request_iterator, context, ServerMetrics(CollectorRegistry()), progress_s=PATIENCE_S, idle_s=PATIENCE_S
        )
        while (request := await frames.next_header()) is not None:
            spec = request.forward.inputs_embeds
            tensor = decode_tensor(spec, await frames.payload(spec))
            answer, payload = encode_tensor(tensor if request.forward.requires_grad else tensor[:0], tpb.ENCODING_RAW)
            await frames.send(pb.StreamStepsResponse(forward_result=pb.ForwardResult(output=answer)))
            for chunk in frames.chunks(payload):
                await frames.send(pb.StreamStepsResponse(chunk=chunk))
        left: tuple[pb.StreamStepsResponse, ...] = ()
        for response in left:
            yield response


def receive_exactly(connection: socket.socket, size_bytes: int) -> bytearray:
    buffer = bytearray(size_bytes)
    view, received = memoryview(buffer), 0
    while received < size_bytes:
        count = connection.recv_into(view[received:])
        if not count:
            raise ConnectionError(f"the peer left after {received} of {size_bytes} bytes")
        received += count
    return buffer


def _echo(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        while True:
            header = receive_exactly(connection, HEADER_BYTES)
            payload = receive_exactly(connection, int.from_bytes(header[:8], "little"))
            connection.sendall(payload if header[8] else b"\x00")
    except ConnectionError:
        connection.close()


def _accept(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_echo, args=(connection,), daemon=True).start()


async def _serve() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_accept, args=(listener,), daemon=True).start()
        servicer = EchoServicer()  # type: ignore[abstract]
        services = {SERVICE: lambda server: rpc.add_SplitServiceServicer_to_server(servicer, server)}
        async with serving(services, "127.0.0.1:0", PLAINTEXT, grace_s=0) as running:
            port = listener.getsockname()[1]
            sys.stdout.write(json.dumps({"tcp": f"127.0.0.1:{port}", "frames": running.address}) + "\n")
            sys.stdout.flush()
            await asyncio.Event().wait()


@contextmanager
def wire_peer() -> Iterator[dict[str, str]]:
    """The addresses of the two echoes, while the block runs."""
    command = [sys.executable, "-m", "benchmarks.wire_peer"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            addresses: dict[str, str] = json.loads(process.stdout.readline())
            yield addresses
        finally:
            process.terminate()
            process.wait(STOP_TIMEOUT_S)


if __name__ == "__main__":
    keep_freed_memory()
    configure_logging("wire peer", level="ERROR")
    asyncio.run(_serve())
