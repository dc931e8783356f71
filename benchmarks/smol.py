"""What a step of `smol` costs on a CPU, by image tokens and by the type that the language model computes in.

CPU seconds of this process, not time on the wall: the same on a busy machine, as far as its caches allow.

    python -m benchmarks.smol MODEL_FOLDER
"""

import resource
import sys
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from fednano.model.language import LanguageModel, load_language_model
from fednano.model.manifest import resolve_model
from fednano.model.parts import load_edge
from fednano.prompt import Prompt

EXAMPLES, ANSWER_TOKENS, REPEATS = 4, 2, 5
QUESTION = "Against the love locate the wedge."
GRIDS = (3, 4, 7)


def main(model: str) -> None:
    torch.set_num_threads(1)
    folder = resolve_model(model)
    parts = load_edge(folder / "edge")
    own = parts.processor.prompt_ids(Prompt(question=QUESTION))
    text_tokens = len(own) - own.count(parts.processor.image_token_id)
    pixels_BCHW = torch.randn(8, 3, 224, 224)
    parts.vision_encoder(pixels_BCHW)
    seconds = _cpu_seconds(partial(parts.vision_encoder, pixels_BCHW)) / len(pixels_BCHW)
    print(f"a picture through the encoder, float32: {1000 * seconds:.0f} ms of CPU")
    for dtype in (torch.bfloat16, torch.float32):
        language = load_language_model(folder / "server", dtype)
        for grid_side in GRIDS:
            length = text_tokens + grid_side**2 + ANSWER_TOKENS
            seconds = median(_cpu_seconds(partial(_step, language, length)) for _ in range(REPEATS)) / EXAMPLES
            print(f"{dtype}, {grid_side**2} image tokens, {length} in all: {1000 * seconds:.0f} ms of CPU an example")


def _step(language: LanguageModel, length: int) -> None:
    inputs_SD = torch.randn(EXAMPLES * length, language.hidden_size).mul(0.1).requires_grad_()
    positions = [end * length - 1 - answer for end in range(1, EXAMPLES + 1) for answer in reversed(range(2))]
    language.forward(inputs_SD, [length] * EXAMPLES, positions, "hidden_states").float().pow(2).mean().backward()  # type: ignore[no-untyped-call]


def _cpu_seconds(work: Callable[[], object]) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main(sys.argv[1])
