"""What a merge takes, the clients' updates as files, and what it gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fednano.adapter_layout import Float32Array


@dataclass(frozen=True, kw_only=True)
class MergeUpdate:
    """One client's update on disk. ``fisher`` None stands for F = 1; ``gram`` is for the Gram-weighted merge."""

    client: str
    example_count: int
    adapter: Path
    fisher: Path | None = None
    gram: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ClientPart:
    """What a merge made of one client's update."""

    # The part of all the merge's weight that this client had; over the clients they sum to 1.
    share: float
    # L2 norm, over all tensors, of the difference between the client's adapter and the base adapter.
    update_norm: float
    is_clipped: bool = False
    # In how many tensors the cap on Fisher mass held the client back.
    capped_tensor_count: int = 0
    # Its part of all clients' Fisher mass, over all tensors, before any floor or cap; None where F = 1.
    fisher_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class MergeResult:
    """The merged adapter by tensor name, and each client's part in it by client name."""

    tensors: Mapping[str, Float32Array]
    parts: Mapping[str, ClientPart]
    # So many clients with equal weights would decide one parameter as much together as these do, in the mean over
    # parameters; None where F = 1.
    effective_clients: float | None = None


def in_merge_order(updates: Sequence[MergeUpdate]) -> list[MergeUpdate]:
    """Sorted by client name, the order in which every merge adds; raises ValueError where a merge has no meaning."""
    if not updates or any(update.example_count < 1 for update in updates):
        raise ValueError("merging needs at least one update, each with at least one example")
    if len({update.client for update in updates}) < len(updates):
        raise ValueError("merging takes one update of each client")
    if len({update.fisher is None for update in updates}) > 1:
        raise ValueError("merging takes Fisher information of all clients or of none")
    return sorted(updates, key=lambda update: update.client)
