"""An agent stream in the raw: frames as the contract has them, no client library in between."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import attrs
import trio
from websockets.trio.client import ClientConnection, connect


Message = dict[str, Any]


@attrs.define(eq=False)
class Stream:
    """One connection; every message received is kept, and waited for by its type and task."""

    socket: ClientConnection
    received: list[Message] = attrs.Factory(list)
    _news: trio.Event = attrs.Factory(trio.Event)

    async def send(self, *messages: Message) -> None:
        """Send one message as an object, several as a batch."""
        await self.socket.send(json.dumps(messages[0] if len(messages) == 1 else messages))

    async def read_forever(self) -> None:
        """Keep what arrives until the connection ends."""
        async for text in self.socket:
            content = json.loads(text)
            self.received.extend(content if isinstance(content, list) else [content])
            self._news.set()
            self._news = trio.Event()

    def find(self, kind: str, after: int = 0, **fields: Any) -> Message | None:
        """Return the first message of a type with these fields, or None."""
        for message in self.received[after:]:
            if message["type"] == kind and fields.items() <= message.items():
                return message
        return None

    async def expect(
        self, kind: str, *, within_s: float = 10, after: int = 0, **fields: Any
    ) -> Message:
        """Return the first message of a type with these fields, waiting for it."""
        with trio.move_on_after(within_s):
            while (message := self.find(kind, after, **fields)) is None:
                await self._news.wait()
            return message
        raise AssertionError(f"no {kind} {fields} in {self.received[-5:]}")

    async def start(self, task_id: str, agent_id: str, **fields: Any) -> Message:
        """Start a task and return `started`."""
        await self.send({"type": "start", "task_id": task_id, "agent_id": agent_id, **fields})
        return await self.expect("started", task_id=task_id)

    async def beat(self, task_id: str, elapsed_ms: int) -> Message:
        """Report cumulative time and return the acknowledgement that covers it."""
        await self.send({"type": "heartbeat", "task_id": task_id, "elapsed_ms": elapsed_ms})
        with trio.fail_after(15):
            while True:
                for message in self.received:
                    if (
                        message["type"] == "ack"
                        and message["task_id"] == task_id
                        and message["elapsed_ms"] >= elapsed_ms
                    ):
                        return message
                await self._news.wait()

    async def finish(self, task_id: str, elapsed_ms: int, outcome: str = "succeeded") -> Message:
        """End a task and return `finished`."""
        await self.send(
            {"type": "finish", "task_id": task_id, "elapsed_ms": elapsed_ms, "outcome": outcome}
        )
        return await self.expect("finished", task_id=task_id)


@contextlib.asynccontextmanager
async def open_stream(url: str, key: str) -> AsyncIterator[Stream]:
    """Connect with a bearer key for the length of the block."""
    headers = {"authorization": f"Bearer {key}"}
    async with (
        connect(url, additional_headers=headers, subprotocols=["meterd.v1"]) as socket,  # type: ignore[list-item]  # a NewType of str
        trio.open_nursery() as nursery,
    ):
        stream = Stream(socket)

        async def read() -> None:
            with contextlib.suppress(Exception):
                await stream.read_forever()

        nursery.start_soon(read)
        try:
            yield stream
        finally:
            nursery.cancel_scope.cancel()
