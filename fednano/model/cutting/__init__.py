"""Cutting a checkpoint in two: read where it lies, a tensor at a time, and written as an edge and a server half."""
