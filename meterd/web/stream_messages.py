"""The messages of the agent stream (contract §7): structures, decoding of frames, encoding.

Rule 1: a frame of the usual kind (heartbeats, finishes, checks) is decoded by msgspec at once;
anything else goes through the strict decoder message by message, so that one bad message of a
batch costs the others nothing and is named by its `ref`.
Rule 2: both ways accept the same messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final

import attrs
import msgspec
from msgspec import UNSET, Meta, UnsetType

from meterd.core.ids import NAME_CHARACTERS_MAX, is_printable_name
from meterd.errors import RequestInvalidError
from meterd.web.codec import BadJsonError, JsonValue, decode, parse_json
from meterd.web.schema import (
    AgentId,
    ElapsedMs,
    Metadata,
    Outcome,
    StartElapsedMs,
    StartTaskBody,
    TaskId,
    UserId,
    is_task_id,
)
from meterd.web.shapes import Quota, QuotaMessage


MESSAGES_MAX: Final = 1_000
"""Messages in one frame, and answers in one frame."""

REF_NUMBER_MAX: Final = 2**53 - 1
"""The largest whole number every JSON parser keeps exactly."""

RefText = Annotated[str, Meta(min_length=1, max_length=NAME_CHARACTERS_MAX)]
RefNumber = Annotated[int, Meta(ge=-REF_NUMBER_MAX, le=REF_NUMBER_MAX)]
Ref = Annotated[
    RefText | RefNumber,
    Meta(
        description="Echoed in the answer to this message.",
        extra={
            "must": "must be 1 to 128 printable characters or an integer",
            "rule": lambda ref: isinstance(ref, int) or is_printable_name(ref),
        },
    ),
]
AnyRef = str | int | UnsetType


class Message(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"
):
    """What a client may say."""

    ref: Ref | UnsetType = UNSET


class Start(Message, frozen=True, tag="start"):
    """Ask to run a task."""

    task_id: TaskId
    agent_id: AgentId
    user_id: UserId | None = None
    metadata: Metadata | None = None
    elapsed_ms: StartElapsedMs = 0

    def body(self) -> StartTaskBody:
        """Return the same request as HTTP knows it."""
        return StartTaskBody(
            agent_id=self.agent_id,
            task_id=self.task_id,
            user_id=self.user_id,
            metadata=self.metadata,
            elapsed_ms=self.elapsed_ms,
        )


class Heartbeat(Message, frozen=True, tag="heartbeat"):
    """Report a running task's cumulative time."""

    task_id: TaskId
    elapsed_ms: ElapsedMs


class Finish(Message, frozen=True, tag="finish"):
    """Report a task's last time and how it ended."""

    task_id: TaskId
    elapsed_ms: ElapsedMs
    outcome: Outcome


class Check(Message, frozen=True, tag="check"):
    """Ask for the quota object."""

    agent_id: AgentId | None = None


TaskMessage = Start | Heartbeat | Finish
ClientMessage = Start | Heartbeat | Finish | Check

_KINDS: Final[dict[str, type[Start | Heartbeat | Finish | Check]]] = {
    "start": Start,
    "heartbeat": Heartbeat,
    "finish": Finish,
    "check": Check,
}

_Usual = Heartbeat | Finish | Check
_HIDDEN_COLON: Final = b"\\u003"
_usual_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(list[_Usual] | _Usual)


@attrs.frozen
class Mistake:
    """A message that cannot be understood, and why."""

    message: str
    ref: AnyRef = UNSET


def read_frame(payload: bytes) -> Sequence[ClientMessage | Mistake]:
    """Return the messages of one text frame, in order; what is wrong is in its place."""
    usual = _read_usual(payload)
    return _read_strictly(payload) if usual is None else usual


def _read_usual(payload: bytes) -> Sequence[_Usual] | None:
    try:
        decoded = _usual_decoder.decode(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    messages: list[_Usual] = decoded if type(decoded) is list else [decoded]
    if len(messages) > MESSAGES_MAX or not all(map(_is_plain, messages)):
        return None
    # A repeated key shows as one colon more than was read: let the strict decoder judge, and
    # also where a colon may be hidden by an escape.
    colons = payload.count(b":")
    is_told_once = colons == sum(map(_colons, messages)) and _HIDDEN_COLON not in payload
    return messages if is_told_once else None


def _colons(message: _Usual) -> int:
    """Return the colons of a message that says nothing twice."""
    ref = message.ref
    found = 0 if ref is UNSET else 1 if isinstance(ref, int) else 1 + ref.count(":")
    if type(message) is Heartbeat:  # nearly always
        return found + 3 + message.task_id.count(":")
    if isinstance(message, Check):
        return found + 1 if message.agent_id is None else found + 2 + message.agent_id.count(":")
    return found + 4 + message.task_id.count(":")


def _is_plain(message: _Usual) -> bool:
    ref = message.ref
    if ref is not UNSET and not isinstance(ref, int) and not is_printable_name(ref):
        return False
    if isinstance(message, Check):
        return message.agent_id is None or message.agent_id.isprintable()
    return is_task_id(message.task_id)


def _read_strictly(payload: bytes) -> Sequence[ClientMessage | Mistake]:
    try:
        value = parse_json(payload)
    except BadJsonError as error:
        return [Mistake(str(error))]
    if not isinstance(value, list):
        return [_read_one(value)]
    if len(value) > MESSAGES_MAX:
        return [Mistake(f"A frame has at most {MESSAGES_MAX} messages.")]
    return [_read_one(item) for item in value]


def _read_one(value: JsonValue) -> ClientMessage | Mistake:
    if not isinstance(value, dict):
        return Mistake("A message is a JSON object.")
    kind = value.get("type")
    structure = _KINDS.get(kind) if isinstance(kind, str) else None
    if structure is None:
        return Mistake(f"/type: must be one of {', '.join(_KINDS)}", _ref_in(value))
    try:
        return decode(structure, value)
    except RequestInvalidError as error:
        return Mistake(str(error), _ref_in(value))


def _ref_in(value: dict[str, Any]) -> AnyRef:
    ref = value.get("ref")
    if isinstance(ref, str) and is_printable_name(ref):
        return ref
    is_number = isinstance(ref, int) and not isinstance(ref, bool)
    return ref if is_number and abs(ref) <= REF_NUMBER_MAX else UNSET  # type: ignore[arg-type, return-value]  # is_number says int


# --- answers ------------------------------------------------------------------------------------


class QuotaBrief(msgspec.Struct, frozen=True):
    """The part of the quota that comes with every acknowledgement."""

    state: str
    used_ms: int
    remaining_ms: int | None


class Started(msgspec.Struct, frozen=True, kw_only=True, tag="started"):
    """The task runs, durably."""

    task_id: str
    heartbeat_interval_ms: int
    elapsed_ms: int
    quota: Quota
    ref: AnyRef = UNSET


class Denied(msgspec.Struct, frozen=True, kw_only=True, tag="denied"):
    """The task may not start."""

    task_id: str
    code: str
    message: str
    quota: Quota
    upgrade_url: str | UnsetType = UNSET
    ref: AnyRef = UNSET


class Ack(msgspec.Struct, frozen=True, tag="ack"):
    """Everything reported up to `elapsed_ms` is durable; positional: one is made per report."""

    task_id: str
    elapsed_ms: int
    metered_ms: int
    quota: QuotaBrief
    clamped: bool | UnsetType = UNSET
    ref: AnyRef = UNSET


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    """The task has ended, durably."""

    task_id: str
    metered_ms: int
    outcome: str
    clamped: bool | UnsetType = UNSET
    ref: AnyRef = UNSET


class Stop(msgspec.Struct, frozen=True, kw_only=True, tag="stop"):
    """The task must stop now."""

    task_id: str
    code: str
    message: str


class Error(msgspec.Struct, frozen=True, kw_only=True, tag="error"):
    """A message was not understood, or could not be served."""

    code: str
    message: str
    ref: AnyRef = UNSET


ServerMessage = Started | Denied | Ack | Finished | Stop | Error | QuotaMessage

_encoder = msgspec.json.Encoder()


def write_message(message: ServerMessage) -> bytes:
    """Return the frame that says one message."""
    return _encoder.encode(message)


def write_frames(messages: Sequence[ServerMessage]) -> Iterator[bytes]:
    """Yield the frames that say these messages: one bare, several as arrays."""
    if len(messages) == 1:
        yield _encoder.encode(messages[0])
        return
    for start in range(0, len(messages), MESSAGES_MAX):
        yield _encoder.encode(messages[start : start + MESSAGES_MAX])
