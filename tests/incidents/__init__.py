"""Replays of public incidents: programs of our own with the same root cause, and what klguard says of each."""
