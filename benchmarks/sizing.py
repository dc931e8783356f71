"""python -m benchmarks.sizing: bytes that the LLM server takes for weights, and for each token of graphs and caches.

Counted, not timed: a busy machine changes nothing. Models of random weights.

T: tokens   D: hidden size
"""

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.split_server import SIZES, model_folder
from fednano.model.language import LanguageModel, load_language_model
from fednano.model.packing import Passage
from services.server.passes import run_group

SEQUENCES = 8
SEQUENCE_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of one model in one type."""

    model: str
    compute_type: str
    layers: int
    width: int
    weight_mb: float
    # Of a token whose step awaits its backward pass.
    graph_bytes: int
    # The same, of each layer its inputs alone.
    layer_input_bytes: int
    # Of a position of a sequence that is decoded.
    cache_bytes: int


def measure(name: str, dtype: torch.dtype) -> Sizes:
    layers, width, *_ = SIZES[name]
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(name, Path(scratch), dtype) / "server"
        model = load_language_model(folder, dtype)
        return Sizes(
            model=name,
            compute_type=str(dtype).removeprefix("torch."),
            layers=layers,
            width=width,
            weight_mb=round((folder / "model.safetensors").stat().st_size / 1e6, 1),
            graph_bytes=graph_bytes(model, checkpointed=False),
            layer_input_bytes=graph_bytes(model, checkpointed=True),
            cache_bytes=model.decoder.position_bytes(),
        )


def graph_bytes(model: LanguageModel, *, checkpointed: bool) -> int:
    """A token, in a pass whose sequences need no padding."""
    token_count = SEQUENCES * SEQUENCE_TOKENS
    passage = Passage(
        inputs_embeds_SD=torch.randn(token_count, model.hidden_size),
        sequence_lengths=(SEQUENCE_TOKENS,) * SEQUENCES,
        output_positions=tuple(range(SEQUENCE_TOKENS - 1, token_count, SEQUENCE_TOKENS)),
    )
    group = run_group(model, [passage], "hidden_states", keeps_graph=True, checkpointed=checkpointed)
    return group.size_bytes // token_count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="5M,30M,110M")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = [measure(name, dtype) for name in given.models.split(",") for dtype in (torch.float32, torch.bfloat16)]
    if given.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    print(
        "| model | layers x width | type | weights, MB | graph, KB a token | of layers' inputs | cache, KB a position |"
    )
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        figures = (row.graph_bytes, row.layer_input_bytes, row.cache_bytes)
        kilobytes = " | ".join(f"{count / 1000:.1f}" for count in figures)
        shape = f"{row.layers} x {row.width}"
        print(f"| {row.model} | {shape} | {row.compute_type} | {row.weight_mb} | {kilobytes} |")


if __name__ == "__main__":
    main()
