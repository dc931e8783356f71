"""FedNano's library: what at least two of its rooms need."""
