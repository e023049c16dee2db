"""What stands at the end of each command's help: commands to type, as they are typed."""

from __future__ import annotations


def examples(*lines: str) -> str:
    """Return an epilog that keeps its line ends; a test parses every line of it."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
