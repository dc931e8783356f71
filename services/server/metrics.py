"""What the LLM server counts of its sessions and passes. No label names a client."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from fednano.metrics import SECONDS_BUCKETS
from services.server.shares import RANKS, REST, ClientShares

PassKind = Literal["forward", "backward", "loss", "decode"]
SessionKind = Literal["steps", "decode"]
ResultT = TypeVar("ResultT")


class ServerMetrics:
    """One for a process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._sessions = Gauge("fednano_server_sessions", "Streams that are open.", ["kind"], registry=registry)
        self._steps = Counter("fednano_server_steps", "Steps whose pass has ended well.", ["kind"], registry=registry)
        self._tokens = Counter("fednano_server_tokens", "Tokens of passes, inputs alone.", ["kind"], registry=registry)
        self._sequences, self._pass_tokens = _pass_sizes(registry)
        self._seconds = Histogram(
            "fednano_server_pass_seconds",
            "The model's time for a pass, without the wait for it.",
            ["kind"],
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self.queue_length = Gauge(
            "fednano_server_queue_length", "Requests that wait for the model or are in it.", registry=registry
        )
        self.graph_bytes = Gauge("fednano_server_graph_bytes", "Graphs awaiting their backward.", registry=registry)
        self.cache_bytes = Gauge("fednano_server_cache_bytes", "Caches of decoded sequences.", registry=registry)
        self.input_bytes = Gauge("fednano_server_input_bytes", "Clients' tensors taken in.", registry=registry)
        self.tensor_bytes = Counter(
            "fednano_server_tensor_bytes",
            "Encoded bytes of tensors, without their headers.",
            ["direction", "encoding"],
            registry=registry,
        )
        self.graphs_dropped = Counter(
            "fednano_server_graphs_dropped", "Graphs freed to make room for others.", registry=registry
        )
        self.checkpointed = Counter(
            "fednano_server_checkpointed", "Passes of which only each layer's inputs were kept.", registry=registry
        )
        self.abandoned = Counter(
            "fednano_server_abandoned", "Passes that ended between two layers.", ["kind"], registry=registry
        )
        self.recomputed = Counter(
            "fednano_server_recomputed", "Steps whose backward pass did the forward pass again.", registry=registry
        )
        self.shares = ClientShares()
        self._watch_shares(registry)

    @contextmanager
    def session(self, kind: SessionKind) -> Iterator[None]:
        gauge = self._sessions.labels(kind)
        gauge.inc()
        try:
            yield
        finally:
            gauge.dec()

    def timed(
        self, work: Callable[[], ResultT], kind: PassKind, tokens: int, members: int = 1, sequences: int = 1
    ) -> Callable[[], ResultT]:
        """``work``, one pass for so many members with so many sequences, counted when it is done."""

        def timed() -> ResultT:
            start_s = time.perf_counter()
            result = work()
            self._seconds.labels(kind).observe(time.perf_counter() - start_s)
            self._steps.labels(kind).inc(members)
            self._tokens.labels(kind).inc(tokens)
            self._sequences.labels(kind).observe(sequences)
            self._pass_tokens.labels(kind).observe(tokens)
            return result

        return timed

    def _watch_shares(self, registry: CollectorRegistry) -> None:
        share = Gauge(
            "fednano_server_client_share",
            "Part of the last minute's tokens, by rank of the client.",
            ["rank"],
            registry=registry,
        )
        for rank in [*map(str, range(1, RANKS + 1)), REST]:
            share.labels(rank).set_function(partial(self._share_of, rank))
        clients = Gauge("fednano_server_clients", "Clients that had a pass in the last minute.", registry=registry)
        clients.set_function(lambda: self.shares.client_count(time.monotonic()))

    def _share_of(self, rank: str) -> float:
        return self.shares.by_rank(time.monotonic())[rank]


def _pass_sizes(registry: CollectorRegistry) -> tuple[Histogram, Histogram]:
    sizes = [2**power for power in range(15)]
    return (
        Histogram(
            "fednano_server_pass_sequences", "Sequences of a pass.", ["kind"], buckets=sizes[:9], registry=registry
        ),
        Histogram(
            "fednano_server_pass_tokens", "Tokens of a pass, inputs alone.", ["kind"], buckets=sizes, registry=registry
        ),
    )
