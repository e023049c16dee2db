"""Signatures by Stripe's package for Node: a second opinion on what we verify."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
import trio

from tests.conftest import missing_service
from tests.integration.service.harness import running_meterd


NODE = Path(__file__).parents[2] / "node"
SECRET = "whsec_of_another_signer"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def signer() -> Path:
    """Give the script that signs, or say what is missing."""
    try:
        found = subprocess.run(
            ["node", "-e", "require.resolve('stripe')"],
            cwd=NODE,
            capture_output=True,
            timeout=30,
            check=False,
        )
    except OSError:
        missing_service("Node is not installed")
    if found.returncode:
        missing_service("npm's stripe is not installed: npm install --prefix tests/node")
    return NODE / "sign.js"


async def signature(signer: Path, payload: bytes, secret: str, at_s: int) -> str:
    """Return the header that Stripe's package for Node makes."""
    done = await trio.run_process(
        ["node", str(signer), secret, str(at_s)], stdin=payload, capture_stdout=True
    )
    found: str = done.stdout.decode()
    return found


async def test_what_node_signs_is_taken_and_nothing_else(signer: Path, database_url: str) -> None:
    """Right, then wrong secret, old, and another body under a good signature."""
    body = {
        "id": "evt_by_node",
        "object": "event",
        "type": "product.updated",
        "created": 1,
        "livemode": False,
        "data": {"object": {"id": "prod_1", "object": "product", "name": "Ünïcode"}},
    }
    payload = json.dumps(body, ensure_ascii=False).encode()
    now_s = int(time.time())
    settings = {"METERD_STRIPE_WEBHOOK_SECRETS": f"whsec_old,{SECRET}"}
    async with running_meterd("--database-url", database_url, settings=settings) as service:

        async def post(content: bytes, header: str) -> int:
            answer = await service.http.post(
                "/api/webhooks/stripe", content=content, headers={"stripe-signature": header}
            )
            return answer.status_code

        good = await signature(signer, payload, SECRET, now_s)
        answers = [
            await post(payload, good),
            await post(payload, await signature(signer, payload, "whsec_wrong", now_s)),
            await post(payload, await signature(signer, payload, SECRET, now_s - 600)),
            await post(payload + b" ", good),
        ]

    assert answers == [200, 400, 400, 400]
