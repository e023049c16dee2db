"""meterd on a machine whose clock can be set: `python -m tests.crash.stepped FILE serve ...`.

FILE holds the milliseconds by which the system clock is wrong, and may change at any time.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from meterd.cli import main


def set_clock(offset_file: Path) -> None:
    """Let this process's system clock show what the file says; the monotonic one goes on."""
    right_ns = time.time_ns

    def wrong_ns() -> int:
        return right_ns() + int(offset_file.read_text(encoding="ascii")) * 1_000_000

    time.time_ns = wrong_ns


if __name__ == "__main__":
    set_clock(Path(sys.argv.pop(1)))
    sys.exit(main())
