"""What a header may say. Each check names the field that is wrong; none looks at a tensor's bytes."""

from collections.abc import Sequence
from itertools import pairwise

from fednano.errors import FieldInvalid, ModelDigestMismatch, StreamMalformed, Unsupported
from fednano.model.language import LanguageModel
from fednano.model.packing import OutputKind
from fednano.names import RunName
from fednano.v1 import split_service_pb2 as pb
from fednano.v1 import tensor_pb2 as tpb
from fednano.wire.encodings import ENCODING_NAMES
from fednano.wire.tensors import check_spec

_OUTPUT_KINDS: dict[int, OutputKind] = {
    pb.OUTPUT_KIND_HIDDEN_STATES: "hidden_states",
    pb.OUTPUT_KIND_LOGITS: "logits",
}
WIDEST_ELEMENT_BYTES = 4


def check_open(frame: pb.OpenSession | None, digest: str, offered: Sequence[str]) -> pb.OpenSession:
    """The opening frame, if it is one, fits the model whose digest is given, and asks for an encoding on offer."""
    if frame is None:
        raise StreamMalformed("the first frame of a stream is open_session")
    if frame.model_digest != digest:
        raise ModelDigestMismatch(
            f"the edge half fits the model {frame.model_digest or '(no digest)'}, but this server runs {digest}; "
            "give both halves of one model",
            expected_digest=digest,
            actual_digest=frame.model_digest,
        )
    _check_encoding(frame.encoding, offered)
    if frame.run:
        RunName.parse(frame.run, "open_session.run")
    return frame


def _check_encoding(asked: "tpb.Encoding.ValueType", offered: Sequence[str]) -> None:
    field = "open_session.encoding"
    if asked == tpb.ENCODING_UNSPECIFIED:
        raise FieldInvalid("the opening frame says no encoding; RAW keeps every bit", field=field)
    name = ENCODING_NAMES.get(asked, str(asked))
    if name not in offered:
        message = f"the encoding {name} is not on offer here: open the session with one of {', '.join(offered)}"
        raise Unsupported(message, field=field, value=name)


def check_forward(step: pb.ForwardStep, model: LanguageModel, max_pass_tokens: int) -> OutputKind:
    """The kind of output, once every field of the header holds."""
    tokens = check_embeds(step.inputs_embeds, model.hidden_size, max_pass_tokens)
    if min(step.sequence_lengths, default=0) < 1 or sum(step.sequence_lengths) != tokens:
        message = f"sequence_lengths must be positive and sum to the {tokens} rows of inputs_embeds"
        raise FieldInvalid(message, field="sequence_lengths")
    check_longest(max(step.sequence_lengths), model)
    positions = step.output_positions
    if not positions or positions[0] < 0 or positions[-1] >= tokens or any(a >= b for a, b in pairwise(positions)):
        message = f"output_positions must be at least one, grow, and lie between 0 and {tokens - 1}"
        raise FieldInvalid(message, field="output_positions")
    return check_output_kind(step.output_kind)


def check_embeds(spec: tpb.TensorSpec, hidden_size: int, max_pass_tokens: int) -> int:
    """S of inputs_embeds [S, D]."""
    field = "inputs_embeds.shape"
    if len(spec.shape) != 2 or spec.shape[1] != hidden_size:
        message = f"inputs_embeds has the shape {list(spec.shape)}, but this model takes [S, {hidden_size}]"
        raise FieldInvalid(message, field=field)
    if not 1 <= spec.shape[0] <= max_pass_tokens:
        message = f"a pass has 1 to {max_pass_tokens} tokens, not {spec.shape[0]}: send smaller batches"
        raise FieldInvalid(message, field=field)
    check_spec(spec, max_bytes=spec.shape[0] * hidden_size * WIDEST_ELEMENT_BYTES)
    return int(spec.shape[0])


def step_bytes(step: pb.ForwardStep, model: LanguageModel) -> int:
    """What a checked step takes in until it is done: its inputs, and its gradient where one will follow."""
    width = model.vocab_size if step.output_kind == pb.OUTPUT_KIND_LOGITS else model.hidden_size
    elements = step.inputs_embeds.shape[0] * model.hidden_size
    if step.requires_grad:
        elements += len(step.output_positions) * width
    return elements * WIDEST_ELEMENT_BYTES


def check_gradient(spec: tpb.TensorSpec, shape: Sequence[int]) -> None:
    """That grad_output has the shape of the output it belongs to."""
    if list(spec.shape) != list(shape):
        message = f"grad_output has the shape {list(spec.shape)}, but that pass's output has {list(shape)}"
        raise FieldInvalid(message, field="grad_output.shape")
    check_spec(spec, max_bytes=shape[0] * shape[1] * WIDEST_ELEMENT_BYTES)


def check_longest(length: int, model: LanguageModel) -> None:
    if length > model.max_sequence_length:
        message = f"a sequence of {length} tokens is over the model's {model.max_sequence_length}"
        raise FieldInvalid(message, field="sequence_lengths")


def check_output_kind(kind: int) -> OutputKind:
    if kind not in _OUTPUT_KINDS:
        raise FieldInvalid("output_kind must be HIDDEN_STATES or LOGITS", field="output_kind")
    return _OUTPUT_KINDS[kind]
