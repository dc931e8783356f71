"""From accepted updates to the bytes of the next global adapter."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import save

from fednano.adapter_layout import initial_adapter
from fednano.merge.updates import MergeUpdate
from fednano.merge.weighted import merge_adapters
from fednano.v1 import run_pb2 as pb
from services.aggregator.artifact_store import ArtifactStore
from services.aggregator.store.participants import Participation


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A round's new global adapter as a file, and what the merge measured of each client, by name, and of the round."""

    content: bytes
    client_metrics: Mapping[str, Mapping[str, float]]
    round_metrics: Mapping[str, float]


def initial_content(config: pb.RunConfig) -> bytes:
    """The adapter file that the run starts from."""
    adapter = config.adapter
    content: bytes = save(initial_adapter(adapter.modalities, adapter.hidden_size, adapter.rank, config.train.seed))
    return content


def merge_updates_of(parts: Sequence[Participation], artifacts: ArtifactStore) -> list[MergeUpdate]:
    """The accepted updates, their files read again and found unchanged; raises ArtifactCorrupt."""
    return [
        MergeUpdate(
            client=str(part.name),
            example_count=part.example_count,
            adapter=artifacts.verified_path(part.adapter_sha256),
            fisher=artifacts.verified_path(part.fisher_sha256) if part.fisher_sha256 else None,
        )
        for part in parts
        if part.is_updated
    ]


def merged(updates: Sequence[MergeUpdate], base: Path, config: pb.RunConfig) -> Merged:  # noqa: ARG001 -- for clipping
    """Merges by the run's method; ``base`` is the adapter that the round started from. Takes seconds."""
    start_s = time.perf_counter()
    is_fisher = config.method != pb.METHOD_FEDAVG
    normalize_l2 = is_fisher and config.fisher.normalization == pb.FisherConfig.NORMALIZATION_L2
    floor = config.fisher.floor if is_fisher else 0.0
    content: bytes = save(merge_adapters(updates, normalize_l2=normalize_l2, floor=floor))
    return Merged(
        content=content,
        client_metrics={update.client: {} for update in updates},
        round_metrics={"merge/seconds": time.perf_counter() - start_s},
    )
