"""From accepted updates to the bytes of the next global adapter."""

from collections.abc import Sequence

from safetensors.numpy import save

from fednano.adapter_layout import initial_adapter
from fednano.merge import MergeUpdate, merge_adapters
from fednano.v1 import run_pb2 as pb
from services.aggregator.artifact_store import ArtifactStore
from services.aggregator.store.participants import Participation


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


def merged_content(updates: Sequence[MergeUpdate], config: pb.RunConfig) -> bytes:
    """The merged adapter as a file, by the run's method."""
    is_fisher = config.method != pb.METHOD_FEDAVG
    normalize_l2 = is_fisher and config.fisher.normalization == pb.FisherConfig.NORMALIZATION_L2
    floor = config.fisher.floor if is_fisher else 0.0
    content: bytes = save(merge_adapters(updates, normalize_l2=normalize_l2, floor=floor))
    return content
