"""A quota check asked again: the same answer, with only what has moved written anew.

Rule 1: the text is that of an answer made by the functions of the route. Five things in it move
with time alone - seconds to the reset, request id, date, projected use, `as_of` - and a template
keeps the rest until something happens to the organization.
Rule 2: who asks was authenticated for the template, and is again when any key has left the key
ring's memory. Session tokens end by the clock, so they get no templates.
Rule 3: whatever is in doubt gives None: then the request is asked like a new one.
"""

from __future__ import annotations

import re
from typing import Final

import attrs

from meterd.actors.keyring import Principal
from meterd.actors.standing import Standing
from meterd.core.units import rfc3339
from meterd.web.hot_wire import HotWire
from meterd.web.reply import seconds_to
from meterd.web.services import WebServices


CHECK: Final = ("GET", "/v1/quota/check")
"""The route as the application calls it."""

_MOVING: Final = re.compile(
    rb"(?<=;t=)[0-9]+(?=\r\n)|(?<=\r\nx-request-id: )[0-9a-f-]{36}|(?<=\r\ndate: )[^\r]+"
    rb'|(?<="projected_ms":)[0-9]+|(?<="as_of":")[^"]+'
)
"""What moves, in the order in which an answer says it."""


@attrs.frozen
class GivenAnswer:
    """An answer to an allowed check as it was given, and what it was made from."""

    text: bytes
    standing: Standing
    request_id: bytes
    date: bytes


class CheckTemplate:
    """An answer with gaps for what moves."""

    __slots__ = ("_has_reset", "_period_end_ms", "_size", "_text")

    def __init__(self, given: GivenAnswer) -> None:
        view = given.standing.view
        self._text = _MOVING.sub(b"%b", given.text.replace(b"%", b"%%"))
        self._has_reset = view.hard_limit_ms is not None  # the unlimited are not told when
        self._period_end_ms = view.period_end_ms
        # What `content-length` counts of the gaps; a request id has always the same length.
        self._size = len(str(view.projected_ms)) + len(rfc3339(view.as_of_ms))
        again = self.filled(view.projected_ms, view.as_of_ms, given.request_id, given.date)
        assert again == given.text, (again, given.text)

    def filled(
        self, projected_ms: int, now_ms: int, request_id: bytes, date: bytes
    ) -> bytes | None:
        """Return the answer of this instant, or None when it has another length."""
        projected, as_of = b"%d" % projected_ms, rfc3339(now_ms).encode()
        if len(projected) + len(as_of) != self._size:
            return None
        if not self._has_reset:
            return self._text % (request_id, date, projected, as_of)
        reset_s = b"%d" % seconds_to(self._period_end_ms, now_ms)
        return self._text % (reset_s, request_id, date, projected, as_of)


class RepeatedCheck:
    """Answers one allowed check again and again; the `again` of a `Repeatable`."""

    __slots__ = (
        "_clock",
        "_departures",
        "_given",
        "_keyring",
        "_organizations",
        "_standing",
        "_template",
        "_wire",
    )

    def __init__(self, given: GivenAnswer, services: WebServices, wire: HotWire) -> None:
        """Take the answer just given, to whom was authenticated just now."""
        self._given = given
        self._standing = given.standing
        self._keyring = services.keyring
        self._departures = services.keyring.departures
        self._organizations = services.organizations
        self._clock = services.clock
        self._wire = wire
        self._template: CheckTemplate | None = None

    def __call__(self) -> bytes | None:
        """Return the answer of now, or None when the request must be asked like a new one."""
        if self._keyring.departures != self._departures:
            return None
        wire, now_ms = self._wire, self._clock.now_ms()
        projected_ms = self._organizations.moved_nowait(self._standing, now_ms)
        if projected_ms is None:
            return None
        if self._template is None:
            self._template = CheckTemplate(self._given)
        answer = self._template.filled(
            projected_ms, now_ms, wire.request_id(now_ms), wire.date(now_ms)
        )
        if answer is not None:
            wire.count(CHECK, "200")
        return answer


def may_repeat(principal: Principal, standing: Standing) -> bool:
    """Tell whether the answer may be given again without asking again who asks."""
    return standing.view.denial is None and principal.ends_at_ms is None
