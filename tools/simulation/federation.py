"""A cell's whole run in one process: the clients' own local work, one after the other, and the aggregator's own merge.

The final adapter has the bits of a run on the services, for the split model equals the whole one and clients do not
see each other.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from experiments.cells import POOLED_CLIENT, Cell, run_config
from fednano.cli.presets import DEFAULT, PRESETS
from fednano.merge.updates import MergeUpdate
from fednano.methods import artifact_kinds
from fednano.model.language import LanguageModel
from fednano.model.parts import EdgeParts
from fednano.names import RoundName
from fednano.split.remote import RemoteLanguageModel
from fednano.v1 import run_pb2, split_service_pb2
from services.aggregator.merging import initial_content, merged
from services.client.examples import joined, load_example_set
from services.client.features import Features
from services.client.local_work import Holdings, LocalWork
from services.client.progress import Progress
from services.server.settings import ServerSettings
from tools.simulation.in_process import InProcessLanguageModel

TIMEOUT_S = 3600
# Updates, the round's base adapter, the run's configuration and the round's number to the next adapter's file.
Merge = Callable[[Sequence[MergeUpdate], Path, run_pb2.RunConfig, int], bytes]
ADAPTER, FISHER, GRAM = "adapter.safetensors", "fisher.safetensors", "gram.safetensors"


@dataclass(frozen=True, kw_only=True)
class Model:
    """Both halves."""

    parts: EdgeParts
    language: LanguageModel


@dataclass(frozen=True, kw_only=True)
class SimulatedClient:
    """One client of a run; ``grams`` is empty until it has given its Gram matrices, which it does once."""

    name: str
    work: LocalWork
    folder: Path
    grams: list[Path] = field(default_factory=list)


def load_holdings(cell: Cell, examples: Path, parts: EdgeParts, features: Features) -> dict[str, Holdings]:
    """What each client process of the cell would hold, by name; pictures are encoded once for all."""
    names = [f"client-{number}" for number in range(1, cell.clients + 1)]
    sets = {
        name: {split: load_example_set(examples / name, split, parts, features) for split in ("train", cell.split)}
        for name in names
    }
    if cell.process_names != (POOLED_CLIENT,):
        return {
            name: Holdings(parts=parts, train=each["train"], test=each[cell.split], split=cell.split)
            for name, each in sets.items()
        }
    tests = {name: each[cell.split] for name, each in sets.items()}
    pooled = joined([each["train"] for each in sets.values()])
    whole = Holdings(parts=parts, train=pooled, test=joined(list(tests.values())), tests_of=tests, split=cell.split)
    return {POOLED_CLIENT: whole}


def merge_by_method(updates: Sequence[MergeUpdate], base: Path, config: run_pb2.RunConfig, _number: int) -> bytes:
    """The aggregator's."""
    return merged(updates, base, config).content


def simulate(
    cell: Cell, model: Model, holdings: Mapping[str, Holdings], folder: Path, merge: Merge = merge_by_method
) -> dict[str, Any]:
    """The fields of report.json that an experiment's tables need. Files of the run go to ``folder``."""
    start_s = time.monotonic()
    config = _config(cell, model)
    clients = [_client(name, held, config, model, folder) for name, held in holdings.items()]
    base = folder / "base.safetensors"
    base.write_bytes(initial_content(config))
    before = _accuracies(clients, RoundName(run=cell.name, number=0), _bases(clients, base, cell, 0))
    for number in range(1, config.round_count + 1):
        round_name = RoundName(run=cell.name, number=number)
        bases = _bases(clients, base, cell, number)
        updates = [_update(client, round_name, bases[client.name], config) for client in clients]
        base.write_bytes(merge(updates, base, config, number))
    after = _accuracies(clients, round_name, _bases(clients, base, cell, number + 1))
    return {
        "accuracy": {
            "before": fmean(before.values()),
            "after": fmean(after.values()),
            "per_client": {name: {"before": before[name], "after": after[name]} for name in sorted(before)},
        },
        "seconds": round(time.monotonic() - start_s, 1),
        # Nothing travelled.
        "bytes": {},
        "adapter_sha256": hashlib.sha256(base.read_bytes()).hexdigest(),
        "model": {"name": model.parts.manifest.model, "digest": model.parts.manifest.digest},
    }


def _config(cell: Cell, model: Model) -> run_pb2.RunConfig:
    manifest, preset = model.parts.manifest, PRESETS.get(cell.preset, PRESETS[DEFAULT])
    said = split_service_pb2.Model(digest=manifest.digest, hidden_size=manifest.hidden_size)
    return run_config(cell, said, timeout_s=TIMEOUT_S, max_new_tokens=preset.max_new_tokens)


def _client(name: str, held: Holdings, config: run_pb2.RunConfig, model: Model, folder: Path) -> SimulatedClient:
    own = folder / name
    own.mkdir(parents=True, exist_ok=True)
    # It is asked for nothing but what it has in common with the one behind the network.
    language = cast("RemoteLanguageModel", InProcessLanguageModel(model.language))
    bound = ServerSettings.model_fields["max_pass_tokens"].default
    work = LocalWork(held, config, language, client_id=name, max_pass_tokens=bound, progress=Progress())
    return SimulatedClient(name=name, work=work, folder=own)


def _bases(clients: Sequence[SimulatedClient], base: Path, cell: Cell, number: int) -> dict[str, Path]:
    """The adapter that each client is given in the round; each its own last one where nothing is merged."""
    is_alone = cell.method == "local" and number > 1
    return {client.name: _last_own(client) if is_alone else base for client in clients}


def _last_own(client: SimulatedClient) -> Path:
    """A copy, for training writes its update where the last one is."""
    copy = client.folder / "last.safetensors"
    copy.write_bytes((client.folder / ADAPTER).read_bytes())
    return copy


def _update(client: SimulatedClient, round_name: RoundName, base: Path, config: run_pb2.RunConfig) -> MergeUpdate:
    kinds = artifact_kinds(config, has_gram=bool(client.grams))
    update = client.work.train(round_name, base, client.folder, kinds)
    files = {path.name: path for path in update.files}
    if GRAM in files:
        client.grams.append(files[GRAM])
    return MergeUpdate(
        client=client.name,
        example_count=update.example_count,
        adapter=files[ADAPTER],
        fisher=files.get(FISHER),
        gram=client.grams[0] if client.grams else None,
    )


def _accuracies(
    clients: Sequence[SimulatedClient], round_name: RoundName, bases: Mapping[str, Path]
) -> dict[str, float]:
    """By client; centralized training has one process, which measures each client's examples apart."""
    found: dict[str, float] = {}
    for client in clients:
        evaluation = client.work.evaluate(round_name, bases[client.name], client.folder)
        owned = {key.split("/")[-1]: number for key, number in evaluation.metrics.items() if key.count("/") == 2}
        found |= owned or {client.name: evaluation.accuracy}
    return found
