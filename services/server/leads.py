"""Who has had more than others at work: deficit round robin forgets that whenever a client has nothing waiting.

A client that trains step by step has nothing waiting between an answer and its next request. Who has many requests
waiting would use every such moment. So what each client has had is remembered beyond it, and who is ahead goes after
those who are behind, for as long as one of them waits. The server never stands still for it.
"""

from collections.abc import Collection, Hashable, Mapping

# Tokens that a client may be ahead of another: about a step.
LEAD_TOKENS = 256
# Most tokens that a client is counted as behind, whatever it left to others: so that these do not starve later.
CREDIT_TOKENS = 4096
RECENT_S = 1.0


class Leads:
    """Tokens of each client that was seen in the last second; those of a new one begin level with the least."""

    def __init__(self) -> None:
        self._had_tokens: dict[Hashable, int] = {}
        # The one seen last is last.
        self._seen_s: dict[Hashable, float] = {}

    def asked(self, client: Hashable, now_s: float) -> None:
        """The client has a request waiting."""
        self._see(client, now_s)
        had_tokens = self._had_tokens
        own = had_tokens.get(client, min(had_tokens.values(), default=0))
        had_tokens[client] = max(own, max(had_tokens.values(), default=0) - CREDIT_TOKENS)

    def served(self, tokens: Mapping[Hashable, int], now_s: float) -> None:
        """Notes what the members of a pass had."""
        for client, count in tokens.items():
            self._see(client, now_s)
            self._had_tokens[client] = self._had_tokens.get(client, 0) + count

    def is_ahead(self, client: Hashable, others: Collection[Hashable]) -> bool:
        """Whether it has had more, by more than a step, than the others on average: some of them may want little."""
        own = self._had_tokens.get(client, 0)
        had_tokens = [self._had_tokens.get(other, own) for other in others if other != client]
        return bool(had_tokens) and sum(had_tokens) / len(had_tokens) + LEAD_TOKENS <= own

    def _see(self, client: Hashable, now_s: float) -> None:
        self._seen_s.pop(client, None)
        self._seen_s[client] = now_s
        while now_s - self._seen_s[oldest := next(iter(self._seen_s))] > RECENT_S:
            del self._seen_s[oldest]
            self._had_tokens.pop(oldest, None)
