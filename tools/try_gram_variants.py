"""Whether a variant of the Gram-weighted merge is better on validation examples: one line a variant, alpha and seed.

python -m tools.try_gram_variants --learning-rate 5e-3 --out runs/gram/variants.jsonl
"""

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from experiments.cells import Cell
from experiments.examples import make_examples
from fednano.model.language import load_language_model
from fednano.model.parts import load_edge, resolve_model
from fednano.telemetry import configure_logging
from services.client.features import Features
from tools.simulation.federation import Model, load_holdings, simulate
from tools.simulation.gram_variants import variants


def main() -> None:
    arguments = _parse_arguments()
    configure_logging("simulation", level="warning")
    torch.set_num_threads(1)
    folder = resolve_model(arguments.preset)
    model = Model(parts=load_edge(folder / "edge"), language=load_language_model(folder / "server"))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    done = {(line["variant"], line["alpha"], line["seed"]) for line in lines}
    for seed in arguments.seeds:
        for alpha in arguments.alphas:
            cell = Cell(
                preset=arguments.preset,
                alpha=alpha,
                seed=seed,
                split="val",
                method="fednano_gram",
                learning_rate=arguments.learning_rate,
            )
            for line in _tried(cell, model, done, arguments.only):
                with arguments.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                lines.append(line)
                print(line, flush=True)
    _tell(lines)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compares variants of the Gram-weighted merge on validation.")
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102])
    parser.add_argument("--alphas", type=float, nargs="+", default=[1.0, 0.1])
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def _tried(
    cell: Cell, model: Model, done: set[tuple[str, float, int]], only: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """A line for each variant that has none for the cell's alpha and seed."""
    with tempfile.TemporaryDirectory() as folder:
        examples = make_examples(cell, Path(folder) / "examples")
        holdings = load_holdings(cell, examples, model.parts, Features(model.parts))
        for name, merge in variants(model, holdings).items():
            if (name, cell.alpha, cell.seed) in done or (only and name not in only):
                continue
            report = simulate(cell, model, holdings, Path(folder) / name, merge)
            accuracy = report["accuracy"]["after"]
            yield {"variant": name, "alpha": cell.alpha, "seed": cell.seed, "accuracy": accuracy}


def _tell(lines: Sequence[dict[str, Any]]) -> None:
    found: defaultdict[tuple[str, float], list[float]] = defaultdict(list)
    for line in lines:
        found[line["variant"], line["alpha"]].append(line["accuracy"])
    for (name, alpha), each in found.items():
        print(f"{name:28} alpha {alpha:g}: {100 * fmean(each):.1f} ({len(each)} seeds)")


if __name__ == "__main__":
    main()
