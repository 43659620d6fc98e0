"""The two stores side by side: what is done to one is done to the other, and they must agree.

Each gives out ids of its own, so tasks go by number here, in the order in which they were
stored: answers are compared with numbers in the place of ids.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import attrs

from nursery_queue._core._errors import StaleClaim, TransientError
from nursery_queue._core._heartbeat import Beat, Late
from nursery_queue._core._model import (
    Attempt,
    CancelRequest,
    Claim,
    Claimed,
    Fence,
    Held,
    Settlement,
    TaskRef,
    TaskStatus,
)
from nursery_queue._memory._memory_store import MemoryStore
from nursery_queue._pg._postgres_store import PostgresStore


NOBODY = 10**12  # what is added to a number that no task has, so that no task has the id


@attrs.frozen
class Raised:
    """A verb raised one of the errors that are part of the contract."""

    error: str


@attrs.define(eq=False)
class Side:
    """One of the stores, and which of its ids is which number."""

    store: MemoryStore | PostgresStore
    _ids: list[int] = attrs.field(factory=list[int], init=False)
    _numbers: dict[int, int] = attrs.field(factory=dict[int, int], init=False)

    def id(self, number: int) -> int:
        return self._ids[number] if number < len(self._ids) else NOBODY + number

    def ids(self, numbers: Iterable[int]) -> list[int]:
        return [self.id(number) for number in numbers]

    @property
    def next_number(self) -> int:
        return len(self._ids)

    def number(self, task_id: int) -> int:
        """Return the number of a task; one that was never seen gets the next."""
        number = self._numbers.setdefault(task_id, len(self._ids))
        if number == len(self._ids):
            self._ids.append(task_id)
        return number

    def fence(self, numbered: Fence) -> Fence:
        return Fence(self.id(numbered.task_id), numbered.epoch)

    def settlement(self, numbered: Settlement) -> Settlement:
        return attrs.evolve(numbered, fence=self.fence(numbered.fence))

    def params(self, params: Any, completes: int | None) -> Any:
        """Return the params of a task; those of a completion say which task it is about."""
        if completes is None:
            return params
        return {**params, "task_id": self.number(params["task_id"])}

    def numbered(self, answer: Any) -> Any:  # noqa: C901, PLR0911  # one case a type
        """Return *answer* with numbers instead of ids, and in an order that says nothing."""
        match answer:
            case TaskRef():
                return TaskRef(self.number(answer.id), answer.created)
            case Fence():
                return Fence(self.number(answer.task_id), answer.epoch)
            case Claim():
                told = answer.completes
                return attrs.evolve(
                    answer,
                    fence=self.numbered(answer.fence),
                    completes=None if told is None else self.number(told),
                    params=json.dumps(self.params(json.loads(answer.params), told), sort_keys=True),
                )
            case Claimed():
                return attrs.evolve(answer, claims=self.numbered(answer.claims))
            case TaskStatus():
                told = answer.completes
                return attrs.evolve(
                    answer,
                    id=self.number(answer.id),
                    completes=None if told is None else self.number(told),
                    params=answer.params and self.params(answer.params, told),
                )
            case Attempt():
                return attrs.evolve(answer, task_id=self.number(answer.task_id))
            case Beat():
                requests = self.numbered(answer.cancel_requests)
                late = sorted(map(_as_python_writes, answer.late), key=lambda each: each.id)
                return attrs.evolve(
                    answer, cancel_requests=sorted(requests, key=_by_fence), late=late
                )
            case CancelRequest() | Held() | Settlement():
                return attrs.evolve(answer, fence=self.numbered(answer.fence))
            case Mapping():
                items: dict[Any, Any] = {**answer}
                return {self.numbered(key): self.numbered(value) for key, value in items.items()}
            case list() | tuple():
                return [self.numbered(value) for value in cast("Sequence[Any]", answer)]
            case _:
                return answer


def _differences(here: Any, there: Any) -> list[str]:
    """Return what is not the same in two answers, as far down as lists go."""
    if not (isinstance(here, list) and isinstance(there, list)):
        return [f"{here}", f"{there}"]
    pairs: list[tuple[Any, Any]] = [*itertools.zip_longest(here, there)]  # pyright: ignore[reportUnknownArgumentType]  # lists of anything
    return [line for one, other in pairs if one != other for line in _differences(one, other)]


def _as_python_writes(late: Late) -> Late:
    """Return the same with an instant that is spelled in one way: each store has its own."""
    instant = dt.datetime.fromisoformat(late.heartbeat_at)
    return attrs.evolve(late, heartbeat_at=instant.astimezone(dt.UTC).isoformat())


def _by_fence(request: CancelRequest) -> int:
    return request.fence.task_id


@attrs.define(eq=False)
class Sides:
    """Both stores; or PostgreSQL alone, which then has to keep the rules by itself."""

    memory: Side | None
    postgres: Side

    async def both(self, verb: Callable[[Side], Awaitable[Any]]) -> Any:
        """Do something to both; return what both answer, or raise if they answer differently."""
        expected = None if self.memory is None else await _answer(self.memory, verb)
        found = await _answer(self.postgres, verb)
        if self.memory is not None and found != expected:
            lines = ["the stores disagree; memory, postgres:", *_differences(expected, found)]
            raise AssertionError("\n  ".join(lines))
        return found


async def _answer(side: Side, verb: Callable[[Side], Awaitable[Any]]) -> Any:
    try:
        return side.numbered(await verb(side))
    except (StaleClaim, TransientError) as exc:
        return Raised(type(exc).__name__)
