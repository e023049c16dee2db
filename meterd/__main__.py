"""`python -m meterd`, the same program as `meterd`."""

from __future__ import annotations

from meterd.cli import main


if __name__ == "__main__":
    main()
