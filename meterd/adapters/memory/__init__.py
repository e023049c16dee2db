"""Twins of the outside world in memory: deterministic, for simulation and for unit tests."""
