"""Flower's side of the race. Runs in a virtual environment of its own, never in ours."""
