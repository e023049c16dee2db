"""Secrets that must be readable again, as they lie in the database: sealed under a key of meterd.

AES-SIV (RFC 5297) needs no nonce, so sealing takes no chance and twice the same is the same. What
is sealed for one place (the id of its row) cannot be opened at another.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final

import attrs
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV


SEALED: Final = "sealed:"


@attrs.define(eq=False)
class Sealer:
    """Seals texts under one key of 32, 48 or 64 bytes."""

    _cipher: AESSIV

    @classmethod
    def of(cls, key: bytes) -> Sealer:
        """Return a sealer for a key."""
        return cls(AESSIV(key))

    def seal(self, text: str, place: str) -> str:
        """Return what may be stored at this place."""
        sealed = self._cipher.encrypt(text.encode(), [place.encode()])
        return SEALED + urlsafe_b64encode(sealed).decode()

    def open(self, stored: str, place: str) -> str | None:
        """Return the text that was stored at this place; None under another key.

        A text that was stored before anything was sealed is returned as it is.
        """
        if not stored.startswith(SEALED):
            return stored
        try:
            sealed = urlsafe_b64decode(stored.removeprefix(SEALED))
            return self._cipher.decrypt(sealed, [place.encode()]).decode()
        except (InvalidTag, ValueError):
            return None
