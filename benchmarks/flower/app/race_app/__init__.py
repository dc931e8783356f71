"""The race as a Flower app."""
