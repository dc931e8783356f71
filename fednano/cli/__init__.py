"""The fednano command."""
