"""SplitService refuses what does not fit, clearly, and no session notices another's fault.

Dimensions: S tokens of a packed batch, N outputs, D hidden size, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import grpc.aio
import pytest
import torch
from split_client import (
    NANO,
    SPEC,
    Client,
    forward_header,
    in_process,
    inputs,
    split_service,
    steps,
)

from fednano.errors import (
    FieldInvalid,
    ModelDigestMismatch,
    NoProgress,
    ServerBusy,
    StepUnknown,
    StreamMalformed,
    TooManyPendingSteps,
    WireError,
)
from fednano.model.language import LanguageModel, load_language_model
from fednano.v1 import split_service_pb2 as pb
from fednano.v1 import tensor_pb2 as tpb


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.set_num_threads(1)
    return load_language_model(NANO)


@pytest.fixture(scope="module")
def own_model() -> LanguageModel:
    """The copy that computes what the server should have answered; not for the server's thread."""
    return load_language_model(NANO)


async def test_another_model_is_refused_with_both_digests(model: LanguageModel) -> None:
    async with split_service(model) as stub:
        for method, request in ((stub.StreamSteps, pb.StreamStepsRequest), (stub.Decode, pb.DecodeRequest)):
            client = Client(method(timeout=60), request)
            await client.send(open_session=pb.OpenSession(model_digest="ab" * 32, encoding=tpb.ENCODING_RAW))
            with pytest.raises(ModelDigestMismatch) as refused:
                await client.read()
            facts = {"expected_digest": model.manifest.digest, "actual_digest": "ab" * 32}
            assert refused.value.facts == facts
            assert all(digest in refused.value.message for digest in facts.values())


def spec_with(**changes: Any) -> tpb.TensorSpec:
    spec = tpb.TensorSpec()
    spec.CopyFrom(SPEC)
    spec.MergeFrom(tpb.TensorSpec(**{name: value for name, value in changes.items() if name != "shape"}))
    if "shape" in changes:
        spec.shape[:] = changes["shape"]
    return spec


Frame = Callable[[], dict[str, Any]]
HOSTILE: dict[str, tuple[type[WireError], str, Frame]] = {
    "an empty frame": (StreamMalformed, "empty frame", dict),
    "a chunk that nothing announced": (StreamMalformed, "chunk came", lambda: {"chunk": tpb.TensorChunk(data=b"x")}),
    "a second opening": (StreamMalformed, "open_session came", lambda: {"open_session": pb.OpenSession()}),
    "no tensor": (FieldInvalid, "shape", lambda: {"forward": forward_header(tpb.TensorSpec())}),
    "another width": (FieldInvalid, "128", lambda: {"forward": forward_header(spec_with(shape=[16, 64]))}),
    "a negative shape": (FieldInvalid, "tokens", lambda: {"forward": forward_header(spec_with(shape=[-16, 128]))}),
    "a shape that overflows": (
        FieldInvalid,
        "tokens",
        lambda: {"forward": forward_header(spec_with(shape=[1 << 62, 128]))},
    ),
    "too many tokens": (
        FieldInvalid,
        "smaller batches",
        lambda: {"forward": forward_header(spec_with(shape=[65, 128]))},
    ),
    "a size that lies": (
        FieldInvalid,
        "size_bytes",
        lambda: {"forward": forward_header(spec_with(size_bytes=1 << 40))},
    ),
    "an unknown type": (FieldInvalid, "data_type", lambda: {"forward": forward_header(spec_with(data_type=9))}),
    "lengths that fall short": (FieldInvalid, "sum", lambda: {"forward": forward_header(SPEC, sequence_lengths=[15])}),
    "a length of zero": (FieldInvalid, "positive", lambda: {"forward": forward_header(SPEC, sequence_lengths=[16, 0])}),
    "a negative length": (
        FieldInvalid,
        "positive",
        lambda: {"forward": forward_header(SPEC, sequence_lengths=[17, -1])},
    ),
    "no lengths": (FieldInvalid, "positive", lambda: {"forward": forward_header(SPEC, sequence_lengths=[])}),
    "no positions": (FieldInvalid, "at least one", lambda: {"forward": forward_header(SPEC, output_positions=[])}),
    "a position twice": (FieldInvalid, "grow", lambda: {"forward": forward_header(SPEC, output_positions=[3, 3])}),
    "a position past the end": (
        FieldInvalid,
        "lie between",
        lambda: {"forward": forward_header(SPEC, output_positions=[16])},
    ),
    "a negative position": (
        FieldInvalid,
        "lie between",
        lambda: {"forward": forward_header(SPEC, output_positions=[-1])},
    ),
    "no output kind": (FieldInvalid, "output_kind", lambda: {"forward": forward_header(SPEC, output_kind=0)}),
    "a backward of an unknown step": (
        StepUnknown,
        "no forward pass 7",
        lambda: {"backward": pb.BackwardStep(step_id=7, grad_output=SPEC)},
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_frame_ends_its_own_session_only(
    model: LanguageModel, own_model: LanguageModel, name: str
) -> None:
    error_class, words, frame = HOSTILE[name]
    async with split_service(model, max_pass_tokens=64) as stub:
        bystander, hostile = steps(stub), steps(stub)
        await bystander.open(model)
        output = await bystander.forward(1, inputs())
        await hostile.open(model)
        await hostile.send(**frame())
        with pytest.raises(error_class, match=words):
            await hostile.read()
        grad_SD = await bystander.backward(1, torch.ones_like(output))
        wanted_SD = in_process(own_model, inputs(), torch.ones(4, 128), "hidden_states")[1]
        assert torch.equal(grad_SD, wanted_SD)


async def test_a_stream_starts_with_its_opening(model: LanguageModel) -> None:
    async with split_service(model) as stub:
        client = steps(stub)
        await client.send(discard=pb.DiscardStep(step_id=1))
        with pytest.raises(StreamMalformed, match="open_session"):
            await client.read()


@pytest.mark.parametrize(("chunk", "words"), [({"offset": 5, "data": b"x"}, "starts at 5"), ({"data": b""}, "0 bytes")])
async def test_chunks_out_of_order_are_refused(model: LanguageModel, chunk: dict[str, Any], words: str) -> None:
    async with split_service(model) as stub:
        client = steps(stub)
        await client.open(model)
        await client.send(forward=forward_header(SPEC))
        await client.send(chunk=tpb.TensorChunk(**chunk))
        with pytest.raises(StreamMalformed, match=words):
            await client.read()


async def test_a_stream_that_ends_inside_a_tensor_is_malformed(model: LanguageModel) -> None:
    async with split_service(model) as stub:
        client = steps(stub)
        await client.open(model)
        await client.send(forward=forward_header(SPEC))
        await client.call.done_writing()
        with pytest.raises(StreamMalformed, match="0 of 8192 bytes"):
            await client.read()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
async def test_values_that_are_not_finite_are_refused_by_field(model: LanguageModel, value: float) -> None:
    async with split_service(model) as stub:
        client = steps(stub)
        await client.open(model)
        inputs_SD = inputs()
        inputs_SD[3, 7] = value
        await client.send_forward(1, inputs_SD)
        with pytest.raises(FieldInvalid, match="finite") as refused:
            await client.read()
        assert refused.value.facts["field"] == "inputs_embeds"


async def test_a_gradient_of_another_shape_is_refused(model: LanguageModel) -> None:
    async with split_service(model) as stub:
        client = steps(stub)
        await client.open(model)
        await client.forward(1, inputs())
        with pytest.raises(FieldInvalid, match=r"\[3, 128\].*\[4, 128\]"):
            await client.backward(1, torch.ones(3, 128))


async def test_pending_steps_are_bounded_and_a_discard_makes_room(model: LanguageModel) -> None:
    async with split_service(model, max_pending_steps=2) as stub:
        client = steps(stub)
        assert (await client.open(model)).max_pending_steps == 2
        for step in (1, 2):
            await client.forward(step, inputs())
        # A pass without a graph needs no room, and an unknown discard is no error.
        await client.forward(3, inputs(), requires_grad=False)
        await client.send(discard=pb.DiscardStep(step_id=99))
        await client.send(discard=pb.DiscardStep(step_id=1))
        await client.forward(4, inputs())
        await client.send(forward=forward_header(SPEC, step_id=5))
        with pytest.raises(TooManyPendingSteps) as refused:
            await client.read()
        assert refused.value.facts["max_pending_steps"] == "2"


@pytest.mark.parametrize("first", ["backward", "discard", "no graph"])
async def test_a_step_that_is_done_is_unknown(model: LanguageModel, first: str) -> None:
    async with split_service(model) as stub:
        client = steps(stub)
        await client.open(model)
        await client.forward(1, inputs(), requires_grad=first != "no graph")
        if first == "backward":
            await client.backward(1, torch.ones(4, 128))
        elif first == "discard":
            await client.send(discard=pb.DiscardStep(step_id=1))
        with pytest.raises(StepUnknown):
            await client.backward(1, torch.ones(4, 128))


async def test_step_ids_grow(model: LanguageModel) -> None:
    async with split_service(model) as stub:
        client = steps(stub)
        await client.open(model)
        await client.forward(2, inputs())
        await client.send(forward=forward_header(SPEC, step_id=2))
        with pytest.raises(FieldInvalid, match="step_id must grow"):
            await client.read()


async def test_a_client_that_stops_inside_a_tensor_or_idles_is_let_go(model: LanguageModel) -> None:
    async with split_service(model, progress_timeout_s=0.3, idle_timeout_s=0.5) as stub:
        stuck = steps(stub)
        await stuck.open(model)
        await stuck.send(forward=forward_header(SPEC))
        with pytest.raises(NoProgress, match="a chunk did not come"):
            await stuck.read()
        idle = steps(stub)
        await idle.open(model)
        with pytest.raises(NoProgress, match="the next request did not come"):
            await idle.read()


async def test_streams_over_the_bound_are_told_to_come_back(model: LanguageModel) -> None:
    async with split_service(model, max_sessions=1) as stub:
        first = steps(stub)
        await first.open(model)
        second = steps(stub)
        with pytest.raises(ServerBusy) as refused:
            await second.open(model)
        assert refused.value.retry_after_s == 5.0
        await first.call.done_writing()
        assert await first.call.code() is grpc.StatusCode.OK
        await steps(stub).open(model)


@pytest.mark.parametrize(
    ("lengths", "words"), [([0, 16], "first step"), ([8, 7], "sum"), ([], "at least one"), ([129 - 16, 16], "sum")]
)
async def test_a_hostile_decode_step_is_refused(model: LanguageModel, lengths: list[int], words: str) -> None:
    async with split_service(model) as stub:
        client = Client(stub.Decode(timeout=60), pb.DecodeRequest)
        await client.open(model)
        step = pb.DecodeStep(inputs_embeds=SPEC, sequence_lengths=lengths, output_kind=pb.OUTPUT_KIND_LOGITS)
        await client.send(step=step)
        with pytest.raises(FieldInvalid, match=words):
            await client.read()


async def test_decoding_stops_at_the_models_longest_sequence_and_at_the_bound_of_the_caches(
    model: LanguageModel,
) -> None:
    async with split_service(model, max_pass_tokens=150) as stub:
        long, wide = (Client(stub.Decode(timeout=60), pb.DecodeRequest) for _ in range(2))
        await long.open(model)
        await long.decode(inputs(tokens=128), [128])
        with pytest.raises(FieldInvalid, match="129 tokens is over"):
            await long.decode(inputs(tokens=1), [1])
        await wide.open(model)
        await wide.decode(inputs(tokens=150), [75, 75])
        with pytest.raises(FieldInvalid, match="caches hold at most 150"):
            await wide.decode(inputs(tokens=2), [1, 1])
