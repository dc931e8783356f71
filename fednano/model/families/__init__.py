"""The families of models that can be cut in two: one file each, and what several of them are made of."""
