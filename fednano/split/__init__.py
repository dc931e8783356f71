"""The client's half of a step and of decoding over the network."""
