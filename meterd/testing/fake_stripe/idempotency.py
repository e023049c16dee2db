"""Idempotency keys: the first answer again for 24 hours, a refusal for other parameters.

Source: https://docs.stripe.com/api/idempotent_requests. Answers are kept, whatever their status,
once an endpoint began to work; refusals before that (validation, 429) are not.
"""

from __future__ import annotations

import attrs

from meterd.testing.fake_stripe.errors import StripeRefusedError
from meterd.testing.fake_stripe.world import World


@attrs.frozen
class KeptAnswer:
    """What was answered to the first request under a key."""

    fingerprint: str
    status: int
    body: bytes
    request_id: str
    kept_until_s: int


class IdempotencyKeys:
    """All keys of the account."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._kept: dict[str, KeptAnswer] = {}

    def replay(self, key: str, fingerprint: str) -> KeptAnswer | None:
        """Return the kept answer; None when the key is new or forgotten."""
        kept = self._kept.get(key)
        if kept is None or kept.kept_until_s <= self._world.now_s:
            return None
        if kept.fingerprint != fingerprint:
            raise StripeRefusedError(
                "Keys for idempotent requests can only be used with the same parameters they"
                " were first used with. Try using a key other than"
                f" '{key}' if you meant to execute a different request.",
                kind="idempotency_error",
                is_validation=True,
            )
        return kept

    def keep(
        self, key: str, fingerprint: str, *, status: int, body: bytes, request_id: str
    ) -> None:
        """Remember an answer from now on."""
        self._kept[key] = KeptAnswer(
            fingerprint,
            status,
            body,
            request_id,
            self._world.now_s + self._world.settings.idempotency_kept_s,
        )
