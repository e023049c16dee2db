"""Random but honest lives of an organization, from one seed: what stores and audits are fed."""

from __future__ import annotations

import random

from meterd.core.commands import Command, Heartbeat, Tick
from meterd.core.decide import commit, decide
from meterd.core.organization import Facts, Hold, OrganizationState
from meterd.core.plan import Contract, Tier
from meterd.core.quota import is_due
from meterd.core.units import DAY_MS, MINUTE_MS
from meterd.ports.directory import NewOrganization
from tests.organizations import NOON_MS, make_adjust, make_change, make_finish, make_start


AGENTS = 4


def make_newborn(state: OrganizationState) -> NewOrganization:
    """Return the creation of an organization as it is in a state without facts."""
    assert state.seq == 0, "it has lived already"
    return NewOrganization(
        organization_id=state.organization_id,
        profile=state.profile,
        terms=state.terms,
        period=state.period,
        created_by="key_admin",
        reason="a test",
    )


def live(
    state: OrganizationState,
    seed: int,
    *,
    steps: int = 150,
    jump_every: int = 30,
    jump_days: int = 17,
) -> tuple[list[Facts], int]:
    """Let an organization live some steps; return its facts and the instant it has reached.

    Time passes a few minutes a step, and `jump_days` days every `jump_every` steps.
    """
    chance = random.Random(seed)
    now_ms, facts = NOON_MS, []
    for step in range(steps):
        now_ms += chance.randrange(1, 4 * MINUTE_MS)
        if step % jump_every == jump_every - 1:
            now_ms += jump_days * DAY_MS
        commands = [_command(state, chance, step, now_ms)]
        if is_due(state, now_ms):
            commands.insert(0, Tick())
        for command in commands:
            decision = decide(state, command, now_ms)
            commit(state, decision)
            if decision.facts is not None:
                facts.append(decision.facts)
    return facts, now_ms


def _command(state: OrganizationState, chance: random.Random, step: int, now_ms: int) -> Command:
    known = [*state.running, *state.lost]
    kind = chance.random()
    if kind < 0.25 or not known:  # a share
        agent_id = f"agent_{chance.randrange(AGENTS)}"
        elapsed_ms = chance.choice([0, 0, 45_000])
        return make_start(f"task_{step}", agent_id, elapsed_ms=elapsed_ms)
    task_id = chance.choice(known)
    task = state.task(task_id)
    assert task is not None, task_id
    elapsed_ms = task.elapsed_ms + chance.randrange(0, max(1, now_ms - task.reported_at_ms) + 1)
    if kind < 0.75:
        return Heartbeat(task_id, elapsed_ms)
    if kind < 0.85:
        return make_finish(task_id, elapsed_ms)
    if kind < 0.92:
        return make_adjust(chance.choice([-90_000, 61_000, 7 * MINUTE_MS]))
    if kind < 0.96:
        contract = Contract(agent_minutes=chance.choice([5, 50, 500]))
        return make_change(plan=chance.choice(list(Tier)), contract=contract)
    hold = chance.choice(list(Hold))
    return make_change(place=hold) if chance.random() < 0.3 else make_change(lift=hold)
