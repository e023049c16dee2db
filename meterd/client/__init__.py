"""The Python client: meter agents with one `with`, ask for the quota in one line.

Take `Meterd` from the module of your world; names and behaviour are the same in all three:

    from meterd.client.trio import Meterd        # Trio
    from meterd.client.asyncio import Meterd     # asyncio
    from meterd.client.threads import Meterd     # plain threads

The package imports nothing else of meterd and needs `websockets` and `httpx` (and `trio` for the
Trio client). `session` is the whole client without I/O, for other transports and simulations.
"""

from __future__ import annotations

from meterd.client.checks import check, quota
from meterd.client.errors import (
    AgentBusy,
    AgentLimitReached,
    Forbidden,
    KeyRejected,
    MeterdClientError,
    OverageCapReached,
    PlanLimitReached,
    Refused,
    RequestRejected,
    Suspended,
    TaskClosed,
    TaskConflict,
    TaskLimitReached,
    TooManyTasks,
    Unauthorized,
    Unreachable,
)
from meterd.client.policy import FailClosed, FailOpen, Settings
from meterd.client.quota import AgentMinutes, Agents, Check, Quota


__all__ = [
    "AgentBusy",
    "AgentLimitReached",
    "AgentMinutes",
    "Agents",
    "Check",
    "FailClosed",
    "FailOpen",
    "Forbidden",
    "KeyRejected",
    "MeterdClientError",
    "OverageCapReached",
    "PlanLimitReached",
    "Quota",
    "Refused",
    "RequestRejected",
    "Settings",
    "Suspended",
    "TaskClosed",
    "TaskConflict",
    "TaskLimitReached",
    "TooManyTasks",
    "Unauthorized",
    "Unreachable",
    "check",
    "quota",
]
