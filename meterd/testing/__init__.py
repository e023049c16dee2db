"""Test doubles that ship with meterd: what it talks to, small enough to run anywhere."""
