"""SplitService over real gRPC on loopback gives the numbers of the model in process.

Dimensions: S tokens of a packed batch, N outputs, D hidden size, V vocabulary.
"""

from typing import Any

import grpc.aio
import pytest
import torch
from split_client import LENGTHS, NANO, PATIENCE_S, POSITIONS, Client, in_process, inputs, split_service, steps
from transformers import AutoModelForCausalLM

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


async def test_get_model_describes_what_is_served(model: LanguageModel) -> None:
    async with split_service(model, max_pass_tokens=77) as stub:
        served = (await stub.GetModel(pb.GetModelRequest(), timeout=PATIENCE_S)).model
    assert (served.name, served.digest) == ("nano", model.manifest.digest)
    assert (served.hidden_size, served.vocab_size, served.max_sequence_length) == (128, 178, 128)
    assert (served.max_pass_tokens, served.compute_type) == (77, tpb.DATA_TYPE_FLOAT32)


@pytest.mark.parametrize(
    ("kind", "number", "width"),
    [("hidden_states", pb.OUTPUT_KIND_HIDDEN_STATES, 128), ("logits", pb.OUTPUT_KIND_LOGITS, 178)],
)
async def test_passes_over_the_wire_equal_those_in_process_bit_for_bit(
    model: LanguageModel, own_model: LanguageModel, kind: str, number: int, width: int
) -> None:
    async with split_service(model) as stub:
        client = steps(stub)
        await client.open(model)
        # Two steps under way at one time, and their backward passes in the other order.
        outputs = {step: await client.forward(step, inputs(step), output_kind=number) for step in (1, 2)}
        for step in (2, 1):
            grad_N = torch.randn(4, width, generator=torch.Generator().manual_seed(step))
            grad_SD = await client.backward(step, grad_N)
            wanted_N, wanted_SD = in_process(own_model, inputs(step), grad_N, kind)
            assert torch.equal(outputs[step], wanted_N)
            assert torch.equal(grad_SD, wanted_SD)
        await client.call.done_writing()
        assert await client.call.read() is grpc.aio.EOF
        assert await client.call.code() is grpc.StatusCode.OK


async def test_tensors_of_many_chunks_pass(model: LanguageModel, own_model: LanguageModel) -> None:
    inputs_SD, lengths = inputs(tokens=5000), [125] * 40
    every = list(range(5000))
    async with split_service(model) as stub:
        client = steps(stub)
        await client.open(model)
        output = await client.forward(1, inputs_SD, sequence_lengths=lengths, output_positions=every)
    assert torch.equal(output, own_model.forward(inputs_SD, lengths, every, "hidden_states"))


async def test_int8_answers_err_by_little(model: LanguageModel, own_model: LanguageModel) -> None:
    async with split_service(model) as stub:
        client = steps(stub)
        await client.open(model, tpb.ENCODING_BLOCKWISE_INT8)
        output = await client.forward(1, inputs())
    wanted = own_model.forward(inputs(), LENGTHS, POSITIONS, "hidden_states")
    error = (output - wanted).abs().max() / wanted.abs().max()
    assert 0 < error < 0.5 / 127 * 1.01


async def test_decoded_answers_are_those_of_generate(model: LanguageModel) -> None:
    plain = AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32, attn_implementation="sdpa").eval()
    embed = plain.get_input_embeddings()
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(3, 178, (length,), generator=generator).tolist() for length in (4, 11, 2)]
    counts = [5, 2, 7]
    answers: list[list[int]] = [[], [], []]
    async with split_service(model) as stub:
        client = Client(stub.Decode(timeout=60), pb.DecodeRequest)
        await client.open(model)
        news = prompts
        while any(news):
            embeds_SD = embed(torch.tensor([token for new in news for token in new])).detach()
            choices = iter((await client.decode(embeds_SD, [len(new) for new in news])).argmax(-1).tolist())
            for answer, new in zip(answers, news, strict=True):
                answer.extend([next(choices)] if new else [])
            news = [
                answer[-1:] if new and len(answer) < count else []
                for answer, new, count in zip(answers, news, counts, strict=True)
            ]
    assert answers == [generate(plain, prompt, count) for prompt, count in zip(prompts, counts, strict=True)]


def generate(plain: Any, prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    tokens = plain.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=None
    )
    return list(tokens[0, len(prompt) :].tolist())
