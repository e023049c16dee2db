"""The words of the agent stream: JSON text frames out and in (contract §7).

Every message out carries a `ref`, `<task serial>.<message number>`: an error frame names the
message it answers, so an answer to an older message is never taken for one to a newer.
What comes in is not trusted: whatever has an unexpected shape is dropped here and counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


MESSAGES_PER_FRAME_MAX = 1_000
"""Messages in one batch; the service refuses more."""
FRAME_CHARACTERS_MAX = 200_000
"""Characters in one batch frame. JSON is ASCII here, so these are bytes; the service's limit is
1 MiB, and a smaller frame keeps the wait behind it short."""
METADATA_BYTES_MAX = 4_096
"""Serialized size of a task's metadata that the service accepts."""
ID_CHARACTERS_MAX = 128
"""Length of an agent_id or task_id that the service accepts."""

Message = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TaskRequest:
    """What a `start` says about a task; the same request may be sent again and again.

    Errors: ValueError for an id or metadata the service could only refuse.
    """

    task_id: str
    agent_id: str
    user_id: str | None = None
    metadata: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse early what could only come back as an error frame."""
        for name in ("task_id", "agent_id"):
            value = getattr(self, name)
            if not 1 <= len(value) <= ID_CHARACTERS_MAX or not value.isprintable():
                raise ValueError(
                    f"{name} must be 1 to {ID_CHARACTERS_MAX} printable characters, not {value!r}"
                )
        if self.metadata is not None and _utf8_bytes(self.metadata) > METADATA_BYTES_MAX:
            raise ValueError(f"metadata is over {METADATA_BYTES_MAX} bytes as JSON")

    def start(self, *, ref: str, elapsed_ms: int) -> dict[str, Any]:
        """Give the `start` message; `elapsed_ms` is left out when nothing has run yet."""
        message: dict[str, Any] = {
            "type": "start",
            "task_id": self.task_id,
            "agent_id": self.agent_id,
            "ref": ref,
        }
        if self.user_id is not None:
            message["user_id"] = self.user_id
        if self.metadata is not None:
            message["metadata"] = dict(self.metadata)
        if elapsed_ms:
            message["elapsed_ms"] = elapsed_ms
        return message

    def report(self, *, ref: str, elapsed_ms: int, outcome: str | None) -> dict[str, Any]:
        """Give the `heartbeat`, or with an outcome the `finish`, of a cumulative value."""
        message: dict[str, Any] = {
            "type": "heartbeat" if outcome is None else "finish",
            "task_id": self.task_id,
            "elapsed_ms": elapsed_ms,
            "ref": ref,
        }
        if outcome is not None:
            message["outcome"] = outcome
        return message


def encode(value: object) -> str:
    """Give compact ASCII JSON.

    Errors: ValueError for NaN and infinities, TypeError for what JSON has no word for.
    """
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def frames(messages: Iterable[Message]) -> list[str]:
    """Pack messages, in order, into as few text frames as the limits allow."""
    packed: list[str] = []
    batch: list[str] = []
    size = 0
    for message in messages:
        text = encode(message)
        if batch and (
            len(batch) == MESSAGES_PER_FRAME_MAX or size + len(text) > FRAME_CHARACTERS_MAX
        ):
            packed.append(_frame(batch))
            batch, size = [], 0
        batch.append(text)
        size += len(text) + 1
    if batch:
        packed.append(_frame(batch))
    return packed


def messages(frame: str | bytes) -> tuple[list[Message], int]:
    """Give the messages of one frame, and how many of its parts could not be read."""
    try:
        content = json.loads(frame)
    except (ValueError, RecursionError):
        return [], 1
    parts: Sequence[object] = content if isinstance(content, list) else [content]
    readable = [
        part for part in parts if isinstance(part, Mapping) and isinstance(part.get("type"), str)
    ]
    return readable, len(parts) - len(readable)


def reference(serial: int, number: int) -> str:
    """Give the `ref` of a task's message."""
    return f"{serial}.{number}"


def parse_reference(message: Message) -> tuple[int, int] | None:
    """Give the task serial and message number a `ref` names, or None when it is not ours."""
    ref = message.get("ref")
    if not isinstance(ref, str):
        return None
    serial, _, number = ref.partition(".")
    if not (serial.isascii() and serial.isdigit() and number.isascii() and number.isdigit()):
        return None
    return int(serial), int(number)


def text(message: Message, name: str, *, absent: str = "") -> str:
    """Give a text field, or `absent` when it is missing or something else."""
    value = message.get(name)
    return value if isinstance(value, str) else absent


def whole(message: Message, name: str, *, absent: int = 0) -> int:
    """Give a non-negative integer field, or `absent` when it is missing or something else."""
    value = message.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return absent
    return value


def _utf8_bytes(value: object) -> int:
    # Counted as the service counts: it stores UTF-8, though frames are ASCII.
    written = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return len(written.encode("utf-8", "surrogatepass"))


def _frame(batch: Sequence[str]) -> str:
    return batch[0] if len(batch) == 1 else "[" + ",".join(batch) + "]"
