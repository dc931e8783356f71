"""Compares settings of the Fisher merge on validation examples, with the demo's federation in one process.

Everything but the network is the demo's own: examples, language model, local training, Fisher pass, merge. Each line
is one setting and seed; seeds are of validation, never those that results are reported on. One takes a minute or two.

    python tools/choose_fisher.py --seeds 100 101 102 --settings no-cap default-cap
"""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from safetensors.torch import load_file, save_file

from fednano.cli.options import DemoMethod, DemoOptions, run_config
from fednano.data.icon_federation import write_icon_federation
from fednano.data.scoring import is_right
from fednano.merge.updates import MergeUpdate
from fednano.model.batch import consecutive, pack_prompts
from fednano.model.edge import NanoEdge
from fednano.model.language import LanguageModel, load_language_model
from fednano.model.parts import EdgeParts, load_edge, resolve_model
from fednano.split.decode import greedy_decode
from fednano.v1 import run_pb2, split_service_pb2
from services.aggregator.merging import initial_content, merged
from services.client.examples import ExampleSet, load_example_set
from services.client.fisher_pass import fisher_information
from services.client.local_work import new_adapters
from services.client.trainer import LocalTraining, example_order

MAX_PASS_TOKENS = 8192
EVALUATION_BATCH = 64
L2 = run_pb2.FisherConfig.NORMALIZATION_L2
SETTINGS: Mapping[str, run_pb2.FisherConfig | None] = {
    "fedavg": None,
    "no-cap": run_pb2.FisherConfig(normalization=L2, floor=1.0, max_share=1.0),
    "default-cap": run_pb2.FisherConfig(normalization=L2, floor=1.0),
    "floor-0.1": run_pb2.FisherConfig(normalization=L2, floor=0.1),
    "rank": run_pb2.FisherConfig(normalization=run_pb2.FisherConfig.NORMALIZATION_RANK),
    "literal": run_pb2.FisherConfig(normalization=run_pb2.FisherConfig.NORMALIZATION_NONE, max_share=1.0),
}


@dataclass(frozen=True, kw_only=True)
class SimulatedClient:
    name: str
    train: ExampleSet
    val: ExampleSet


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Accuracy over all clients' validation examples, and what the merges measured, the mean over the rounds."""

    accuracy: float
    effective_clients: float
    largest_share: float
    capped_tensors: float


def main() -> None:
    arguments = _parse_arguments()
    torch.set_num_threads(1)
    model = resolve_model("nano")
    parts, language = load_edge(model / "edge"), load_language_model(model / "server")
    outcomes: dict[str, list[Outcome]] = {setting: [] for setting in arguments.settings}
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            clients = _clients(Path(folder), parts, seed)
            for setting in arguments.settings:
                start_s = time.monotonic()
                outcome = simulate(Path(folder), _config(setting, seed, parts), clients, parts, language)
                outcomes[setting].append(outcome)
                print(f"{setting:12} seed {seed}  {outcome}  {time.monotonic() - start_s:.0f} s", flush=True)
    for setting, each in outcomes.items():
        print(f"{setting:12} mean validation accuracy {mean(one.accuracy for one in each):.4f}")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compares settings of the Fisher merge on validation examples.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102])
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    return parser.parse_args()


def _config(setting: str, seed: int, parts: EdgeParts) -> run_pb2.RunConfig:
    fisher = SETTINGS[setting]
    method = DemoMethod.FEDAVG if fisher is None else DemoMethod.FEDNANO
    model = split_service_pb2.Model(digest=parts.manifest.digest, hidden_size=parts.manifest.hidden_size)
    config = run_config(DemoOptions(out=Path(), method=method, seed=seed), model)
    if fisher is not None:
        config.fisher.CopyFrom(fisher)
    return config


def _clients(folder: Path, parts: EdgeParts, seed: int) -> list[SimulatedClient]:
    options = DemoOptions(out=folder)
    folders = write_icon_federation(
        folder / "examples",
        client_count=options.clients,
        alpha=options.alpha,
        seed=seed,
        train_count=options.train_examples,
        val_count=options.val_examples,
        test_count=options.test_examples,
    )
    return [
        SimulatedClient(
            name=one.name, train=load_example_set(one, "train", parts), val=load_example_set(one, "val", parts)
        )
        for one in folders
    ]


def simulate(
    folder: Path,
    config: run_pb2.RunConfig,
    clients: Sequence[SimulatedClient],
    parts: EdgeParts,
    language: LanguageModel,
) -> Outcome:
    """A whole run; its files go to ``folder``."""
    base, edge = folder / "base.safetensors", NanoEdge(parts, new_adapters(config.adapter))
    base.write_bytes(initial_content(config))
    effective, largest, capped = [], [], []
    for number in range(1, config.round_count + 1):
        updates = [_update(folder, base, config, client, edge, language, number) for client in clients]
        result = merged(updates, base, config)
        base.write_bytes(result.content)
        effective.append(result.round_metrics["merge/effective_clients"])
        largest.append(max(metrics["merge/share"] for metrics in result.client_metrics.values()))
        capped.append(sum(metrics["merge/capped"] for metrics in result.client_metrics.values()))
    edge.adapters.load_state_dict(load_file(base))
    answers = [_matches(edge, language, client.val, config.evaluate.max_new_tokens) for client in clients]
    return Outcome(
        accuracy=mean(match for matches in answers for match in matches),
        effective_clients=mean(effective),
        largest_share=mean(largest),
        capped_tensors=mean(capped),
    )


def _update(
    folder: Path,
    base: Path,
    config: run_pb2.RunConfig,
    client: SimulatedClient,
    edge: NanoEdge,
    language: LanguageModel,
    number: int,
) -> MergeUpdate:
    edge.adapters.load_state_dict(load_file(base))
    order = example_order(config.train.seed, number, client.name)
    LocalTraining(edge, language, config.train).run(client.train.encoded, order=order, after_step=_go_on)
    adapter, fisher = folder / f"{client.name}.adapter", folder / f"{client.name}.fisher"
    save_file(dict(edge.adapters.state_dict()), adapter)
    is_fisher = config.method == run_pb2.METHOD_FEDNANO
    if is_fisher:
        information = fisher_information(
            edge, language, client.train.encoded, max_pass_tokens=MAX_PASS_TOKENS, after_batch=_go_on
        )
        save_file({name: tensor.contiguous() for name, tensor in information.items()}, fisher)
    return MergeUpdate(
        client=client.name,
        example_count=len(client.train.encoded),
        adapter=adapter,
        fisher=fisher if is_fisher else None,
    )


def _go_on() -> None:
    """What the client does between steps: nothing here ends a simulation."""


@torch.no_grad()
def _matches(edge: NanoEdge, language: LanguageModel, examples: ExampleSet, max_new_tokens: int) -> list[bool]:
    processor, predictions = edge.parts.processor, []
    for group in consecutive(
        examples.encoded, most_examples=EVALUATION_BATCH, most_tokens=MAX_PASS_TOKENS, extra_tokens=max_new_tokens
    ):
        answers = greedy_decode(
            edge,
            partial(language.decode, language.start_decoding()),
            pack_prompts(group, processor.image_token_id),
            eos_token_id=processor.eos_token_id,
            max_new_tokens=max_new_tokens,
        )
        predictions += [processor.text(answer) for answer in answers]
    return [is_right(text, example) for text, example in zip(predictions, examples.examples, strict=True)]


if __name__ == "__main__":
    main()
