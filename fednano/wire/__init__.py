"""Tensors and artifacts as messages, without a network."""
