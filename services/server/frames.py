"""One stream's frames, each read and each written under a deadline."""

import asyncio
from collections.abc import AsyncIterable, Iterator
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

from fednano.errors import FieldInvalid, NoProgress, PeerUnavailable, StreamMalformed
from fednano.v1 import tensor_pb2 as tpb
from fednano.wire.chunks import Assembly, split_chunks
from fednano.wire.encodings import ENCODING_NAMES
from services.server.metrics import ServerMetrics

LINGER_S = 1.0
LINGER_PAUSE_S = 0.1


class Frame(Protocol):
    """A request with the fields that StreamStepsRequest and DecodeRequest share."""

    @property
    def chunk(self) -> tpb.TensorChunk: ...


RequestT = TypeVar("RequestT", bound=Frame)
ResponseT = TypeVar("ResponseT", contravariant=True)


class Writer(Protocol[ResponseT]):
    """The writing end of a call; gRPC's servicer context is one."""

    async def write(self, message: ResponseT, /) -> None: ...


class Frames(Generic[RequestT, ResponseT]):
    """Reads and writes the frames of one stream; counts the bytes of its tensors."""

    def __init__(
        self,
        requests: AsyncIterable[RequestT],
        writer: Writer[ResponseT],
        metrics: ServerMetrics,
        *,
        progress_s: float,
        idle_s: float,
    ) -> None:
        self._requests = aiter(requests)
        self._writer = writer
        self._metrics = metrics
        self._progress_s = progress_s
        self._idle_s = idle_s
        self._header_wait: asyncio.Timeout | None = None
        self._begun = self._stopping = self._at_once = False
        self._encoding: tpb.Encoding.ValueType = tpb.ENCODING_RAW

    async def next_header(self, *, begun: bool = False) -> RequestT | None:
        """The next frame, or None where the client has closed its side. NoProgress after the idle bound.

        PeerUnavailable where the server stops; while it has grace left only if nothing is ``begun`` that awaits more.
        """
        self._begun = begun
        if self._is_over():
            raise _stopping()
        try:
            async with asyncio.timeout(self._idle_s) as self._header_wait:
                return await anext(self._requests, None)
        except TimeoutError:
            if self._is_over():
                raise _stopping() from None
            message = f"the next request did not come within {self._idle_s:g} s; the session is closed"
            raise NoProgress(message) from None
        finally:
            self._header_wait = None

    def stop(self, *, at_once: bool) -> None:
        """The stream ends where its next request is waited for; one that has begun something only ``at_once``."""
        self._stopping, self._at_once = True, at_once
        if self._header_wait is not None and self._is_over():
            self._header_wait.reschedule(asyncio.get_running_loop().time())

    async def opening(self) -> RequestT | None:
        return await self._read(self._progress_s, "the opening frame")

    def agree(self, encoding: "tpb.Encoding.ValueType") -> None:
        """To what the session was granted: the client sends this one or RAW, the server this one alone."""
        self._encoding = encoding

    async def payload(self, spec: tpb.TensorSpec) -> bytearray:
        """The bytes that the spec, which was checked, announces."""
        if spec.encoding not in (tpb.ENCODING_RAW, self._encoding):
            came, granted = (ENCODING_NAMES[encoding] for encoding in (spec.encoding, self._encoding))
            raise FieldInvalid(f"a tensor came as {came}, but this session was granted {granted}", field="encoding")
        assembly = Assembly(spec.size_bytes)
        while not assembly.is_complete:
            request = await self._read(self._progress_s, "a chunk")
            if request is None:
                raise StreamMalformed(f"the stream ended with {len(assembly.payload)} of {spec.size_bytes} bytes")
            # An unset or other field reads as an empty chunk, which is refused.
            assembly.add(request.chunk)
        self._metrics.tensor_bytes.labels("received", ENCODING_NAMES[spec.encoding]).inc(spec.size_bytes)
        return assembly.payload

    def chunks(self, payload: memoryview) -> Iterator[tpb.TensorChunk]:
        """The chunks of an answer, in order."""
        self._metrics.tensor_bytes.labels("sent", ENCODING_NAMES[self._encoding]).inc(payload.nbytes)
        return split_chunks(payload)

    async def send(self, response: ResponseT) -> None:
        """Raises NoProgress where the client does not read for too long."""
        try:
            async with asyncio.timeout(self._progress_s):
                await self._writer.write(response)
        except TimeoutError:
            raise NoProgress(f"the client read nothing for {self._progress_s:g} s") from None

    async def linger(self) -> None:
        """Reads on past a refusal until the client pauses, and forgets it, for at most a second.

        gRPC's Python client shows INTERNAL, not the refusal, where a write of its own meets the end of the call.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while True:
                    async with asyncio.timeout(LINGER_PAUSE_S):
                        if await anext(self._requests, None) is None:
                            return

    def _is_over(self) -> bool:
        return self._stopping and (self._at_once or not self._begun)

    async def _read(self, timeout_s: float, what: str) -> RequestT | None:
        try:
            async with asyncio.timeout(timeout_s):
                return await anext(self._requests, None)
        except TimeoutError:
            raise NoProgress(f"{what} did not come within {timeout_s:g} s; the session is closed") from None


def _stopping() -> PeerUnavailable:
    return PeerUnavailable("the server is stopping: ask another one, or this one again in a moment")
