"""Which clients take part in a round: drawn from seed, round and attempt alone, so that a restart draws the same."""

import math
from collections.abc import Collection, Sequence

import numpy as np

from fednano.v1 import run_pb2 as pb


def needed_clients(config: pb.RunConfig, number: int) -> int:
    """Active clients without which round ``number`` does not start.

    Unless the run says otherwise, it begins with all that a round asks for, and goes on with as many as can end one.
    """
    if number == 0:
        return config.min_available_clients or config.clients_per_round or config.min_updates
    return config.min_available_clients or config.min_updates


def round_size(config: pb.RunConfig, active_count: int) -> int:
    """How many of so many active clients a round asks to train."""
    if config.clients_per_round:
        return config.clients_per_round
    # The double nearest to a decimal fraction may lie a hair above it.
    share = math.ceil(config.client_fraction * active_count - 1e-9)
    return max(config.min_updates, share)


def select_clients(active: Sequence[str], count: int, *, seed: int, number: int, attempt: int = 1) -> list[str]:
    """At most ``count`` of the active clients, sorted by name."""
    candidates = sorted(active)
    if len(candidates) <= count:
        return candidates
    key = [seed, number] if attempt == 1 else [seed, number, attempt]
    generator = np.random.Generator(np.random.PCG64(key))
    chosen = generator.choice(len(candidates), size=count, replace=False)
    return [candidates[index] for index in sorted(int(index) for index in chosen)]


def select_replacements(
    active: Sequence[str], tried: Collection[str], count: int, *, seed: int, number: int
) -> list[str]:
    """At most ``count`` clients for a round's second attempt, sorted by name.

    Those already tried are asked again only as far as there are no others.
    """
    fresh = select_clients(
        [client for client in active if client not in tried], count, seed=seed, number=number, attempt=2
    )
    again = [client for client in active if client in tried]
    rest = select_clients(again, count - len(fresh), seed=seed, number=number, attempt=2)
    return sorted(fresh + rest)
