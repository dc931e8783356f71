"""What a model and its training cost, from shapes alone: no weights, no torch."""
