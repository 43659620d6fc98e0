"""The base of all verbs of `MemoryStore`: the tables, the bells, and one checkpoint each."""

from __future__ import annotations

import attrs
import trio

from nursery_queue._core._errors import Closed
from nursery_queue._store import Bell, Ring

from ._tables import Tables


@attrs.define(eq=False)
class MemoryVerbs:
    """The part of a `MemoryStore` that its verbs work on.

    Every verb is one checkpoint (`_begin`) and then one atomic step, so a cancelled verb had no
    effect.
    """

    _tables: Tables = attrs.field(factory=Tables, init=False, repr=False)
    _rings: list[Ring] = attrs.field(factory=list[Ring], init=False)
    _closed: bool = attrs.field(default=False, init=False)

    async def _begin(self) -> None:
        if self._closed:
            raise Closed("this MemoryStore has been closed")
        await trio.lowlevel.checkpoint()

    def _ring(self, *bells: Bell, task_id: int | None = None) -> None:
        for bell in bells:
            for ring in list(self._rings):
                ring(bell, task_id)

    def _ring_all(self) -> None:
        self._ring(Bell.WORK, Bell.CANCEL, Bell.FINISHED)

    def _moved(self, count: int) -> int:
        """Ring if tasks have been moved; return how many."""
        if count:
            self._ring(Bell.WORK, Bell.FINISHED)
        return count
