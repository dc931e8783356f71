"""A DNS server for one test: whatever name is asked for has the same IPv4 addresses."""

import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

A, IN, SECONDS_TO_LIVE = 1, 1, 1
HEADER_BYTES = 12
# An answer without an error, to a question that asked for recursion or not.
FLAGS = 0x8180
POINTER_TO_QUESTION = 0xC000 | HEADER_BYTES


@contextmanager
def name_server(hosts: Sequence[str]) -> Iterator[str]:
    """Its address, as long as the block runs."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as endpoint:
        endpoint.bind(("127.0.0.1", 0))
        endpoint.settimeout(0.1)
        ended = threading.Event()
        thread = threading.Thread(target=_serve, args=(endpoint, hosts, ended), daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{endpoint.getsockname()[1]}"
        finally:
            ended.set()
            thread.join()


def _serve(endpoint: socket.socket, hosts: Sequence[str], ended: threading.Event) -> None:
    while not ended.is_set():
        try:
            query, sender = endpoint.recvfrom(4096)
        except TimeoutError:
            continue
        endpoint.sendto(_answer(query, hosts), sender)


def _answer(query: bytes, hosts: Sequence[str]) -> bytes:
    end = query.index(b"\0", HEADER_BYTES) + 5
    question = query[HEADER_BYTES:end]
    (kind,) = struct.unpack("!H", question[-4:-2])
    found = hosts if kind == A else []
    header = query[:2] + struct.pack("!HHHHH", FLAGS, 1, len(found), 0, 0)
    records = [
        struct.pack("!HHHIH4s", POINTER_TO_QUESTION, A, IN, SECONDS_TO_LIVE, 4, socket.inet_aton(host))
        for host in found
    ]
    return header + question + b"".join(records)
