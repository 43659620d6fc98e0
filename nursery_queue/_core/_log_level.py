"""The level of our loggers, as the environment has it."""

from __future__ import annotations

import logging
import os

import attrs


VARIABLE = "NURSERY_QUEUE_LOG_LEVEL"
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

log = logging.getLogger("nursery_queue")


@attrs.define(eq=False)
class LogLevel:
    """Obeys the environment at once, and complains later, when a log has been set up."""

    _bad: str | None = attrs.field(default=None, init=False)

    def obey(self) -> None:
        """Set the level that the environment asks for, if any."""
        asked = os.environ.get(VARIABLE, "").strip()
        if is_level(asked):
            log.setLevel(asked.upper())
        self._bad = asked if asked and not is_level(asked) else None

    def overrule(self, level: str | None) -> None:
        """Set *level* if there is one: then it counts, and not the environment."""
        if level is not None:
            log.setLevel(level)
            self.forgive()

    def forgive(self) -> None:
        """Do not complain: another part of the program does, or it does not matter."""
        self._bad = None

    def complain(self) -> None:
        """Warn, once, if the environment asks for a level that does not exist."""
        bad, self._bad = self._bad, None
        if bad is not None:
            log.warning(
                "%s is %r, which is none of %s: going on with the default, %s",
                VARIABLE,
                bad,
                ", ".join(LEVELS),
                logging.getLevelName(log.getEffectiveLevel()),
            )


def is_level(text: str) -> bool:
    """Whether this is the name of a level, in upper or lower case."""
    return text.upper() in LEVELS


log_level = LogLevel()
