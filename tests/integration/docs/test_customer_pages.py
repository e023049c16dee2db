"""What docs/how-to tells the makers of web pages, done with a real service.

Sessions are signed by an issuer of our own, and the page's script is run by Node.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import trio

from tests.conftest import missing_service
from tests.integration.docs.pages import blocks_of
from tests.integration.service.harness import running_meterd
from tests.integration.web.test_sign_in import claims_at, key_set, serving, signed


pytestmark = pytest.mark.slow

NODE = ("node", "--experimental-websocket")
"""Node 20 has a browser's WebSocket behind this flag, newer ones without it."""

AROUND_THE_PAGE = """
const [meterd, token] = process.argv.slice(1);
const session = {getToken: async () => token};
const show = (snapshot) => { console.log(JSON.stringify(snapshot)); process.exit(0); };
const connect = async () => {
  %s
};
connect();
"""


@pytest.fixture
def browser() -> tuple[str, ...]:
    """Give what runs a page's script."""
    if shutil.which("node") is None or subprocess.run([*NODE, "-e", "0"], check=False).returncode:
        missing_service("no node with a WebSocket for this test")
    return NODE


def token(**changes: object) -> str:
    """Return the session token of an organization's administrator, signed now."""
    return signed(claims_at(int(time.time()) * 1_000, **changes))


async def test_the_pages_on_signing_in_and_showing_usage_do_what_they_say(
    browser: tuple[str, ...], database_url: str, tmp_path: Path
) -> None:
    """A page holds no key: its session's token opens what its role may see, and the live feed."""
    [settings] = [b.text for b in blocks_of("how-to/sign-in-with-clerk.md") if b.language == "toml"]
    [script] = [
        block.text
        for block in blocks_of("how-to/show-usage-in-a-web-page.md")
        if block.language == "javascript"
    ]
    document = key_set("one")
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(document)}\r\n\r\n".encode()
    config = tmp_path / "meterd.toml"
    async with serving(head + document) as published:
        config.write_text(f'{settings}clerk_jwks_url = "{published}"\n')
        options = ("--database-url", database_url, "--config", str(config))
        async with running_meterd(*options) as service:
            await service.organization("org_1", "starter")
            async with service.client(token()) as admin:
                made = await admin.post("/v1/keys", json={"scopes": ["agent"], "name": "worker"})
                assert (made.status_code, "key" in made.json()) == (201, True)
                assert (await admin.post("/v1/tasks", json={"agent_id": "a"})).status_code == 403
            async with service.client(token(org_role="org:member")) as member:
                seen = [(await member.get(path)).status_code for path in ("/v1/usage", "/v1/keys")]
                assert seen == [200, 403]
            async with service.client(token(org_role="org:guest")) as guest:
                assert (await guest.get("/v1/usage")).status_code == 401

            with trio.fail_after(30):
                shown = await trio.run_process(
                    [*browser, "-e", AROUND_THE_PAGE % script, service.url, token()],
                    capture_stdout=True,
                )

    snapshot = json.loads(shown.stdout)
    assert (snapshot["type"], snapshot["organization_id"]) == ("snapshot", "org_1")
    assert snapshot["agent_minutes"]["limit"] == 1_000
