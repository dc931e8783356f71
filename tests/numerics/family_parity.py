"""One example through a whole transformers model, and through its two halves over a real loopback connection.

B: batch   C: colour channels   H, W: height and width in pixels   P: image tokens   T: tokens   D: hidden size
V: vocabulary   N: answer positions
"""

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tiny_families import WholeModel
from torch import Tensor
from whole_and_split import remote_language

from fednano.model.adapter import MODALITIES, NanoAdapters
from fednano.model.batch import EncodedExample, pack, pack_prompts
from fednano.model.cutting.source import LocalFolder
from fednano.model.cutting.split import split_model
from fednano.model.edge import LanguageHalf, NanoEdge, image_embeds
from fednano.model.language import LanguageModel, load_language_model
from fednano.model.parts import load_edge
from fednano.prompt import Prompt

# With two pictures, one of them a choice: LLaVA-OneVision gives a picture that is alone in another way.
PROMPT = Prompt(
    question="what is the colour of this shape ?",
    choices=("red", ""),
    hint="in a circle",
    image_count=2,
    asks_letter=True,
)
IMAGE_COUNT = 2
ANSWER = "red square B"
NEW_TOKENS = 6


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What training and decoding on one example gave."""

    inputs_embeds_TD: Tensor
    logits_NV: Tensor
    loss: Tensor
    image_grad_PD: Tensor
    text_grad_TD: Tensor
    generated: list[int]


@dataclass(frozen=True, kw_only=True)
class Halves:
    edge: NanoEdge
    language: LanguageModel

    @property
    def prompt_ids(self) -> list[int]:
        return self.edge.parts.processor.prompt_ids(PROMPT)

    @property
    def answer_ids(self) -> list[int]:
        return self.edge.parts.processor.answer_ids(ANSWER)


def halves_of(checkpoint: Path, out: Path, *, with_head: bool = False) -> Halves:
    """With adapters as they are before training: they change nothing."""
    split_model(LocalFolder(checkpoint), out, with_head=with_head)
    parts = load_edge(out / "edge")
    adapters = NanoAdapters(MODALITIES, hidden_size=parts.manifest.hidden_size, rank=4, alpha=8)
    return Halves(edge=NanoEdge(parts, adapters), language=load_language_model(out / "server"))


def whole_outcome(whole: WholeModel, halves: Halves, pixels_BCHW: Tensor) -> Outcome:
    """The family's own way from pixels and ids: one forward and backward pass, then ``generate``."""
    prompt_ids, answer_ids = halves.prompt_ids, halves.answer_ids
    ids_T, arguments = torch.tensor(prompt_ids + answer_ids[:-1]), whole.arguments(pixels_BCHW)
    leaves: list[Tensor] = []

    def catch(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        leaves.append(kwargs["inputs_embeds"].detach().requires_grad_())
        return args, {**kwargs, "inputs_embeds": leaves[0]}

    with whole.decoder.register_forward_pre_hook(catch, with_kwargs=True):
        logits_TV = whole.model(input_ids=ids_T[None], **arguments).logits[0]
    logits_NV = logits_TV[len(prompt_ids) - 1 :]
    loss = F.cross_entropy(logits_NV, torch.tensor(answer_ids), reduction="sum")
    grad_TD = torch.autograd.grad(loss, leaves[0])[0][0]
    prompt_1T = torch.tensor([prompt_ids])
    # Else ids that are that of the padding would be left out.
    terms = {"attention_mask": torch.ones_like(prompt_1T), "pad_token_id": 0}
    generated = whole.model.generate(
        input_ids=prompt_1T, **arguments, **terms, max_new_tokens=NEW_TOKENS, do_sample=False
    )[0]
    is_image_T = ids_T == halves.edge.parts.processor.image_token_id
    return Outcome(
        inputs_embeds_TD=leaves[0][0].detach(),
        logits_NV=logits_NV.detach(),
        loss=loss.detach(),
        image_grad_PD=grad_TD[is_image_T],
        text_grad_TD=grad_TD[~is_image_T],
        generated=generated[len(prompt_ids) :].tolist(),
    )


async def split_outcome(halves: Halves, pixels_BCHW: Tensor) -> Outcome:
    """The client's half here, the server's behind gRPC."""
    async with remote_language(halves.edge, halves.language) as remote:
        trained = await asyncio.to_thread(_train, halves, remote, pixels_BCHW)
        example = _example(halves, pixels_BCHW)
        prompts = pack_prompts([example], halves.edge.parts.processor.image_token_id)
        (generated,) = await asyncio.to_thread(remote.greedy_answers, halves.edge, prompts, NEW_TOKENS)
        remote.close()
    return replace(trained, generated=generated)


def _train(halves: Halves, language: LanguageHalf, pixels_BCHW: Tensor) -> Outcome:
    edge = halves.edge
    batch = pack([_example(halves, pixels_BCHW)], edge.parts.processor.image_token_id)
    embeds_TD = edge(batch)
    logits_NV = edge.answer_logits(language, embeds_TD, batch)
    loss = F.cross_entropy(logits_NV, batch.answer_ids_N, reduction="sum")
    (grad_TD,) = torch.autograd.grad(loss, embeds_TD)
    return Outcome(
        inputs_embeds_TD=embeds_TD.detach(),
        logits_NV=logits_NV.detach(),
        loss=loss.detach(),
        image_grad_PD=grad_TD[batch.is_image_S],
        text_grad_TD=grad_TD[~batch.is_image_S],
        generated=[],
    )


def _example(halves: Halves, pixels_BCHW: Tensor) -> EncodedExample:
    return EncodedExample(
        prompt_ids=tuple(halves.prompt_ids),
        answer_ids=tuple(halves.answer_ids),
        image_embeds_PD=image_embeds(halves.edge.parts, pixels_BCHW).flatten(0, 1),
    )
