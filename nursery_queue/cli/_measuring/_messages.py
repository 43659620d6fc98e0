"""What the processes of a run tell each other: objects of JSON, a line each."""

from __future__ import annotations

import json

from typing import Any

import attrs
import trio


@attrs.frozen(eq=False)
class Messages:
    """Both directions between a process and its parent."""

    _incoming: trio.abc.ReceiveStream
    _outgoing: trio.abc.SendStream
    _unread: bytearray = attrs.field(factory=bytearray, init=False)
    _sending: trio.Lock = attrs.field(factory=trio.Lock, init=False)

    async def send(self, **message: Any) -> None:
        """Send one object."""
        async with self._sending:
            await self._outgoing.send_all(json.dumps(message).encode() + b"\n")

    async def receive(self) -> dict[str, Any] | None:
        """Return the next object; None: the other side has ended. Cancelled, it loses none."""
        while (end := self._unread.find(b"\n")) < 0:
            if not (chunk := await self._incoming.receive_some()):
                return None
            self._unread.extend(chunk)
        line = bytes(self._unread[:end])
        del self._unread[: end + 1]
        message: dict[str, Any] = json.loads(line)
        return message

    async def aclose(self) -> None:
        """Close both directions: the other side sees the end."""
        await self._outgoing.aclose()
        await self._incoming.aclose()
