"""Examples: formats, loaders, the generated icon set, partition and scoring."""
