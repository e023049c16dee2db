"""The grammar of request heads, and that the hot path is stricter still."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from meterd.web.front.head import Head, Refused, inspect_beginning, inspect_head
from meterd.web.front.hot import HotRoute, recognise


PLAIN = b"GET /hello?x=1 HTTP/1.1\r\nHost: a\r\nX-Two:  b c \r\n\r\n"


def inspect(data: bytes) -> Head | Refused:
    """Inspect with the default limits."""
    return inspect_head(data, head_bytes_max=16_384, headers_max=100)


def hot(data: bytes) -> object:
    """Recognise with the default limits."""
    return recognise(data, head_bytes_max=16_384, headers_max=100, body_bytes_max=4_096)


def test_a_plain_head_is_parsed_with_lower_case_names_and_without_padding() -> None:
    """What every later decision is made from."""
    head = inspect(PLAIN)

    assert isinstance(head, Head)
    assert (head.method, head.path, head.query) == (b"GET", b"/hello", b"x=1")
    assert head.headers == [(b"host", b"a"), (b"x-two", b"b c")]
    assert head.values(b"x-two") == [b"b c"]


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"content-length: 1\r\ncontent-length: 1", 400),
        (b"content-length: 1\r\ntransfer-encoding: chunked", 400),
        (b"transfer-encoding: chunked\r\ntransfer-encoding: chunked", 400),
        (b"transfer-encoding: identity", 501),
        (b"transfer-encoding : chunked", 400),
        (b"content-length: 0x1", 400),
        (b"content-length: -1", 400),
        (b"content-length: 1_0", 400),
        (b"content-length: " + b"9" * 19, 400),
        (b"content-length:", 400),
        (b"host: b", 400),
        (b": x", 400),
        (b"nocolon", 400),
        (b"x: a\x0bb", 400),
        (b"x: a\rb", 400),
        (b"x: a\nb: c", 400),
        (b" x: a", 400),
        (b"x\xff: a", 400),
    ],
)
def test_a_header_that_could_be_read_in_two_ways_is_refused(line: bytes, status: int) -> None:
    """Repairing such heads is how requests are smuggled past a proxy."""
    refused = inspect(b"POST / HTTP/1.1\r\nhost: a\r\n" + line + b"\r\n\r\n")

    assert isinstance(refused, Refused)
    assert refused.status == status


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET / HTTP/1.1 ", 400),
        (b"GET /a b HTTP/1.1", 400),
        (b"GET /\xff HTTP/1.1", 400),
        (b"GET /#f HTTP/1.1", 400),
        (b"GET * HTTP/1.1", 400),
        (b"GET a HTTP/1.1", 400),
        (b"GET ftp://a/ HTTP/1.1", 400),
        (b"GET http://u@a/ HTTP/1.1", 400),
        (b"CONNECT a:443 HTTP/1.1", 400),
        (b"GET /", 400),
        (b"GET / HTTP/2.0", 505),
        (b"GET / HTTP/1.2", 505),
        (b"GET / http/1.1", 400),
    ],
)
def test_a_request_line_of_another_shape_is_refused(line: bytes, status: int) -> None:
    """One form of target for every route, and one version."""
    refused = inspect(line + b"\r\nhost: a\r\n\r\n")

    assert isinstance(refused, Refused)
    assert refused.status == status


def test_a_websocket_upgrade_is_recognised_among_other_connection_options() -> None:
    """Firefox sends `keep-alive, Upgrade`."""
    head = inspect(
        b"GET / HTTP/1.1\r\nhost: a\r\nConnection: keep-alive, Upgrade\r\n"
        b"Upgrade: WebSocket\r\n\r\n"
    )

    assert isinstance(head, Head)
    assert head.is_websocket_upgrade


def test_a_beginning_is_refused_as_soon_as_it_cannot_become_a_head() -> None:
    """A TLS greeting on the plain port is not waited on."""
    tls, large = b"\x16\x03\x01", b"G" * 101

    assert inspect_beginning(tls, head_bytes_max=100) is not None
    assert inspect_beginning(large, head_bytes_max=100) is not None
    assert inspect_beginning(b"GET / HT", head_bytes_max=100) is None
    assert inspect_beginning(b"", head_bytes_max=100) is None


@given(st.binary(max_size=200))
def test_no_bytes_make_the_inspection_raise(data: bytes) -> None:
    """Peers choose these bytes."""
    for head in (data, data + b"\r\n\r\n", b"GET /" + data + b" HTTP/1.1\r\nhost: a\r\n\r\n"):
        assert isinstance(inspect(head), Head | Refused)
        inspect_beginning(head, head_bytes_max=100)
        hot(head)


HOT_HEADS = [
    b"GET /v1/quota/check HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer k\r\n\r\n",
    b"GET /v1/quota/check?agent_id=a.b HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
    (
        b"POST /v1/tasks/t1/heartbeat HTTP/1.1\r\nHost: a\r\nContent-Length: 18\r\n"
        b"Content-Type: application/json; charset=UTF-8\r\n\r\n"
    ),
]
FRAGMENTS = st.sampled_from(
    [b"\n", b"\r", b"\r\n", b" ", b"\t", b":", b"\x00", b"\x80", b"?", b"%41", b"#", b"HTTP/1.0",
     b"Host: b\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"x: y\r\n",
     b"Expect: 100-continue\r\n", b"Upgrade: websocket\r\n", b"Connection: close\r\n", b"a", b"/"]
)  # fmt: skip


@pytest.mark.parametrize("head", HOT_HEADS)
def test_plain_hot_heads_are_recognised(head: bytes) -> None:
    """The exact requests that agents send."""
    assert hot(head) is not None


@given(
    head=st.sampled_from(HOT_HEADS),
    fragment=FRAGMENTS,
    at=st.integers(min_value=0, max_value=170),
    removed=st.integers(min_value=0, max_value=3),
)
def test_a_mutated_head_is_never_hot_unless_the_strict_grammar_agrees_about_it(
    head: bytes, fragment: bytes, at: int, removed: int
) -> None:
    """Two parsers, one reading: a difference between them would be a smuggled request."""
    mutated = head[:at] + fragment + head[at + removed :]
    if not mutated.endswith(b"\r\n\r\n") or mutated.find(b"\r\n\r\n") != len(mutated) - 4:
        return  # the conversation cuts heads there
    found = recognise(mutated, head_bytes_max=16_384, headers_max=100, body_bytes_max=4_096)
    if found is None:
        return
    strict = inspect(mutated)

    assert isinstance(strict, Head), mutated
    assert strict.method.decode() == found.method
    assert strict.path.decode() == found.path
    assert strict.query.decode() == found.query
    assert (strict.content_length or 0) == found.content_length
    assert not strict.is_chunked
    assert not strict.is_websocket_upgrade
    values = strict.values(b"authorization")
    assert found.authorization == (values[0].decode("latin-1") if values else None)
    assert len(values) <= 1
    assert found.route in HotRoute
