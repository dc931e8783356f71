"""Merging clients' adapters into one: by Fisher information, by examples, and robustly."""
