"""What the aggregator remembers: runs, rounds, clients, participants and events, in SQLite or PostgreSQL."""
