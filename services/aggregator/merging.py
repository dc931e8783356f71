"""From accepted updates to the bytes of the next global adapter."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import save

from fednano.adapter_layout import initial_adapter
from fednano.errors import TooFewUpdates
from fednano.merge.gram import GramRefit, merge_gram
from fednano.merge.krum import least_krum_updates, merge_krum
from fednano.merge.ordered import median_trimmed_count, merge_trimmed, trimmed_count
from fednano.merge.shares import FisherWeighting
from fednano.merge.streaming import STREAMING, on_threads
from fednano.merge.updates import ClientPart, MergeResult, MergeUpdate
from fednano.merge.weighted import merge_weighted
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


def merge_updates_of(
    parts: Sequence[Participation], artifacts: ArtifactStore, grams: Mapping[str, str]
) -> list[MergeUpdate]:
    """The accepted updates, their files read again and found unchanged; raises ArtifactCorrupt.

    ``grams``: the digests of the Gram matrices that clients have given in any round, by client.
    """

    def verified(part: Participation) -> MergeUpdate:
        return MergeUpdate(
            client=str(part.name),
            example_count=part.example_count,
            adapter=artifacts.verified_path(part.adapter_sha256),
            fisher=artifacts.verified_path(part.fisher_sha256) if part.fisher_sha256 else None,
            gram=artifacts.verified_path(grams[part.name.client]) if part.name.client in grams else None,
        )

    return on_threads(verified, [part for part in parts if part.is_updated], STREAMING.threads)


def merged(updates: Sequence[MergeUpdate], base: Path, config: pb.RunConfig) -> Merged:
    """Merges by the run's method; ``base`` is the adapter that the round started from. Takes seconds.

    Raises TooFewUpdates where the method cannot do with so few, as when clients were evicted meanwhile.
    """
    needed = least_krum_updates(config.merge.krum_hostile_count) if config.method == pb.METHOD_KRUM else 1
    if len(updates) < needed:
        method = pb.Method.Name(config.method)
        raise TooFewUpdates(f"{method} needs {needed} updates or more, and {len(updates)} are left to merge")
    if config.method == pb.METHOD_LOCAL:
        # Each client goes on from its own: there is no other global adapter than the first.
        return Merged(content=base.read_bytes(), client_metrics={}, round_metrics={})
    start_s = time.perf_counter()
    result = _merge(updates, base, config)
    shares = [part.share for part in result.parts.values()]
    return Merged(
        content=save(dict(result.tensors)),
        client_metrics={client: _client_metrics(part) for client, part in result.parts.items()},
        round_metrics={
            # So many clients with equal shares would be as far from one client's rule as these are.
            "merge/effective_clients": 1.0 / sum(share * share for share in shares),
            "merge/seconds": time.perf_counter() - start_s,
        }
        | _fisher_metrics(result),
    )


def _merge(updates: Sequence[MergeUpdate], base: Path, config: pb.RunConfig) -> MergeResult:
    limit = config.merge.max_update_norm
    if config.method == pb.METHOD_KRUM:
        return merge_krum(updates, base, hostile_count=config.merge.krum_hostile_count, max_update_norm=limit)
    if config.method in (pb.METHOD_TRIMMED_MEAN, pb.METHOD_MEDIAN):
        count = len(updates)
        is_median = config.method == pb.METHOD_MEDIAN
        dropped = median_trimmed_count(count) if is_median else trimmed_count(config.merge.trim_fraction, count)
        return merge_trimmed(updates, base, dropped=dropped, max_update_norm=limit)
    if config.method == pb.METHOD_FEDNANO_GRAM:
        return merge_gram(updates, base, refit=_refit(config.gram), max_update_norm=limit)
    return merge_weighted(updates, base, weighting=_weighting(config.fisher), max_update_norm=limit)


def _weighting(fisher: pb.FisherConfig) -> FisherWeighting:
    return FisherWeighting(
        normalize_l2=fisher.normalization == pb.FisherConfig.NORMALIZATION_L2,
        by_rank=fisher.normalization == pb.FisherConfig.NORMALIZATION_RANK,
        power=fisher.power or 1.0,
        floor=fisher.floor,
        max_share=fisher.max_share,
    )


def _refit(gram: pb.GramConfig) -> GramRefit:
    """What is not set is the refit's own."""
    own = GramRefit()
    return GramRefit(
        step=gram.step if gram.HasField("step") else own.step,
        damping=gram.damping if gram.HasField("damping") else own.damping,
    )


def _fisher_metrics(result: MergeResult) -> dict[str, float]:
    """How far the merge is from a mean, parameter by parameter; nothing where F = 1."""
    effective = result.effective_clients
    return {} if effective is None else {"fisher/effective_clients": effective}


def _client_metrics(part: ClientPart) -> dict[str, float]:
    mass = {} if part.fisher_share is None else {"fisher/share": part.fisher_share}
    return mass | {
        "merge/share": part.share,
        "merge/update_norm": part.update_norm,
        "merge/clipped": float(part.is_clipped),
        "merge/capped": float(part.capped_tensor_count),
    }
