"""The name that is most like another: for "did you mean"."""

from __future__ import annotations

import itertools

from collections.abc import Iterable


MOST = 200  # names to compare with


def nearest(asked: str, names: Iterable[str]) -> str | None:
    """Return the one of *names* that begins and ends most like *asked*, whatever the case.

    First of all the one that is *asked* within some module: by default a name is that of module and
    function. None: of none is that half the name. Names of which neither the first nor the last two
    characters are the same are left out, and so are all but the first `MOST` others.
    """
    wanted, most, found = asked.lower(), 0.0, None
    folded = {name: name.lower() for name in sorted(names)}
    alike = [
        (name, known)
        for name, known in folded.items()
        if known[:2] == wanted[:2] or known[-2:] == wanted[-2:]
    ]
    for name, known in alike[:MOST]:
        if known.endswith(f".{wanted}"):
            return name
    for name, known in alike[:MOST]:
        shared = _common_start(wanted, known) + _common_start(wanted[::-1], known[::-1])
        likeness = min(shared, len(wanted), len(known)) / max(len(wanted), len(known))
        if likeness >= 0.5 and likeness > most:
            most, found = likeness, name
    return found


def _common_start(one: str, other: str) -> int:
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
