"""Who is at work."""

from services.server.recent_clients import RECENT_S, RecentClients


def test_a_client_counts_until_a_second_after_it_was_last_seen() -> None:
    recent = RecentClients()
    recent.note("a", 0.0)
    recent.note("b", 0.5)
    recent.note("a", 0.6)
    assert recent.count(0.5 + RECENT_S) == 2
    assert recent.count(0.55 + RECENT_S) == 1
    assert recent.count(0.65 + RECENT_S) == 0
