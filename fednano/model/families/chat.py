"""Prompts as a model's own chat template wants them, around CQM-A as LLaVA writes ScienceQA's.

C: colour channels   H, W: height and width in pixels
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from PIL import Image
from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer
from torch import Tensor

from fednano.errors import ModelInvalid
from fednano.model.families.picture import PictureConfig, pixels_of
from fednano.prompt import Prompt, cqm_a

MARK = "<image>"
_PROBE = "What is it ?"
# What a template may do when it is rendered.
_FAULTS = (TemplateError, TypeError, ValueError)


class ChatConfig(BaseModel):
    """What stands for a picture in a prompt: ``before_image``, ``image_token`` P times, ``after_image``.

    ``gap`` is what follows a picture that stands before the question. A token that the tokenizer does not know is
    added to it, behind its last one: the token embedding is never asked for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_token: str
    image_token_count: int
    before_image: str = ""
    after_image: str = ""
    gap: str = "\n"
    bos_token: str = ""
    eos_token: str


class ChatProcessor:
    """A Processor out of a tokenizer, a chat template and settings."""

    def __init__(self, tokenizer: Tokenizer, template: str, chat: ChatConfig, picture: PictureConfig) -> None:
        # Whoever saved it may have had it cut prompts or fill them up, once.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if tokenizer.token_to_id(chat.image_token) is None:
            tokenizer.add_special_tokens([chat.image_token])
        self._tokenizer = tokenizer
        self._chat = chat
        self._picture = picture
        self.image_token_id = _id_of(tokenizer, chat.image_token)
        self.eos_token_id = _id_of(tokenizer, chat.eos_token)
        specials = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
        self._specials = re.compile("|".join(map(re.escape, {MARK, chat.image_token, chat.eos_token, *specials})))
        self._template = _Template(template, chat)

    def pixels(self, image: Image.Image) -> Tensor:
        return pixels_of(image, self._picture)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        chat = self._chat
        text = self._template.render(self._with_pictures(cqm_a(self._plain(prompt))))
        has_bos = bool(chat.bos_token) and text.startswith(chat.bos_token)
        ids = self._tokenizer.encode(text, add_special_tokens=not has_bos).ids
        return [
            each for token in ids for each in [token] * (chat.image_token_count if token == self.image_token_id else 1)
        ]

    def answer_ids(self, answer: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(self._without_specials(answer), add_special_tokens=False).ids
        return [*ids, self.eos_token_id]

    def text(self, ids: Sequence[int]) -> str:
        ids = list(ids)
        answer_ids = ids[: ids.index(self.eos_token_id)] if self.eos_token_id in ids else ids
        text: str = self._tokenizer.decode(answer_ids, skip_special_tokens=True)
        return text

    def _with_pictures(self, asked: str) -> str:
        chat = self._chat
        first, *rest = asked.split(MARK)
        if rest and not first:
            rest[0] = chat.gap + rest[0].removeprefix("\n")
        return (chat.before_image + chat.image_token + chat.after_image).join([first, *rest])

    def _plain(self, prompt: Prompt) -> Prompt:
        """Who writes a special token into a question must not end the prompt with it, nor show a picture."""
        clean = self._without_specials
        return replace(
            prompt, question=clean(prompt.question), hint=clean(prompt.hint), choices=tuple(map(clean, prompt.choices))
        )

    def _without_specials(self, text: str) -> str:
        return self._specials.sub(" ", text)


def read_tokenizer(content: bytes) -> Tokenizer:
    """Of a tokenizer.json."""
    try:
        if "model" not in json.loads(content):
            raise ValueError("it has no model")
    except (ValueError, TypeError) as error:
        raise ModelInvalid(f"tokenizer.json is no tokenizer ({error}): take the tokenizer of the model") from error
    return Tokenizer.from_buffer(content)


class _Template:
    """A chat template as transformers' tokenizers have them, for one question."""

    def __init__(self, source: str, chat: ChatConfig) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(source)
            self._words = {"bos_token": chat.bos_token, "eos_token": chat.eos_token}
            # Some take the content as a list of parts, others as a text: those print the list, or fail.
            self._takes_parts = False
            self._takes_parts = self._is_clean(self._render([{"type": "text", "text": _PROBE}]))
            if _PROBE not in self.render(_PROBE):
                raise ModelInvalid("the chat template leaves the question out: give another")
        except _FAULTS as error:
            raise ModelInvalid(f"the chat template cannot be used: {error}") from error

    def render(self, asked: str) -> str:
        content: Any = [{"type": "text", "text": asked}] if self._takes_parts else asked
        return self._render(content)

    def _render(self, content: Any) -> str:
        messages = [{"role": "user", "content": content}]
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._words)
        except _FAULTS:
            if isinstance(content, str):
                raise
            return ""

    def _is_clean(self, text: str) -> bool:
        return _PROBE in text and "'text'" not in text


class _Generation(Extension):
    """``{% generation %}``, in LLaVA's templates too, marks the model's words for training; here it does nothing."""

    tags = {"generation"}  # noqa: RUF012 - as the class above has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _id_of(tokenizer: Tokenizer, token: str) -> int:
    if not token:
        message = "no token ends an answer: tokenizer_config.json names no eos_token, nor do the other settings"
        raise ModelInvalid(message, file="tokenizer_config.json")
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise ModelInvalid(f"tokenizer.json knows no token {token}: take the tokenizer of the model")
    return found
