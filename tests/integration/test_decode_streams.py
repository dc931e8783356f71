"""Several Decode streams over real gRPC share passes and memory, and each gets the tokens of ``generate``.

S: new positions of one stream   D: hidden size
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry
from split_client import PATIENCE_S, Client
from test_shared_passes import sample, server
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config

from fednano.model.language import LanguageModel, load_language_model
from fednano.model.manifest import Manifest, language_digest, write_manifest
from fednano.rpc.channels import open_channel
from fednano.v1 import split_service_pb2 as pb
from fednano.v1.split_service_pb2_grpc import SplitServiceStub
from services.server.exactness import choose_batching

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "qwen2 with a window": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "mistral with a window": MistralConfig(**SIZES, sliding_window=5),
    "gpt2": GPT2Config(vocab_size=50, n_embd=128, n_layer=2, n_head=4, n_positions=96, bos_token_id=1, eos_token_id=2),
}
# Each stream's ragged prompts, and how many tokens each of its sequences gets.
PROMPTS = ((5, 1, 19), (2,), (31, 8, 1), (40, 3))
COUNTS = ((6, 3, 12), (12,), (1, 30, 5), (9, 9))


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("model")
    AutoModelForCausalLM.from_config(CONFIGS[request.param]).save_pretrained(folder)
    manifest = Manifest(model="tiny", family="tiny", digest=language_digest(folder), hidden_size=128, vocab_size=50)
    write_manifest(manifest, folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    model = load_language_model(folder)
    assert choose_batching("exact", model) == "exact"
    return model


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()


def token_prompts() -> list[list[list[int]]]:
    generator = torch.Generator().manual_seed(3)
    return [[torch.randint(3, 50, (length,), generator=generator).tolist() for length in own] for own in PROMPTS]


async def decode_greedily(
    client: Client, plain: Any, prompts: Sequence[Sequence[int]], counts: Sequence[int]
) -> tuple[list[list[int]], list[torch.Tensor]]:
    """The answers, and every output."""
    embed = plain.get_input_embeddings()
    answers: list[list[int]] = [[] for _ in prompts]
    outputs = []
    news: list[list[int]] = [list(prompt) for prompt in prompts]
    while any(news):
        embeds_SD = embed(torch.tensor([token for new in news for token in new])).detach()
        outputs.append(await client.decode(embeds_SD, [len(new) for new in news]))
        chosen = iter(outputs[-1].argmax(-1).tolist())
        for index, new in enumerate(news):
            answers[index] += [next(chosen)] if new else []
            news[index] = answers[index][-1:] if new and len(answers[index]) < counts[index] else []
    return answers, outputs


def generated(plain: Any, prompt: Sequence[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    tokens = plain.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=None
    )
    return list(tokens[0, len(prompt) :].tolist())


async def test_concurrent_streams_get_the_tokens_of_generate_and_the_bits_they_get_alone(
    model: LanguageModel, plain: Any
) -> None:
    registry = CollectorRegistry()
    async with (
        server(model, registry, join_window_s=0.05) as (running, settings),
        open_channel(running.address, settings.security) as channel,
    ):
        stub = SplitServiceStub(channel)

        async def stream(index: int) -> tuple[list[list[int]], list[torch.Tensor]]:
            client = Client(stub.Decode(timeout=60), pb.DecodeRequest)
            await client.open(model)
            result = await decode_greedily(client, plain, token_prompts()[index], COUNTS[index])
            client.call.cancel()
            return result

        together = await asyncio.gather(*map(stream, range(len(PROMPTS))))
        passes, steps = (sample(registry, name, kind="decode") for name in ("pass_seconds_count", "steps_total"))
        alone = [await stream(index) for index in range(len(PROMPTS))]
        await drained(registry)
    assert steps == sum(map(max, COUNTS))
    assert passes < steps * 0.75
    for (answers, outputs), (_, own), prompts, counts in zip(together, alone, token_prompts(), COUNTS, strict=True):
        assert answers == [generated(plain, prompt, count) for prompt, count in zip(prompts, counts, strict=True)]
        assert all(torch.equal(one, other) for one, other in zip(outputs, own, strict=True))


async def drained(registry: CollectorRegistry) -> None:
    """All caches are given back once their streams have ended."""
    async with asyncio.timeout(PATIENCE_S):
        while sample(registry, "cache_bytes") or sample(registry, "input_bytes"):
            await asyncio.sleep(0.01)
