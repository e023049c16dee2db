"""The agent stream of contract §7 as a naive book of tasks: no time, no storage, no cleverness.

It decides what a message means and gives the answers; who carries them, loses them or says them
twice is the caller's business. Knobs make it refuse, forget or fail. Given a clock it also finds
reports implausible (contract §3.5); without one it believes everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import attrs


Message = Mapping[str, Any]

UNDECLARED_MS_MAX = 300_000
PLAUSIBLE_MS = 5_000


@attrs.define(kw_only=True)
class BookedTask:
    """A task as the book has it."""

    body: tuple[tuple[str, str], ...]
    elapsed_ms: int = 0
    outcome: str | None = None
    declared_ms: int = 0
    started_at_ms: int = 0


@dataclass
class NaiveMeterd:
    """One organization's tasks, by the words of the contract."""

    heartbeat_interval_ms: int = 10_000
    refusal: tuple[str, str] | None = None
    """Code and message given to every new task, while set."""
    error: str | None = None
    """Error code given to every start, heartbeat and finish, while set."""
    agents_max: int | None = None
    now_ms: Callable[[], int] | None = None
    """The book's own monotonic clock: what it holds reports against, if given."""
    tasks: dict[str, BookedTask] = field(default_factory=dict)
    received: list[Message] = field(default_factory=list)

    def answers(self, message: Message) -> list[dict[str, Any]]:
        """Book one message and give its answers, its `ref` echoed in each."""
        self.received.append(message)
        ref = {"ref": message["ref"]} if "ref" in message else {}
        return [{**answer, **ref} for answer in self._answers(message)]

    def _answers(self, message: Message) -> list[dict[str, Any]]:
        kind = message.get("type")
        if kind in {"start", "heartbeat", "finish"} and self.error is not None:
            return [{"type": "error", "code": self.error, "message": "Try later."}]
        match kind:
            case "start":
                return [self._start(message)]
            case "heartbeat":
                return [self._heartbeat(message)]
            case "finish":
                return [self._finish(message)]
            case "check":
                return [{"type": "quota", **self.quota()}]
            case _:
                return [{"type": "error", "code": "unknown_type", "message": "Unknown type."}]

    def _start(self, message: Message) -> dict[str, Any]:
        task_id = message["task_id"]
        # Everything the client said counts as "the body", its elapsed_ms included: the strictest
        # reading of "other body: task_conflict".
        said = {name: value for name, value in message.items() if name not in {"type", "ref"}}
        body = tuple(sorted((name, repr(value)) for name, value in said.items()))
        booked = self.tasks.get(task_id)
        if booked is None:
            code_message = self._refusal_for(message["agent_id"])
            if code_message is not None:
                code, text = code_message
                return {
                    "type": "denied",
                    "task_id": task_id,
                    "code": code,
                    "message": text,
                    "quota": self.quota() | {"allowed": False, "code": code},
                }
            elapsed_ms = message.get("elapsed_ms", 0)
            assert 0 <= elapsed_ms <= UNDECLARED_MS_MAX, message
            booked = self.tasks[task_id] = BookedTask(
                body=body,
                elapsed_ms=elapsed_ms,
                declared_ms=elapsed_ms,
                started_at_ms=0 if self.now_ms is None else self.now_ms(),
            )
        elif booked.body != body:
            return {"type": "error", "code": "task_conflict", "message": "Another task."}
        if booked.outcome is not None:
            return self._finished(task_id, booked)
        return {
            "type": "started",
            "task_id": task_id,
            "heartbeat_interval_ms": self.heartbeat_interval_ms,
            "elapsed_ms": booked.elapsed_ms,
            "quota": self.quota(),
        }

    def _heartbeat(self, message: Message) -> dict[str, Any]:
        task_id = message["task_id"]
        booked = self.tasks.get(task_id)
        if booked is None:
            return {"type": "error", "code": "task_unknown", "message": "No such task."}
        if booked.outcome is not None:
            return self._finished(task_id, booked)
        is_clamped = self._book(booked, message["elapsed_ms"])
        return {
            "type": "ack",
            "clamped": is_clamped,
            "task_id": task_id,
            "elapsed_ms": booked.elapsed_ms,
            "metered_ms": booked.elapsed_ms,
            "quota": {"state": "ok", "used_ms": self.used_ms, "remaining_ms": 60_000},
        }

    def _finish(self, message: Message) -> dict[str, Any]:
        task_id = message["task_id"]
        booked = self.tasks.get(task_id)
        if booked is None:
            return {"type": "error", "code": "task_unknown", "message": "No such task."}
        if booked.outcome is None:
            self._book(booked, message["elapsed_ms"])
            booked.outcome = message["outcome"]
        return self._finished(task_id, booked)

    def _book(self, booked: BookedTask, claimed_ms: int) -> bool:
        counted_ms = claimed_ms
        if self.now_ms is not None:
            since_start_ms = self.now_ms() - booked.started_at_ms
            counted_ms = min(claimed_ms, booked.declared_ms + since_start_ms + PLAUSIBLE_MS)
        booked.elapsed_ms = max(booked.elapsed_ms, counted_ms)
        return counted_ms < claimed_ms

    def _finished(self, task_id: str, booked: BookedTask) -> dict[str, Any]:
        return {
            "type": "finished",
            "task_id": task_id,
            "metered_ms": booked.elapsed_ms,
            "outcome": booked.outcome,
        }

    def _refusal_for(self, agent_id: str) -> tuple[str, str] | None:
        if self.refusal is not None:
            return self.refusal
        running = self.running_agents | {agent_id}
        if self.agents_max is not None and len(running) > self.agents_max:
            return "agent_limit_reached", "Agent limit reached. Upgrade to run more agents at once."
        return None

    @property
    def running_agents(self) -> set[str]:
        """Agents of tasks that have not ended."""
        return {
            value
            for booked in self.tasks.values()
            if booked.outcome is None
            for name, value in booked.body
            if name == "agent_id"
        }

    @property
    def used_ms(self) -> int:
        """Everything booked."""
        return sum(booked.elapsed_ms for booked in self.tasks.values())

    def quota(self) -> dict[str, Any]:
        """Give the quota object, with limits that nothing here enforces."""
        return {
            "organization_id": "org_1",
            "plan": "starter",
            "state": "ok",
            "allowed": True,
            "code": None,
            "billing_period": "2026-02",
            "period_start": "2026-02-12T00:00:00Z",
            "period_end": "2026-03-12T00:00:00Z",
            "agent_minutes": {
                "used": self.used_ms // 60_000,
                "limit": 1000,
                "hard_limit": 1100,
                "remaining": 1100 - self.used_ms // 60_000,
                "used_ms": self.used_ms,
                "projected_ms": self.used_ms,
                "overage": 0,
            },
            "agents": {"active": len(self.running_agents), "limit": self.agents_max},
            "overage_usd": "0.00",
            "as_of": "2026-02-20T00:00:00Z",
        }
