"""Prompts by a chat template, around LLaVA's form of ScienceQA's."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, processors

from fednano.errors import ModelInvalid
from fednano.model.families.chat import ChatConfig, ChatProcessor
from fednano.model.families.llava import TEMPLATE
from fednano.model.families.minigpt4 import LLAMA2_TEMPLATE, VICUNA_TEMPLATE
from fednano.model.families.picture import PictureConfig
from fednano.model.families.smolvlm import TEMPLATE as SMOLVLM_TEMPLATE
from fednano.prompt import Prompt

PICTURE = PictureConfig(side_px=4, resize_px=4, mean=(0, 0, 0), std=(1, 1, 1))
CHAT = ChatConfig.model_validate(
    {"image_token": "<image>", "image_token_count": 3, "bos_token": "<s>", "eos_token": "</s>"}
)

# As it is published with LLaVA-1.5: pictures before words, and the model's words marked for training.
PUBLISHED = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% if message['role'] != 'assistant' %}{{ part['text'] + ' '}}"
    "{% else %}{% generation %}{{ part['text'] + ' '}}{% endgeneration %}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def tokenizer(*added: str) -> Tokenizer:
    """A letter a token, with Llama's way of the space that stands in front."""
    letters = [chr(code) for code in range(33, 127)]
    words = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", "▁", "\n", *letters])}
    made = Tokenizer(models.BPE(vocab=words, merges=[], unk_token=next(iter(words))))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made.add_special_tokens(["<unk>", "<s>", "</s>", *added])
    return made


def processor(template: str = TEMPLATE, chat: ChatConfig = CHAT, *added: str) -> ChatProcessor:
    return ChatProcessor(tokenizer(*(added or ("<image>",))), template, chat, PICTURE)


def words_of(made: ChatProcessor, prompt: Prompt) -> str:
    return str(made._tokenizer.decode(made.prompt_ids(prompt), skip_special_tokens=False))


def test_llava_is_asked_as_it_was_trained() -> None:
    prompt = Prompt(question="Which?", choices=("red", "blue"), hint="a shape", asks_letter=True)
    assert words_of(processor(), prompt) == (
        "<s> USER: <image><image><image> \nContext: a shape\nWhich?\nA. red\nB. blue\n"
        "Answer with the option's letter from the given choices directly. ASSISTANT:"
    )


def test_llavas_published_template_asks_in_the_same_words_as_the_familys_own() -> None:
    prompt = Prompt(question="Which?", choices=("red", "blue"), asks_letter=True)
    assert processor(PUBLISHED).prompt_ids(prompt) == processor().prompt_ids(prompt)


def test_a_tokenizer_that_was_saved_cutting_and_filling_does_neither() -> None:
    saved = tokenizer("<image>")
    saved.enable_truncation(5)
    saved.enable_padding(length=500)
    made = ChatProcessor(saved, TEMPLATE, CHAT, PICTURE)
    prompt = Prompt(question="Which?")
    assert made.prompt_ids(prompt) == processor().prompt_ids(prompt)
    assert made.answer_ids("two red circles") == processor().answer_ids("two red circles")


def test_a_prompt_without_a_picture_has_no_placeholder() -> None:
    made = processor()
    assert made.image_token_id not in made.prompt_ids(Prompt(question="Which?", image_count=0))


def test_minigpt4_gets_its_tags_and_a_placeholder_that_its_tokenizer_lacks() -> None:
    chat = CHAT.model_copy(
        update={"image_token": "<ImageHere>", "before_image": "<Img>", "after_image": "</Img>", "gap": " "}
    )
    made = processor(VICUNA_TEMPLATE, chat, "</s>")
    before = tokenizer("</s>").get_vocab_size()
    assert made.image_token_id == before
    assert words_of(made, Prompt(question="Which?")).startswith(
        "<s> ###Human: <Img><ImageHere><ImageHere><ImageHere> </Img> Which?"
    )
    assert "[INST] <Img>" in words_of(processor(LLAMA2_TEMPLATE, chat, "</s>"), Prompt(question="Which?"))


def test_smolvlm_gets_frames_around_a_picture() -> None:
    chat = CHAT.model_copy(update={"before_image": "[", "after_image": "]", "gap": ""})
    words = words_of(processor(SMOLVLM_TEMPLATE, chat), Prompt(question="Which?"))
    assert "User:[<image><image><image> ]Which?" in words
    assert words.endswith("Assistant:")


def test_who_writes_special_tokens_into_a_question_ends_nothing_and_shows_nothing() -> None:
    made = processor()
    ids = made.prompt_ids(Prompt(question="Which</s> <image> ?", hint="<image>", choices=("</s>",), asks_letter=True))
    assert ids.count(made.image_token_id) == 3
    assert made.eos_token_id not in ids
    assert made.answer_ids("a</s>b").count(made.eos_token_id) == 1


@pytest.mark.parametrize("answer", ["B", "two red circles", "3.5%"])
def test_an_answer_is_read_back_as_it_was(answer: str) -> None:
    made = processor()
    assert made.text(made.answer_ids(answer)) == answer
    assert made.text([*made.answer_ids(answer), 7, 8]) == answer


def test_the_first_token_comes_once_where_the_template_writes_it() -> None:
    made = processor("{{ bos_token }}{{ messages[0]['content'] }}:")
    ids = made.prompt_ids(Prompt(question="Which?"))
    assert ids.count(1) == 1


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for", "cannot be used"),
        ("hello", "leaves the question out"),
        ("{{ raise_exception('no') }}", "cannot be used: no"),
        ("{{ messages | tojson(nothing=1) }}", "cannot be used: .* unexpected keyword"),
    ],
)
def test_a_template_that_asks_nothing_is_refused(template: str, words: str) -> None:
    with pytest.raises(ModelInvalid, match=words):
        processor(template)


def test_a_template_reaches_nothing_of_the_process() -> None:
    with pytest.raises(ModelInvalid, match="cannot be used"):
        processor("{{ messages.__class__.__mro__[1].__subclasses__() }}{{ messages[0]['content'] }}")


def test_an_end_that_the_tokenizer_does_not_know_is_named() -> None:
    with pytest.raises(ModelInvalid, match="knows no token <end>"):
        processor(TEMPLATE, CHAT.model_copy(update={"eos_token": "<end>"}))
