"""Non-IID splits: how much of each topic a client gets is drawn from a Dirichlet distribution.

S: topics   K: clients
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fednano.errors import ExamplesInvalid

_DRAW_COUNT = 10_000
# Even to a millionth; NumPy's draws are no numbers where it is infinite.
_MOST_ALPHA = 1e12


def partition_by_topic(
    topics_of_split: Mapping[str, Sequence[str]],
    *,
    client_count: int,
    alpha: float,
    seed: int,
    minimum_share: float = 0.3,
) -> list[dict[str, list[int]]]:
    """For each client and split the indices of its examples, ascending; every index goes to exactly one client.

    ``topics_of_split`` names the topic of every example of a split. A client has the same part of a topic in
    all splits. Proportions are drawn again until every client has, in every split, ``minimum_share`` of what an even
    split would give it. The same arguments give the same partition.
    """
    if client_count < 1 or not 0 < alpha <= _MOST_ALPHA:
        words = f"a partition needs clients >= 1 and alpha > 0, at most {_MOST_ALPHA:g}"
        raise ExamplesInvalid(f"{words}, not {client_count} and {alpha}")
    generator = np.random.Generator(np.random.PCG64(seed))
    topics = sorted({topic for each in topics_of_split.values() for topic in each})
    for _ in range(_DRAW_COUNT):
        shares_SK = generator.dirichlet([alpha] * client_count, size=len(topics))
        cuts = {split: _cut(each, topics, shares_SK) for split, each in topics_of_split.items()}
        if all(_is_fair(clients, minimum_share) for clients in cuts.values()):
            return [{split: clients[k] for split, clients in cuts.items()} for k in range(client_count)]
    message = (
        f"no split over {client_count} clients with alpha {alpha} leaves each {minimum_share:.0%} of an even share:"
        " use more examples, fewer clients, a larger alpha or a smaller minimum share"
    )
    raise ExamplesInvalid(message, clients=str(client_count), alpha=str(alpha))


def _cut(topics_of_examples: Sequence[str], topics: Sequence[str], shares_SK: NDArray[np.float64]) -> list[list[int]]:
    indices_of: dict[str, list[int]] = {topic: [] for topic in topics}
    for index, topic in enumerate(topics_of_examples):
        indices_of[topic].append(index)
    clients: list[list[int]] = [[] for _ in range(shares_SK.shape[1])]
    for shares_K, indices in zip(shares_SK, indices_of.values(), strict=True):
        # Rounded cumulative shares: nothing is lost, and no client is off by more than one example a topic.
        ends = [round(float(share) * len(indices)) for share in np.cumsum(shares_K)]
        ends[-1] = len(indices)
        for client, start, end in zip(clients, [0, *ends], ends, strict=False):
            client.extend(indices[start:end])
    return [sorted(client) for client in clients]


def _is_fair(clients: Sequence[Sequence[int]], minimum_share: float) -> bool:
    example_count = sum(len(client) for client in clients)
    minimum_count = max(1.0, minimum_share * example_count / len(clients))
    return all(len(client) >= minimum_count for client in clients)
