"""Which clients take part in a round: drawn from seed and round alone, so that a restart draws the same."""

from collections.abc import Sequence

import numpy as np


def select_clients(active: Sequence[str], count: int, *, seed: int, number: int) -> list[str]:
    """At most ``count`` of the active clients, sorted by name."""
    candidates = sorted(active)
    if len(candidates) <= count:
        return candidates
    generator = np.random.Generator(np.random.PCG64([seed, number]))
    chosen = generator.choice(len(candidates), size=count, replace=False)
    return [candidates[index] for index in sorted(int(index) for index in chosen)]
