"""Which of the tasks that may start a claim takes: the best, and of these fairly of each key."""

from __future__ import annotations

import bisect
import heapq

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, MutableMapping, Sequence

from ._memory_rows import Task, order
from ._room import Room


# By queue, task type and priority: the key that was served last, in its bytes.
Turns = MutableMapping[tuple[str, str, int], bytes]


def choose(
    waiting: Mapping[str, Iterable[Task]], rooms: Mapping[str, Room], turns: Turns, limit: int
) -> list[Task]:
    """Choose up to *limit* of the *waiting* tasks, by queue; return the best first.

    The best of all say how many are taken of each queue and priority, and the keys take turns for
    them.
    """
    tasks = {queue: list(found) for queue, found in waiting.items()}
    best = heapq.nsmallest(
        limit,
        (task for queue in tasks for task in _best(tasks[queue], rooms[queue], limit)),
        key=order,
    )
    chosen: list[Task] = []
    for queue, found in tasks.items():
        room = rooms[queue]
        mine = [task for task in best if task.queue == queue]
        if all(task.asked.key is None for task in found):
            for task in mine:
                room.take(task)
            chosen += mine
            continue
        # Who may have a turn is as of now, whatever is taken below.
        may_start = [task for task in found if room.fits(task)]
        shares = Counter(task.priority for task in mine)
        for priority in sorted(shares, reverse=True):
            here = [task for task in may_start if task.priority == priority]
            chosen += _take_turns((queue, priority), here, shares[priority], room, turns)
    return sorted(chosen, key=order)


def _best(tasks: Iterable[Task], room: Room, limit: int) -> list[Task]:
    """Return the best tasks of a queue, as many as may start together."""
    if not room.keys:
        return heapq.nsmallest(min(room.left, limit), tasks, key=order)
    found, trial = list[Task](), room.copy()
    for task in sorted(tasks, key=order):
        if trial.fits(task):
            trial.take(task)
            found.append(task)
    return found


def _take_turns(
    where: tuple[str, int], tasks: Sequence[Task], most: int, room: Room, turns: Turns
) -> list[Task]:
    """Take tasks of a queue and priority: of each key one, then another, the oldest first.

    The keys of a task type are in the order of their bytes, and begin after the one of which a task
    of that type was taken last.
    """
    seats = _seats(where, tasks, turns)
    seen, rounds = Counter[bytes](), dict[int, int]()
    for task in sorted(tasks, key=order):
        seen[_key(task)] += 1
        rounds[task.id] = seen[_key(task)]
    taken: list[Task] = []
    in_turn = sorted(
        tasks, key=lambda task: (rounds[task.id], *seats[task.asked.task_type, _key(task)])
    )
    for task in in_turn:
        if len(taken) < most and room.fits(task):
            room.take(task)
            taken.append(task)
    _note_turns(where, taken, seats, turns)
    return taken


def _seats(
    where: tuple[str, int], tasks: Iterable[Task], turns: Turns
) -> dict[tuple[str, bytes], tuple[int, int]]:
    """Return where each key of each task type sits, and which of the types that is."""
    keys: defaultdict[str, set[bytes]] = defaultdict(set)
    for task in tasks:
        keys[task.asked.task_type].add(_key(task))
    seats: dict[tuple[str, bytes], tuple[int, int]] = {}
    for number, task_type in enumerate(sorted(keys)):
        ring = sorted(keys[task_type])
        turn = turns.get((where[0], task_type, where[1]))
        first = 0 if turn is None else bisect.bisect_right(ring, turn)
        for seat, key in enumerate(ring[first:] + ring[:first]):
            seats[task_type, key] = (seat, number)
    return seats


def _note_turns(
    where: tuple[str, int],
    taken: Iterable[Task],
    seats: Mapping[tuple[str, bytes], tuple[int, int]],
    turns: Turns,
) -> None:
    """Note of each task type that has several keys at which of them going round has stopped."""
    several = Counter(task_type for task_type, _ in seats)
    counts = Counter((task.asked.task_type, _key(task)) for task in taken)
    for lane in sorted(counts, key=lambda lane: (counts[lane], seats[lane])):
        if several[lane[0]] > 1:
            turns[where[0], lane[0], where[1]] = lane[1]


def _key(task: Task) -> bytes:
    return (task.asked.key or "").encode()
