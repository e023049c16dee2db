"""The tree of Trio's tasks as text: what the process is doing, and where each task waits.

Only names, files and lines are shown: values of variables could be secrets.
"""

from __future__ import annotations

from collections.abc import Iterator

import trio


FRAMES_MAX = 4
"""Innermost frames shown of each task."""


def task_tree() -> Iterator[str]:
    """Yield one line for each task of the run, children below their parent."""
    root = trio.lowlevel.current_root_task()
    assert root is not None, "called outside of a run"
    yield from _lines(root, 0)


def _lines(task: trio.lowlevel.Task, depth: int) -> Iterator[str]:
    yield f"{'  ' * depth}{task.name}  {_place(task)}"
    for nursery in task.child_nurseries:
        for child in sorted(nursery.child_tasks, key=lambda each: each.name):
            yield from _lines(child, depth + 1)


def _place(task: trio.lowlevel.Task) -> str:
    frames = [
        f"{frame.f_code.co_filename.rpartition('/')[2]}:{line} {frame.f_code.co_name}"
        for frame, line in task.iter_await_frames()
        if "/trio/" not in frame.f_code.co_filename
    ]
    return " < ".join(reversed(frames[-FRAMES_MAX:]))
