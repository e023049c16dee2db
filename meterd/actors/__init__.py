"""The actors: they own state and are the only code that starts tasks."""
