"""The client agent: NanoEdge, the private examples, the loss."""
