# ruff: noqa: ARG001  # asking for autojump_clock is what makes the time virtual
"""People signed in with Clerk: real RS256 keys, a local key set server, the real application."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import attrs
import jwt
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import RSAAlgorithm
from trio.testing import MockClock

from meterd.actors.keyring import Principal
from meterd.actors.sessions import Sessions
from meterd.adapters.key_set import HttpKeySet
from meterd.errors import KeySetUnavailableError, StoreUnavailableError
from tests.served import ADMIN_KEY, PAGE, TrioClock, World, open_world


ISSUER = "https://clerk.example.com"


@cache
def private_key(name: str, bits: int) -> rsa.RSAPrivateKey:
    """Return the issuer's key of this name."""
    del name
    return rsa.generate_private_key(public_exponent=65_537, key_size=bits)


def key_set(*names: str, bits: int = 2_048) -> bytes:
    """Return the document the issuer publishes."""
    found = []
    for name in names:
        public = json.loads(RSAAlgorithm.to_jwk(private_key(name, bits).public_key()))
        found.append({**public, "kid": name, "use": "sig", "alg": "RS256"})
    return json.dumps({"keys": found}).encode()


def claims_at(now_ms: int, **changes: Any) -> dict[str, Any]:
    """Return the claims of a session of org_1's administrator; None takes a claim away."""
    now_s = now_ms // 1_000
    claims = {
        "iss": ISSUER,
        "sub": "user_1",
        "sid": "sess_1",
        "azp": PAGE,
        "iat": now_s,
        "nbf": now_s - 10,
        "exp": now_s + 60,
        "org_id": "org_1",
        "org_role": "org:admin",
    }
    return {name: value for name, value in (claims | changes).items() if value is not None}


def signed(claims: dict[str, Any], name: str = "one", *, kid: str | None = None) -> str:
    """Return a token by the key of this name, which may say that it is another's."""
    return jwt.encode(claims, private_key(name, 2_048), "RS256", headers={"kid": kid or name})


@attrs.define
class Published:
    """An issuer's place in memory."""

    document: bytes = key_set("one")
    is_away: bool = False
    reads: int = 0

    async def read(self) -> bytes:
        await trio.lowlevel.checkpoint()
        self.reads += 1
        if self.is_away:
            raise KeySetUnavailableError("switched off by a test")
        return self.document


@attrs.define
class SignIn:
    """Sessions on a virtual clock."""

    published: Published
    clock: TrioClock
    sessions: Sessions

    def token(self, kid: str = "one", **changes: Any) -> str:
        return signed(claims_at(self.clock.now_ms(), **changes), kid)


@pytest.fixture
async def sign_in() -> SignIn:
    """Give sessions whose issuer publishes the key `one`."""
    published, clock = Published(), TrioClock()
    sessions = Sessions(published, issuer=ISSUER, parties=frozenset({PAGE}), clock=clock)
    return SignIn(published, clock, sessions)


@pytest.mark.parametrize(
    ("changes", "scopes"),
    [
        ({}, {"read", "manage"}),
        ({"org_role": "org:member"}, {"read"}),
        ({"org_role": "admin"}, {"read", "manage"}),
        ({"org_id": None, "org_role": None, "o": {"id": "org_1", "rol": "member"}}, {"read"}),
    ],
)
async def test_organization_and_role_come_from_the_token(
    sign_in: SignIn, changes: dict[str, Any], scopes: set[str]
) -> None:
    """Administrators read and manage, members read; both versions of Clerk's claims are known."""
    token = sign_in.token(**changes)
    found = await sign_in.sessions.verify(token)
    assert found is not None
    assert (found.organization_id, found.scopes, found.key_id) == (
        "org_1",
        frozenset(scopes),
        "clerk:user_1",
    )
    assert found.ends_at_ms == (sign_in.clock.now_ms() // 1_000 + 60) * 1_000
    assert sign_in.sessions.verify_nowait(token) == found


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://other.example.com"},
        {"iss": None},
        {"azp": "https://evil.example"},
        {"azp": None},
        {"azp": [PAGE]},
        {"sub": None},
        {"sub": 7},
        {"sid": None},
        {"exp": None},
        {"iat": None},
        {"nbf": None},
        {"exp": "never"},
        {"exp": True},
        {"exp": 1e300},
        {"org_id": None},
        {"org_id": "../etc"},
        {"org_id": "org 1"},
        {"org_role": "org:owner"},
        {"org_role": "org:org:admin"},
        {"org_role": None},
        {"o": {"id": 1, "rol": "admin"}},
        {"o": {"id": "org_1"}},
    ],
)
async def test_a_token_that_lacks_anything_is_nobodys(
    sign_in: SignIn, changes: dict[str, Any]
) -> None:
    """Every claim that is relied on is required, and judged."""
    assert await sign_in.sessions.verify(sign_in.token(**changes)) is None


@pytest.mark.parametrize(
    ("at_s", "is_good"), [(-16, False), (-14, True), (0, True), (64, True), (66, False)]
)
async def test_times_have_five_seconds_of_leeway(sign_in: SignIn, at_s: int, is_good: bool) -> None:
    """By our clock, not by the library's."""
    now_s = sign_in.clock.now_ms() // 1_000 - at_s
    token = sign_in.token(nbf=now_s - 10, iat=now_s - 10, exp=now_s + 60)
    assert (await sign_in.sessions.verify(token) is not None) == is_good


async def test_only_rs256_is_taken(sign_in: SignIn) -> None:
    """Neither no signature, nor the public key used as a shared secret, nor other families."""
    claims = claims_at(sign_in.clock.now_ms())
    public = private_key("one", 2_048).public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def part(content: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()

    forged = f"{part({'alg': 'HS256', 'kid': 'one', 'typ': 'JWT'})}.{part(claims)}"
    digest = hmac.digest(pem, forged.encode(), hashlib.sha256)
    confused = f"{forged}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"
    naked = f"{part({'alg': 'none', 'kid': 'one'})}.{part(claims)}."
    other = jwt.encode(claims, private_key("one", 2_048), "RS512", headers={"kid": "one"})
    assert await sign_in.sessions.verify(sign_in.token()) is not None
    cut, long = sign_in.token()[:-4], f"{'x' * 8_200}.a.b"
    for token in (confused, naked, other, "a.b.c", "..", long, cut):
        assert await sign_in.sessions.verify(token) is None
    stranger = signed(claims, "stranger", kid="one")
    assert await sign_in.sessions.verify(stranger) is None


async def test_the_key_set_is_read_once_an_hour(sign_in: SignIn, autojump_clock: MockClock) -> None:
    """A thousand tokens are one reading."""
    for _ in range(1_000):
        assert await sign_in.sessions.verify(sign_in.token()) is not None
    assert sign_in.published.reads == 1
    await trio.sleep(3_601)
    assert await sign_in.sessions.verify(sign_in.token()) is not None
    assert sign_in.published.reads == 2


async def test_an_unknown_key_is_looked_for_once_in_five_minutes(
    sign_in: SignIn, autojump_clock: MockClock
) -> None:
    """A rotation is followed; invented ids cost the issuer nothing."""
    assert await sign_in.sessions.verify(sign_in.token()) is not None
    sign_in.published.document = key_set("one", "two")
    await trio.sleep(301)
    assert await sign_in.sessions.verify(sign_in.token("two")) is not None
    assert sign_in.published.reads == 2
    for number in range(50):
        token = signed(claims_at(sign_in.clock.now_ms()), "one", kid=f"invented-{number}")
        assert await sign_in.sessions.verify(token) is None
    assert sign_in.published.reads == 2
    async with trio.open_nursery() as nursery:
        await trio.sleep(301)
        for number in range(20):
            token = signed(claims_at(sign_in.clock.now_ms()), "one", kid=f"again-{number}")
            nursery.start_soon(sign_in.sessions.verify, token)
    assert sign_in.published.reads == 3


async def test_an_old_key_set_serves_a_day_while_the_issuer_is_away(
    sign_in: SignIn, autojump_clock: MockClock
) -> None:
    """Customers go on seeing their usage; after a day nobody can tell any more."""
    assert await sign_in.sessions.verify(sign_in.token()) is not None
    sign_in.published.is_away = True
    for _ in range(23):
        await trio.sleep(3_600)
        assert await sign_in.sessions.verify(sign_in.token()) is not None
    await trio.sleep(3_700)
    assert await sign_in.sessions.verify(sign_in.token()) is None
    sign_in.published.is_away = False
    await trio.sleep(11)
    assert await sign_in.sessions.verify(sign_in.token()) is not None


async def test_without_any_key_set_it_is_our_trouble(sign_in: SignIn) -> None:
    """503, not 401: the person has done nothing wrong."""
    sign_in.published.is_away = True
    with pytest.raises(StoreUnavailableError):
        await sign_in.sessions.verify(sign_in.token())


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b"{}", b'{"keys":1}', b'{"keys":[1,{"kid":1}]}', b"[" * 100_000, b"\xff"],
)
async def test_what_is_no_key_set_is_an_issuer_away(sign_in: SignIn, document: bytes) -> None:
    """Whatever comes, it is no crash, and no key."""
    sign_in.published.document = document
    with pytest.raises(StoreUnavailableError):
        await sign_in.sessions.verify(sign_in.token())


async def test_a_short_rsa_key_is_not_taken(sign_in: SignIn) -> None:
    """1,024 bits can be broken."""
    sign_in.published.document = key_set("short", bits=1_024)
    with pytest.raises(StoreUnavailableError):
        await sign_in.sessions.verify(sign_in.token())


@asynccontextmanager
async def serving(answer: bytes) -> AsyncIterator[str]:
    """Serve an answer on this machine."""

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some(65_536)
        await stream.send_all(answer)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/jwks.json"
        nursery.cancel_scope.cancel()


async def test_a_key_set_is_read_from_a_server() -> None:
    """As it is published; too much, a redirect and an error are no answer."""
    document = key_set("one")
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(document)}\r\n\r\n".encode()
    async with serving(head + document) as url:
        assert await HttpKeySet(url).read() == document
    for bad in (
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70_000,
        b"nonsense\r\n\r\n",
    ):
        async with serving(bad) as url:
            with pytest.raises(KeySetUnavailableError):
                await HttpKeySet(url).read()


async def signed_in(world: World, **changes: Any) -> str:
    """Let a world take session tokens, and return one."""
    clock = world.services.clock
    world.services.keyring.sessions = Sessions(
        Published(), issuer=ISSUER, parties=frozenset({PAGE}), clock=clock
    )
    return signed(claims_at(clock.now_ms(), **changes))


async def test_an_administrator_reads_and_manages_a_member_reads() -> None:
    """On the routes, the hot one included; agents' work needs a key."""
    async with open_world() as world:
        await world.add()
        admin = await signed_in(world)
        for path in ("/v1/quota/check", "/v1/quota", "/v1/settings", "/v1/keys"):
            assert (await world.ask("GET", path, admin)).status_code == 200, path
        start = await world.ask("POST", "/v1/tasks", admin, content={"agent_id": "a"})
        assert start.status_code == 403
        member = await signed_in(world, org_role="org:member")
        assert (await world.ask("GET", "/v1/quota", member)).status_code == 200
        assert (await world.ask("GET", "/v1/settings", member)).status_code == 403
        stranger = await signed_in(world, org_id="org_2")
        assert (await world.ask("GET", "/v1/quota", stranger)).status_code == 404
        nobody = await signed_in(world, azp="https://evil.example")
        assert (await world.ask("GET", "/v1/quota", nobody)).status_code == 401


async def test_keys_of_ones_own_organization_are_made_listed_and_revoked() -> None:
    """The key works at once and not a moment longer; who did it is in the audit log."""
    async with open_world() as world:
        await world.add()
        await world.add("org_2")
        admin = await signed_in(world)
        body = {"scopes": ["agent"], "name": "worker"}
        made = await world.ask("POST", "/v1/keys", admin, content=body)
        assert made.status_code == 201, made.data
        key = made.data["key"]
        assert (await world.ask("GET", "/v1/quota/check", key)).status_code == 200
        assert (await world.ask("GET", "/v1/keys", key)).status_code == 403
        listed = (await world.ask("GET", "/v1/keys", admin)).data["data"]
        assert [("key" in each, each["id"]) for each in listed] == [(False, made.data["id"])]
        other = await world.key("manage", organization_id="org_2")
        path = f"/v1/keys/{made.data['id']}"
        assert (await world.ask("DELETE", path, other)).status_code == 404
        assert (await world.ask("DELETE", path, admin)).status_code == 204
        assert (await world.ask("GET", "/v1/quota/check", key)).status_code == 401
        audited = [
            (entry.actor, entry.action)
            for owner, entry in world.store.database.audits.values()
            if owner == "org_1" and entry.action.startswith("key.")
        ]
        assert audited == [("clerk:user_1", "key.create"), ("clerk:user_1", "key.revoke")]


async def test_lists_of_keys_are_read_page_by_page() -> None:
    """Revoked keys stay listed, so the list only grows; a page is bounded as everywhere."""
    async with open_world() as world:
        await world.add()
        manager = await world.key("manage")
        for number in range(4):
            body = {"scopes": ["read"], "name": f"key {number}"}
            assert (await world.ask("POST", "/v1/keys", manager, content=body)).status_code == 201
        for path, asker in (
            ("/v1/keys", manager),
            ("/admin/v1/organizations/org_1/keys", ADMIN_KEY),
        ):
            whole = (await world.ask("GET", path, asker)).data
            first = (await world.ask("GET", f"{path}?limit=2", asker)).data
            cursor = first["next_cursor"]
            rest = (await world.ask("GET", f"{path}?limit=1000&cursor={cursor}", asker)).data

            assert whole["next_cursor"] is rest["next_cursor"] is None
            assert len(first["data"]) == 2
            assert first["data"] + rest["data"] == whole["data"]
            assert (await world.ask("GET", f"{path}?limit=0", asker)).status_code == 422


async def test_an_organization_makes_a_bounded_number_of_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever may make keys must not fill the table with them; revoking makes room."""
    monkeypatch.setattr("meterd.web.keys.KEYS_MAX", 2)
    async with open_world() as world:
        await world.add()
        admin = await signed_in(world)
        body = {"scopes": ["agent"]}
        made = [await world.ask("POST", "/v1/keys", admin, content=body) for _ in range(3)]
        await world.ask("DELETE", f"/v1/keys/{made[0].data['id']}", admin)
        again = await world.ask("POST", "/v1/keys", admin, content=body)

        assert [each.status_code for each in made] == [201, 201, 409]
        assert made[2].data["code"] == "too_many_keys"
        assert again.status_code == 201


@pytest.mark.parametrize("scopes", [["admin"], [], ["agent", "agent"], "agent", ["agent", "admin"]])
async def test_no_key_can_be_more_than_its_organizations(scopes: Any) -> None:
    """An operator's scope cannot be asked for here."""
    async with open_world() as world:
        await world.add()
        manager = await world.key("manage")
        answer = await world.ask("POST", "/v1/keys", manager, content={"scopes": scopes})
        assert answer.status_code == 422


async def test_a_viewer_leaves_when_the_session_ends(autojump_clock: MockClock) -> None:
    """A dashboard that stays open asks for another ticket with its next session."""
    del autojump_clock
    async with open_world() as world:
        await world.add()
        live = world.services.live
        assert live is not None
        ended: list[str] = []

        class Viewer:
            def show(self, payload: bytes) -> None: ...
            def alert(self, payload: bytes) -> None: ...
            def end(self) -> None:
                ended.append("now")

        ends_at_ms = world.services.clock.now_ms() + 60_000
        principal = Principal(
            key_id="clerk:user_1",
            organization_id="org_1",
            scopes=frozenset({"read"}),
            ends_at_ms=ends_at_ms,
        )
        stop = live.feed.watch("org_1", Viewer(), ends_at_ms=principal.ends_at_ms)
        await trio.sleep(58)
        assert not ended
        await trio.sleep(3)
        assert ended
        stop()
