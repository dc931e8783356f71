"""Training and decoding through the network give the very bits that they give in one process."""

import asyncio

import pytest
import torch
from whole_and_split import nano_edge, nano_language, ragged_examples, remote_language

from fednano.model.batch import pack, pack_prompts
from fednano.model.edge import LanguageHalf, NanoEdge
from fednano.model.language import LanguageModel
from fednano.split.decode import greedy_decode
from fednano.v1.run_pb2 import TrainConfig
from services.client.fisher_pass import fisher_information
from services.client.trainer import LocalTraining, example_order


@pytest.fixture(scope="module")
def language() -> LanguageModel:
    return nano_language()


def loss_and_gradients(edge: NanoEdge, language: LanguageHalf) -> dict[str, torch.Tensor]:
    batch = pack(ragged_examples(edge), edge.parts.processor.image_token_id)
    edge.zero_grad()
    loss = edge.answer_nll(language, edge(batch), batch).mean()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in edge.adapters.named_parameters()}
    return {"loss": loss.detach(), **gradients}


def trained(edge: NanoEdge, language: LanguageHalf) -> dict[str, torch.Tensor]:
    config = TrainConfig(local_epochs=2, batch_size=3, learning_rate=1e-2)
    order = example_order(0, 1, "client-1")
    LocalTraining(edge, language, config).run(ragged_examples(edge), order=order, after_step=lambda: None)
    return edge.adapters.state_dict()


def fisher(edge: NanoEdge, language: LanguageHalf) -> dict[str, torch.Tensor]:
    return fisher_information(edge, language, ragged_examples(edge), max_pass_tokens=90, after_batch=lambda: None)


@pytest.mark.parametrize("compute", [loss_and_gradients, trained, fisher])
async def test_the_split_model_computes_the_bits_of_the_whole_one(language: LanguageModel, compute) -> None:
    whole = compute(nano_edge(up_std=0.05), language)
    edge = nano_edge(up_std=0.05)
    async with remote_language(edge, language) as remote:
        split = await asyncio.to_thread(compute, edge, remote)
        remote.close()
    assert whole.keys() == split.keys()
    for name in whole:
        assert torch.equal(whole[name], split[name]), name
        assert whole[name].abs().max() > 0, name


async def test_greedy_answers_are_those_of_the_whole_model(language: LanguageModel) -> None:
    edge = nano_edge(up_std=0.3)
    processor = edge.parts.processor
    prompts = pack_prompts(ragged_examples(edge), processor.image_token_id)
    state = language.start_decoding()
    whole = greedy_decode(
        edge,
        lambda inputs, lengths, kind: language.decode(state, inputs, lengths, kind),
        prompts,
        eos_token_id=processor.eos_token_id,
        max_new_tokens=4,
    )
    async with remote_language(edge, language) as remote:
        split = await asyncio.to_thread(remote.greedy_answers, edge, prompts, 4)
    assert split == whole


async def test_decoding_chooses_what_whole_forward_passes_choose(language: LanguageModel) -> None:
    edge = nano_edge(up_std=0.3)
    processor = edge.parts.processor
    for example in ragged_examples(edge):
        prompts = pack_prompts([example], processor.image_token_id)
        async with remote_language(edge, language) as remote:
            (answer,) = await asyncio.to_thread(remote.greedy_answers, edge, prompts, 4)
        for length in range(len(answer)):
            ids = torch.tensor(answer[:length], dtype=torch.long)
            with torch.no_grad():
                inputs_SD = torch.cat([edge(prompts), edge.next_embeds(ids)])
                outputs = language.forward(inputs_SD, [len(inputs_SD)], [len(inputs_SD) - 1], edge.output_kind)
                assert edge.logits(outputs).argmax().item() == answer[length]
