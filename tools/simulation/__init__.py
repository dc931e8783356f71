"""Federations in one process, for sweeps of hundreds of runs: the services' own parts with no network between them."""
