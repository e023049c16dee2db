"""The issuer's published keys over HTTPS (`KeySetSource`)."""

from __future__ import annotations

from typing import Final

import attrs
import httpx
import trio

from meterd.errors import KeySetUnavailableError


TIMEOUT_S: Final = 5

DOCUMENT_BYTES_MAX: Final = 64 * 1024


@attrs.frozen
class HttpKeySet:
    """Reads a JWKS document from its address."""

    url: str

    async def read(self) -> bytes:
        """Return the document. Errors: KeySetUnavailableError."""
        content = bytearray()
        try:
            with trio.fail_after(TIMEOUT_S):
                async with (
                    httpx.AsyncClient(follow_redirects=False, trust_env=False) as client,
                    client.stream(
                        "GET", self.url, headers={"accept-encoding": "identity"}
                    ) as answer,
                ):
                    if answer.status_code != httpx.codes.OK:
                        raise KeySetUnavailableError(f"the issuer answered {answer.status_code}")
                    # To its end, or httpx leaves its iterators to the garbage collector.
                    async for chunk in answer.aiter_raw():
                        content += chunk[: DOCUMENT_BYTES_MAX + 1 - len(content)]
        except (httpx.HTTPError, httpx.InvalidURL, trio.TooSlowError) as error:
            raise KeySetUnavailableError(f"no answer: {type(error).__name__}") from error
        if len(content) > DOCUMENT_BYTES_MAX:
            raise KeySetUnavailableError("the key set is larger than 64 KiB")
        return bytes(content)
