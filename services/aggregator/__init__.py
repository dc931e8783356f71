"""The aggregator: runs, rounds, updates, and the Fisher merge."""
