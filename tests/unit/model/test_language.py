"""The packed language half gives the numbers of plain transformers, sequence by sequence.

Dimensions: S tokens of a packed batch, T of one sequence, D hidden size, N output positions.
"""

import shutil
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from fednano.errors import FieldInvalid, ModelInvalid
from fednano.model.language import LanguageModel, load_language_model
from fednano.model.packing import OutputKind

NANO = Path(__file__).resolve().parents[3] / "fednano" / "model" / "presets" / "nano" / "server"
LENGTHS = (7, 1, 30, 12)
KINDS: tuple[OutputKind, ...] = ("hidden_states", "logits")


@pytest.fixture(scope="module")
def packed() -> LanguageModel:
    torch.set_num_threads(1)
    return load_language_model(NANO)


@pytest.fixture(scope="module")
def plain() -> Any:
    model = AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32, attn_implementation="sdpa")
    return model.eval().requires_grad_(False)


def embeddings(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, 128, generator=generator) for length in LENGTHS]


def plain_outputs(plain: Any, inputs_embeds_TD: Tensor, kind: OutputKind) -> Tensor:
    result = plain(inputs_embeds=inputs_embeds_TD[None], output_hidden_states=True)
    outputs: Tensor = result.logits[0] if kind == "logits" else result.hidden_states[-1][0]
    return outputs


@pytest.mark.parametrize("kind", KINDS)
def test_packed_outputs_are_those_of_each_sequence_alone(packed: LanguageModel, plain: Any, kind: OutputKind) -> None:
    parts = embeddings()
    wanted = torch.cat([plain_outputs(plain, part, kind) for part in parts])
    output = packed.forward(torch.cat(parts), LENGTHS, range(50), kind)
    torch.testing.assert_close(output, wanted, atol=1e-5, rtol=1e-5)
    some = packed.forward(torch.cat(parts), LENGTHS, [0, 7, 49], kind)
    torch.testing.assert_close(some, wanted[[0, 7, 49]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_gradients_are_those_of_each_sequence_alone(packed: LanguageModel, plain: Any, kind: OutputKind) -> None:
    inputs_SD = torch.cat(embeddings()).requires_grad_()
    torch.autograd.backward(packed.forward(inputs_SD, LENGTHS, range(50), kind).square().sum())
    alone = [part.requires_grad_() for part in embeddings()]
    for part in alone:
        torch.autograd.backward(plain_outputs(plain, part, kind).square().sum())
    wanted = torch.cat([part.grad for part in alone if part.grad is not None])
    assert inputs_SD.grad is not None
    torch.testing.assert_close(inputs_SD.grad, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=1e-5)


def test_no_sequence_sees_another_one(packed: LanguageModel) -> None:
    inputs_SD = torch.cat(embeddings())
    before = packed.forward(inputs_SD, LENGTHS, range(8, 38), "hidden_states")
    inputs_SD[:8] += 1.0
    inputs_SD[38:] -= 1.0
    after = packed.forward(inputs_SD, LENGTHS, range(8, 38), "hidden_states")
    torch.testing.assert_close(before, after, atol=0, rtol=0)


def test_no_weight_can_change(packed: LanguageModel) -> None:
    inputs_SD = torch.cat(embeddings()).requires_grad_()
    torch.autograd.backward(packed.forward(inputs_SD, LENGTHS, [49], "logits").sum())
    assert all(not weight.requires_grad and weight.grad is None for weight in packed._model.parameters())
    assert not packed._model.training


def decode_greedily(packed: LanguageModel, prompts: list[list[int]], steps: list[int]) -> list[list[int]]:
    """Greedy tokens of each prompt, ``steps[i]`` many for prompt i: sequences end at different times."""
    embed = packed._model.get_input_embeddings()
    state = packed.start_decoding()
    answers: list[list[int]] = [[] for _ in prompts]
    news = prompts
    while any(news):
        ids = torch.tensor([token for new in news for token in new])
        logits_NV = packed.decode(state, embed(ids), [len(new) for new in news], "logits")
        choices = iter(logits_NV.argmax(-1).tolist())
        news = [[next(choices)] if new else [] for new in news]
        for answer, new in zip(answers, news, strict=True):
            answer.extend(new)
        news = [new if len(answer) < step else [] for new, answer, step in zip(news, answers, steps, strict=True)]
    return answers


def test_decoded_tokens_are_those_of_generate(packed: LanguageModel, plain: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, 178, (length,), generator=generator).tolist() for length in (5, 1, 19)]
    steps = [6, 3, 9]
    wanted = [
        plain.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=step,
            min_new_tokens=0,
            do_sample=False,
            eos_token_id=None,
        )[0, len(prompt) :].tolist()
        for prompt, step in zip(prompts, steps, strict=True)
    ]
    assert decode_greedily(packed, prompts, steps) == wanted


def test_positions_appended_in_pieces_give_the_outputs_of_one_pass(packed: LanguageModel) -> None:
    parts = embeddings()
    state = packed.start_decoding()
    packed.decode(state, torch.cat([part[: (len(part) + 1) // 2] for part in parts]), [4, 1, 15, 6], "hidden_states")
    rest = torch.cat([parts[0][4:], parts[2][15:], parts[3][6:]])
    output = packed.decode(state, rest, [3, 0, 15, 6], "hidden_states")
    ends = list(accumulate(LENGTHS))
    wanted = packed.forward(torch.cat(parts), LENGTHS, [ends[0] - 1, ends[2] - 1, ends[3] - 1], "hidden_states")
    torch.testing.assert_close(output, wanted, atol=1e-5, rtol=1e-5)
    assert state.lengths == [7, None, 30, 12]


@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [0, 0], [1, -1]])
def test_decoding_refuses_lengths_that_do_not_follow(packed: LanguageModel, lengths: list[int]) -> None:
    state = packed.start_decoding()
    with pytest.raises(FieldInvalid, match="first step"):
        packed.decode(state, torch.zeros(2, 128), [2, 0], "logits")
    packed.decode(state, torch.zeros(4, 128), [2, 2], "logits")
    with pytest.raises(FieldInvalid):
        packed.decode(state, torch.zeros(sum(lengths), 128), lengths, "logits")


def test_a_sequence_that_has_ended_cannot_go_on(packed: LanguageModel) -> None:
    state = packed.start_decoding()
    packed.decode(state, torch.zeros(4, 128), [2, 2], "logits")
    packed.decode(state, torch.zeros(1, 128), [1, 0], "logits")
    with pytest.raises(FieldInvalid, match="ended"):
        packed.decode(state, torch.zeros(2, 128), [1, 1], "logits")


def test_weights_that_were_changed_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    shutil.copytree(NANO, folder)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(ModelInvalid, match="digest"):
        load_language_model(folder)


def test_an_empty_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelInvalid, match=r"manifest\.json"):
        load_language_model(tmp_path)
