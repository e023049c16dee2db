"""Reading Authorization headers."""

from __future__ import annotations

import pytest

from meterd.actors.keyring import Principal
from meterd.web.auth import bearer_of, has_scope, operator_of, organization_of
from meterd.web.problems import ProblemError


@pytest.mark.parametrize(
    ("values", "bearer"),
    [
        (["Bearer abc"], "abc"),
        (["bearer abc"], "abc"),
        (["BEARER  abc "], "abc"),
        (["Bearer a b"], "a b"),
        ([], None),
        ([""], None),
        (["Bearer"], None),
        (["Bearer "], None),
        (["Basic abc"], None),
        (["abc"], None),
        (["Bearer abc", "Bearer abc"], None),
        (["Bearer äbc"], None),
        (["Bearer a\tc"], None),
        (["Bearer " + "x" * 8_193], None),
    ],
)
def test_a_bearer_is_taken_from_one_plain_header_only(
    values: list[str], bearer: str | None
) -> None:
    """Two headers, or bytes nobody can type, are somebody else's idea of a key."""
    assert bearer_of(values) == bearer


def test_scopes_open_what_they_name_and_nothing_else() -> None:
    """An operator's key is no tenant's, and no tenant's key is an operator's."""
    agent = Principal(key_id="key_1", organization_id="org_1", scopes=frozenset({"agent"}))
    admin = Principal(key_id="key_2", organization_id=None, scopes=frozenset({"admin"}))
    sly = Principal(key_id="key_3", organization_id="org_1", scopes=frozenset({"admin"}))

    assert organization_of(agent, "agent", "read") == "org_1"
    assert operator_of(admin) == "key_2"
    assert not has_scope(admin, ("admin",))
    with pytest.raises(ProblemError, match="wrong_scope"):
        organization_of(agent, "read")
    with pytest.raises(ProblemError, match="wrong_scope"):
        organization_of(admin, "agent")
    with pytest.raises(ProblemError, match="wrong_scope"):
        operator_of(agent)
    with pytest.raises(ProblemError, match="wrong_scope"):
        operator_of(sly)
