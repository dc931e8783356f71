"""Fetching a real model's published weights, and making the two halves of them."""
