"""Meter what agents use, stop them at their plan's limit at once, and bill it exactly."""

__version__ = "0.1.0"
