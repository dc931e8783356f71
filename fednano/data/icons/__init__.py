"""A procedural icon VQA: eight skills with IconQA's names, drawn in two domains, with nothing to download."""
