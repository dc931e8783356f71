"""Streams that share decode passes get the bits they get alone, and the tokens that transformers' ``generate`` gives.

S: new positions of one stream   D: hidden size   n: sequences of a stream that go on
"""

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config

from fednano.model.decoding import Decoder, DecodeStep, DecodingState
from fednano.model.language import LanguageModel, load_language_model
from fednano.model.manifest import Manifest, language_digest, write_manifest
from fednano.model.packing import OutputKind

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 4
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**{**SIZES, "num_key_value_heads": 4}),
    "qwen2 with a window": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "mistral with a window": MistralConfig(**SIZES, head_dim=8, sliding_window=WINDOW),
    "gpt2": GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=96, bos_token_id=1, eos_token_id=2),
}
# Several streams, each a batch of ragged prompts; the longest outgrow the windows and the caches' first block.
PROMPTS = ((5, 1, 19), (2,), (31, 33, 8, 1), (1,), (40,))
# How many tokens each of their sequences gets.
COUNTS = ((6, 3, 9), (12,), (1, 40, 5, 2), (7,), (30,))


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("model")
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param])
    # Random weights as small as usual choose the same token for ever.
    for parameter in model.parameters():
        parameter.data.mul_(4.0 if parameter.dim() > 1 else 1.0)
    model.save_pretrained(folder)
    write_manifest(
        Manifest(model="tiny", family="tiny", digest=language_digest(folder), hidden_size=32, vocab_size=50), folder
    )
    return folder


@pytest.fixture(scope="module", params=["plain weights", "packed weights", "packed for decoding"])
def model(request: pytest.FixtureRequest, folder: Path) -> LanguageModel:
    model = load_language_model(folder)
    if request.param != "plain weights":
        model.pack(decoding_only=request.param == "packed for decoding")
    return model


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()


class Stream:
    """A client that decodes greedily: what it sends next, and what it has got."""

    def __init__(self, plain: Any, prompts: Sequence[Sequence[int]], counts: Sequence[int]) -> None:
        self.state = DecodingState()
        self.answers: list[list[int]] = [[] for _ in prompts]
        self.outputs: list[Tensor] = []
        self._embed = plain.get_input_embeddings()
        self.news: list[list[int]] = [list(prompt) for prompt in prompts]
        self._counts = counts

    @property
    def goes_on(self) -> bool:
        return any(self.news)

    def step(self) -> DecodeStep:
        ids = torch.tensor([token for new in self.news for token in new])
        lengths = tuple(len(new) for new in self.news)
        return DecodeStep(state=self.state, inputs_embeds_SD=self._embed(ids).detach(), sequence_lengths=lengths)

    def take(self, outputs_n: Tensor) -> None:
        self.outputs.append(outputs_n)
        chosen = iter(outputs_n.argmax(-1).tolist())
        for index, new in enumerate(self.news):
            self.answers[index] += [next(chosen)] if new else []
            done = len(self.answers[index]) >= self._counts[index]
            self.news[index] = self.answers[index][-1:] if new and not done else []


def streams(plain: Any) -> list[Stream]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for lengths, counts in zip(PROMPTS, COUNTS, strict=True):
        prompts = [torch.randint(3, 50, (length,), generator=generator).tolist() for length in lengths]
        made.append(Stream(plain, prompts, counts))
    return made


def run(decoder: Decoder, given: Sequence[Stream], kind: OutputKind = "logits", joins_late: int = 0) -> None:
    """All of them together, each from the pass on that ``joins_late`` times its place says, until it has all."""
    turn = 0
    while any(stream.goes_on for stream in given):
        present = [stream for at, stream in enumerate(given) if stream.goes_on and turn >= at * joins_late]
        for stream, outputs_n in zip(
            present, decoder.decode([stream.step() for stream in present], kind) if present else [], strict=True
        ):
            stream.take(outputs_n)
        turn += 1


@pytest.mark.parametrize("joins_late", [0, 1, 4])
def test_streams_decoded_together_get_the_tokens_of_generate(model: LanguageModel, plain: Any, joins_late: int) -> None:
    given = streams(plain)
    prompts = [list(stream.news) for stream in given]
    run(model.decoder, given, joins_late=joins_late)
    for stream, own, counts in zip(given, prompts, COUNTS, strict=True):
        assert stream.answers == [generated(plain, prompt, count) for prompt, count in zip(own, counts, strict=True)]
    assert len({token for stream in given for answer in stream.answers for token in answer}) > 10


def generated(plain: Any, prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    tokens = plain.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=None
    )
    return list(tokens[0, len(prompt) :].tolist())


@pytest.mark.parametrize("kind", ["hidden_states", "logits"])
@pytest.mark.parametrize("joins_late", [0, 3])
def test_a_stream_gets_the_same_bits_alone_and_among_others(
    model: LanguageModel, plain: Any, kind: OutputKind, joins_late: int
) -> None:
    together, alone = streams(plain), streams(plain)
    run(model.decoder, together, kind, joins_late)
    for stream in alone:
        run(model.decoder, [stream], kind)
    for one, other in zip(together, alone, strict=True):
        assert len(one.outputs) == len(other.outputs) > 0
        assert all(torch.equal(a, b) for a, b in zip(one.outputs, other.outputs, strict=True))


@pytest.mark.parametrize("decoding_only", [True, False])
def test_packed_and_plain_weights_choose_the_same_tokens(folder: Path, plain: Any, decoding_only: bool) -> None:
    packed, unpacked = load_language_model(folder), load_language_model(folder)
    packed.pack(decoding_only=decoding_only)
    given, other = streams(plain), streams(plain)
    run(packed.decoder, given)
    run(unpacked.decoder, other)
    assert [stream.answers for stream in given] == [stream.answers for stream in other]


def test_a_sequence_that_ends_takes_its_cache_with_it(model: LanguageModel) -> None:
    state = DecodingState()
    step = DecodeStep(state=state, inputs_embeds_SD=torch.zeros(5, 32), sequence_lengths=(2, 3))
    model.decoder.decode([step], "hidden_states")
    ended = weakref.ref(next(iter(state.sequences[0]._layers.values()))[0])  # type: ignore[union-attr]
    gc.disable()
    try:
        model.decode(state, torch.zeros(1, 32), [0, 1], "hidden_states")
        assert ended() is None
    finally:
        gc.enable()
    assert state.lengths == [None, 4]


def test_what_a_position_takes_is_what_the_buffers_take(model: LanguageModel) -> None:
    state = DecodingState()
    lengths = (2, 33, 70)
    step = DecodeStep(state=state, inputs_embeds_SD=torch.zeros(105, 32), sequence_lengths=lengths)
    assert state.capacity(lengths) == 32 + 64 + 96
    model.decoder.decode([step], "hidden_states")
    taken = sum(sequence.size_bytes for sequence in state.sequences if sequence is not None)
    assert taken == (32 + 64 + 96) * model.decoder.position_bytes()
    assert state.capacity((1, 0, 27)) == 32 + 128


def test_a_pass_that_fails_leaves_the_caches_as_they_were(model: LanguageModel) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    steps = [torch.randn(length, 32, generator=torch.Generator().manual_seed(length)) for length in (7, 1, 1)]
    broken, whole = DecodingState(), DecodingState()
    for at, inputs_SD in enumerate(steps):
        if at == 1:
            with pytest.raises(ZeroDivisionError), model.layers.checked(fail):
                model.decode(broken, inputs_SD + 1.0, [1], "logits")
        own = [model.decode(state, inputs_SD, [len(inputs_SD)], "logits") for state in (broken, whole)]
        assert torch.equal(own[0], own[1])
