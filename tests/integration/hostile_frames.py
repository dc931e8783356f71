"""Streams of frames as nobody should send them, drawn by hypothesis: an honest stream, changed in one way or several.

Leaves of a frame are its single fields, found in its descriptor, so that a field that the contract gains is drawn too.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st
from split_client import LENGTHS, POSITIONS, forward_header

from fednano.v1 import split_service_pb2 as pb
from fednano.v1 import tensor_pb2 as tpb
from fednano.wire.chunks import MAX_CHUNK_BYTES, split_chunks
from fednano.wire.encodings import ENCODING_NAMES
from fednano.wire.tensors import encode_tensor

Draw = Callable[[st.SearchStrategy[Any]], Any]
WIDTH = 128
TOKENS = sum(LENGTHS)
GRPC_MAX_BYTES = 4 << 20
INTEGERS = st.sampled_from(
    [*range(-2, 4), *range(15, 18), *range(63, 66), *range(127, 130), *range(8191, 8194)]
    + [sign * (1 << bits) - (sign > 0) for bits in (16, 24, 31, 40, 62, 63) for sign in (-1, 1)]
)
FLOATS = st.floats(width=32)
INT32_TYPES = (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_ENUM)
ENCODINGS = st.sampled_from([tpb.ENCODING_RAW, *ENCODING_NAMES])


@dataclass(frozen=True, kw_only=True, repr=False)
class Assault:
    """One stream. ``must_fail``: no server may answer it with OK."""

    method: str
    what: str
    frames: tuple[bytes, ...]
    must_fail: bool = False
    # gRPC itself refuses a message over 4 MiB, before our code sees it.
    is_over_grpc: bool = False

    def __repr__(self) -> str:
        """Without the frames, which are long."""
        return f"<{self.method}: {self.what[:500]}{', must fail' * self.must_fail}>"


def honest_steps(digest: str, encoding: "tpb.Encoding.ValueType") -> list[pb.StreamStepsRequest]:
    """An opening, a forward pass and its backward pass."""
    spec, payload = encode_tensor(_values(TOKENS), encoding)
    grad_spec, gradient = encode_tensor(_values(4), encoding)
    opening = pb.OpenSession(model_digest=digest, run="runs/hostile", encoding=encoding)
    return [
        pb.StreamStepsRequest(open_session=opening),
        pb.StreamStepsRequest(forward=forward_header(spec)),
        *(pb.StreamStepsRequest(chunk=chunk) for chunk in split_chunks(payload)),
        pb.StreamStepsRequest(backward=pb.BackwardStep(step_id=1, grad_output=grad_spec)),
        *(pb.StreamStepsRequest(chunk=chunk) for chunk in split_chunks(gradient)),
    ]


def honest_losses(digest: str, encoding: "tpb.Encoding.ValueType") -> list[pb.StreamStepsRequest]:
    """An opening, and two steps whose loss the server computes."""
    opening = pb.OpenSession(model_digest=digest, run="runs/hostile", encoding=encoding, loss_on_server=True)
    frames = [pb.StreamStepsRequest(open_session=opening)]
    spec, payload = encode_tensor(_values(TOKENS), encoding)
    for step_id in (1, 2):
        step = pb.LossStep(
            step_id=step_id,
            inputs_embeds=spec,
            sequence_lengths=LENGTHS,
            output_positions=POSITIONS,
            answer_ids=[5, 6, 7, 8],
            weights=[0.5, 0.5, 1.0, 1.0],
        )
        frames.append(pb.StreamStepsRequest(loss=step))
        frames += [pb.StreamStepsRequest(chunk=chunk) for chunk in split_chunks(payload)]
    return frames


def honest_decoding(digest: str, encoding: "tpb.Encoding.ValueType") -> list[pb.DecodeRequest]:
    """An opening, three prompts, and one position more for two of them."""
    frames = [pb.DecodeRequest(open_session=pb.OpenSession(model_digest=digest, run="runs/hostile", encoding=encoding))]
    for lengths in (LENGTHS, [1, 0, 1]):
        spec, payload = encode_tensor(_values(sum(lengths)), encoding)
        step = pb.DecodeStep(inputs_embeds=spec, sequence_lengths=lengths, output_kind=pb.OUTPUT_KIND_LOGITS)
        frames.append(pb.DecodeRequest(step=step))
        frames += [pb.DecodeRequest(chunk=chunk) for chunk in split_chunks(payload)]
    return frames


def assaults(digest: str) -> st.SearchStrategy[Assault]:
    makers = {"steps": honest_steps, "losses": honest_losses, "decoding": honest_decoding}
    honest = {(name, encoding): make(digest, encoding) for name, make in makers.items() for encoding in ENCODING_NAMES}
    names = st.sampled_from(["steps", "steps", "losses", "decoding"])
    kinds = st.sampled_from(
        [_changed_fields] * 6 + [_huge_shape] * 2 + [_shuffled] * 3 + [_corrupted] * 4 + [_cut_off] * 2
        + [_bad_chunk] * 3 + [_not_finite] * 2 + [_other_encoding] + [_noise] + [_oversized]
    )  # fmt: skip

    @st.composite
    def drawn(draw: Draw) -> Assault:
        name, encoding, kind = draw(names), draw(ENCODINGS), draw(kinds)
        frames = [_copy(frame) for frame in honest[name, encoding]]
        found: Assault = kind(draw, "Decode" if name == "decoding" else "StreamSteps", frames)
        return found

    return drawn()


def _changed_fields(draw: Draw, method: str, frames: list[Any]) -> Assault:
    """One to three fields of any frames take values that nobody planned."""
    words = []
    for _ in range(draw(st.integers(1, 3))):
        index = draw(st.integers(0, len(frames) - 1))
        leaves = list(_leaves(frames[index]))
        holder, leaf = leaves[draw(st.integers(0, len(leaves) - 1))]
        words.append(f"frame {index}: {leaf.name} = {_set(draw, holder, leaf)}")
    return _assault(method, "; ".join(words), frames)


def _huge_shape(draw: Draw, method: str, frames: list[Any]) -> Assault:
    """A size that fits its shape, whatever the shape is."""
    shape = draw(st.lists(INTEGERS, max_size=10))
    spec = _spec(frames[1])
    size_bytes = 4
    for size in shape:
        size_bytes *= size
    spec.shape[:] = shape
    spec.data_type, spec.encoding = tpb.DATA_TYPE_FLOAT32, tpb.ENCODING_RAW
    spec.size_bytes = max(-(1 << 63), min(size_bytes, (1 << 63) - 1))
    return _assault(method, f"shape {shape}", frames, must_fail=shape != [TOKENS, WIDTH])


def _shuffled(draw: Draw, method: str, frames: list[Any]) -> Assault:
    """Frames in another order, some left out, some more than once."""
    indices = draw(st.lists(st.integers(0, len(frames) - 1), min_size=1, max_size=8))
    return _assault(method, f"order {indices}", [frames[index] for index in indices], must_fail=indices[0] != 0)


def _corrupted(draw: Draw, method: str, frames: list[Any]) -> Assault:
    """Bits flipped, bytes cut off or put in, in one frame."""
    contents = [frame.SerializeToString() for frame in frames]
    index = draw(st.integers(0, len(contents) - 1))
    content = bytearray(contents[index])
    # Most of a chunk is numbers, in which a flipped bit is no fault.
    place = draw(st.integers(0, min(len(content), 80) - 1))
    match how := draw(st.sampled_from(["flip", "cut", "insert", "repeat"])):
        case "flip":
            content[place] ^= 1 << draw(st.integers(0, 7))
        case "cut":
            del content[place:]
        case "insert":
            content[place:place] = draw(st.binary(min_size=1, max_size=8))
        case "repeat":
            content += content[place:]
    contents[index] = bytes(content)
    return Assault(method=method, what=f"frame {index}: {how} at {place}", frames=tuple(contents))


def _cut_off(draw: Draw, method: str, frames: list[Any]) -> Assault:
    """The stream ends too early, perhaps inside a tensor."""
    kept = draw(st.integers(0, len(frames) - 1))
    # Headers announce a tensor each: they stand at 1 and 3.
    return _assault(method, f"{kept} frames", frames[:kept], must_fail=kept in (2, 4))


def _bad_chunk(draw: Draw, method: str, frames: list[Any]) -> Assault:
    """A chunk at another place, of another length, or empty."""
    chunk = frames[draw(st.sampled_from([2, 4]))].chunk
    match how := draw(st.sampled_from(["offset", "longer", "shorter", "empty"])):
        case "offset":
            chunk.offset = draw(INTEGERS.filter(bool))
        case "longer":
            chunk.data += draw(st.binary(min_size=1, max_size=64))
        case "shorter":
            chunk.data = chunk.data[: draw(st.integers(1, len(chunk.data) - 1))]
        case "empty":
            chunk.data = b""
    return _assault(method, f"chunk: {how}", frames, must_fail=True)


def _not_finite(draw: Draw, method: str, frames: list[Any]) -> Assault:
    """One value, or one scale, is none."""
    index = draw(st.sampled_from([1, 3]))
    tensor = _values(_spec(frames[index]).shape[0])
    tensor[draw(st.integers(0, len(tensor) - 1)), draw(st.integers(0, WIDTH - 1))] = draw(
        st.sampled_from([float("nan"), float("inf"), float("-inf")])
    )
    encoding = _spec(frames[1]).encoding
    frames[index + 1].chunk.data = bytes(encode_tensor(tensor, encoding)[1])
    return _assault(method, f"{ENCODING_NAMES[encoding]} not finite", frames, must_fail=True)


def _other_encoding(draw: Draw, method: str, frames: list[Any]) -> Assault:
    """The opening asks for one encoding, perhaps an unknown one; the tensors come in another."""
    asked = draw(st.sampled_from([*ENCODING_NAMES, 0, 5, 77, -1]))
    frames[0].open_session.encoding = asked
    came = _spec(frames[1]).encoding
    is_granted = asked in ENCODING_NAMES and came in (tpb.ENCODING_RAW, asked)
    return _assault(method, f"asked {asked}, came {came}", frames, must_fail=not is_granted)


def _noise(draw: Draw, method: str, frames: list[Any]) -> Assault:
    """Bytes that mean nothing, first or after the opening."""
    noise = draw(st.lists(st.binary(max_size=200), min_size=1, max_size=5))
    opening = [frames[0].SerializeToString()] * draw(st.integers(0, 1))
    return Assault(method=method, what=f"noise {noise[0][:20]!r}", frames=(*opening, *noise), must_fail=True)


def _oversized(draw: Draw, method: str, frames: list[Any]) -> Assault:
    """A chunk, a text or a list beyond every bound; seldom, for it takes long."""
    match how := draw(st.sampled_from(["chunk", "message", "lengths", "run"])):
        case "chunk":
            frames[2].chunk.data = bytes(MAX_CHUNK_BYTES + 1)
        case "message":
            frames[2].chunk.data = bytes(GRPC_MAX_BYTES + 1)
        case "lengths":
            getattr(frames[1], frames[1].WhichOneof("frame")).sequence_lengths.extend([1] * 200_000)
        case "run":
            frames[0].open_session.run = "runs/" + "r" * (1 << 20)
    return _assault(method, f"oversized {how}", frames, must_fail=True, is_over_grpc=how == "message")


def _assault(method: str, what: str, frames: Sequence[Message], **judged: bool) -> Assault:
    return Assault(method=method, what=what, frames=tuple(frame.SerializeToString() for frame in frames), **judged)


def _leaves(message: Message) -> Iterator[tuple[Message, FieldDescriptor]]:
    """The single fields of what is set in a message, with the message that holds each."""
    for leaf in message.DESCRIPTOR.fields:
        if leaf.cpp_type != FieldDescriptor.CPPTYPE_MESSAGE:
            yield message, leaf
        elif not leaf.is_repeated and message.HasField(leaf.name):
            yield from _leaves(getattr(message, leaf.name))


def _set(draw: Draw, holder: Message, leaf: FieldDescriptor) -> object:
    """Gives the field a value of its type, and says which."""
    if leaf.is_repeated and leaf.cpp_type == FieldDescriptor.CPPTYPE_FLOAT:
        floats = draw(st.lists(FLOATS, max_size=6))
        getattr(holder, leaf.name)[:] = floats
        return floats
    if leaf.is_repeated:
        values = [_fitting(value, leaf) for value in draw(st.lists(INTEGERS, max_size=6))]
        getattr(holder, leaf.name)[:] = values
        return values
    value: object
    match leaf.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            value = not getattr(holder, leaf.name)
        case FieldDescriptor.CPPTYPE_STRING:
            is_bytes = leaf.type == FieldDescriptor.TYPE_BYTES
            value = draw(st.binary(max_size=40) if is_bytes else st.text(max_size=20))
        case _:
            value = _fitting(draw(INTEGERS), leaf)
    setattr(holder, leaf.name, value)
    return value


def _fitting(value: int, leaf: FieldDescriptor) -> int:
    return max(-(1 << 31), min(value, (1 << 31) - 1)) if leaf.cpp_type in INT32_TYPES else value


def _spec(header: Any) -> tpb.TensorSpec:
    """Of the tensor that a header announces."""
    step = getattr(header, header.WhichOneof("frame"))
    spec: tpb.TensorSpec = step.grad_output if isinstance(step, pb.BackwardStep) else step.inputs_embeds
    return spec


def _copy(frame: Message) -> Message:
    twin = type(frame)()
    twin.CopyFrom(frame)
    return twin


def _values(rows: int) -> torch.Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(rows))
