"""The bytes of a tensor as a sequence of small messages, so that no gRPC message limit is ever raised."""

from collections.abc import Iterator

from fednano.errors import StreamMalformed
from fednano.v1 import tensor_pb2 as pb

# Measured (benchmarks/RESULTS.md): fewer bytes cost more messages, more cost fresh memory for each message.
CHUNK_BYTES = 1 << 19
MAX_CHUNK_BYTES = 2 << 20


def split_chunks(payload: memoryview) -> Iterator[pb.TensorChunk]:
    """Chunks of 512 KiB, in order from offset 0; an empty payload gives none."""
    view = payload.cast("B")
    for offset in range(0, view.nbytes, CHUNK_BYTES):
        yield pb.TensorChunk(offset=offset, data=bytes(view[offset : offset + CHUNK_BYTES]))


class Assembly:
    """Puts the chunks of one payload together; holds no more memory than has come."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.payload = bytearray()

    @property
    def is_complete(self) -> bool:
        return len(self.payload) == self.size_bytes

    def add(self, chunk: pb.TensorChunk) -> None:
        """Raises StreamMalformed for a chunk that is empty, too large, out of order, or past the announced end."""
        # Each look at the field copies it.
        piece = chunk.data
        if not 0 < len(piece) <= MAX_CHUNK_BYTES:
            raise StreamMalformed(f"a chunk has {len(piece)} bytes; 1 to {MAX_CHUNK_BYTES} are allowed")
        if chunk.offset != len(self.payload):
            raise StreamMalformed(f"a chunk starts at {chunk.offset}, but {len(self.payload)} bytes have come")
        if len(self.payload) + len(piece) > self.size_bytes:
            raise StreamMalformed(f"the chunks are longer than the {self.size_bytes} bytes that were announced")
        self.payload += piece
