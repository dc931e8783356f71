"""Greedy answers of one model, by transformers' ``generate`` in this process and by streams to a server.

S: tokens of a packed batch   B: prompts   T: tokens of the longest prompt   D: hidden size   V: vocabulary
n: sequences that have not ended
"""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from fednano.model.batch import EncodedExample, PackedBatch, pack_prompts
from fednano.model.edge import OutputKind
from fednano.model.manifest import read_manifest
from fednano.split.decode import DecodeStream, greedy_decode
from fednano.split.session import SessionTerms
from fednano.split.traffic import Traffic
from fednano.v1.split_service_pb2_grpc import SplitServiceStub

NO_TOKEN = -1
Answers = list[list[int]]


class WholeModel:
    """The model as transformers runs it, and what a client of a server holds of it: the embedding."""

    def __init__(self, folder: Path) -> None:
        self.manifest = read_manifest(folder)
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def prompts(self, count: int, lengths: tuple[int, int], seed: int = 0) -> list[list[int]]:
        """Ragged ones, the same at each call."""
        chosen = random.Random(seed)
        words = self.manifest.vocab_size
        return [[chosen.randrange(3, words) for _ in range(chosen.randint(*lengths))] for _ in range(count)]

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Answers:
        longest = max(map(len, prompts))
        ids_BT = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask_BT = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        tokens = self._model.generate(
            ids_BT,
            attention_mask=mask_BT,
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        answers: Answers = tokens[:, longest:].tolist()
        return answers

    def edge(self) -> "TokenEdge":
        return TokenEdge(self._model.get_input_embeddings().weight.detach())


class TokenEdge:
    """A client's half without pictures and adapters."""

    output_kind: OutputKind = "logits"

    def __init__(self, table_VD: Tensor) -> None:
        self._table_VD = table_VD

    def __call__(self, batch: PackedBatch, /) -> Tensor:
        return self.next_embeds(batch.token_ids_S)

    def next_embeds(self, token_ids_B: Tensor, /) -> Tensor:
        return F.embedding(token_ids_B, self._table_VD)

    def logits(self, outputs_ND: Tensor, /) -> Tensor:
        return outputs_ND


class Client:
    """Decodes over a connection of its own; for a thread other than the loop's."""

    def __init__(self, whole: WholeModel, channel: Any, loop: asyncio.AbstractEventLoop, address: str) -> None:
        self._edge = whole.edge()
        self._stub = SplitServiceStub(channel)
        self._loop = loop
        self._terms = SessionTerms(manifest=whole.manifest, run="runs/decode", peer=address)

    def answers(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Answers:
        no_image = torch.zeros(0, self._terms.manifest.hidden_size)
        examples = [EncodedExample(prompt_ids=tuple(ids), answer_ids=(), image_embeds_PD=no_image) for ids in prompts]
        stream = DecodeStream(self._stub, self._terms, Traffic(), self._run)
        try:
            return greedy_decode(
                self._edge,
                stream.decode,
                pack_prompts(examples, NO_TOKEN),
                eos_token_id=NO_TOKEN,
                max_new_tokens=new_tokens,
            )
        finally:
            self._loop.call_soon_threadsafe(stream.cancel)

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
