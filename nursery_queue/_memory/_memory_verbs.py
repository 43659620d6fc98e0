"""The base of all verbs of `MemoryStore`: the tables, the bells, and one checkpoint each."""

from __future__ import annotations

import attrs
import trio

from nursery_queue._core._errors import Closed
from nursery_queue._core._gcra import under
from nursery_queue._store import Bell, Ring

from ._memory_rows import Setting
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

    def _set_queue(self, queue: str, setting: Setting) -> None:
        """Set a queue; what may start under a raised rate counts at once."""
        tables, now = self._tables, self._tables.now()
        tables.settings[queue] = setting
        for (name, key), next_at in tables.next_at.items():
            rate = setting.rate if key is None else setting.rate_per_key
            if name == queue and rate is not None:
                tables.next_at[name, key] = under(rate, next_at, now)

    def _moved(self, count: int) -> int:
        """Ring if tasks have been moved; return how many."""
        if count:
            self._ring(Bell.WORK, Bell.FINISHED)
        return count
