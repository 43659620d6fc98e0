"""Log lines on stderr, for people or for machines, without passwords."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import os
import sys

from typing import Any

import click

from click.core import ParameterSource

from nursery_queue._core._log_level import log_level
from nursery_queue._core._secrets import redacted

from ._failures import Session


_COLOURS = {"WARNING": "33", "ERROR": "31", "CRITICAL": "1;31", "DEBUG": "2"}


class TextFormatter(logging.Formatter):
    """Time, level and message; the short time and colours on a terminal."""

    def __init__(self, *, terminal: bool, who: str = "") -> None:
        super().__init__()
        self.terminal = terminal
        self.coloured = terminal and not os.environ.get("NO_COLOR")
        self.who = f"[{who}] " if who else ""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback below it if there is one."""
        when = dt.datetime.fromtimestamp(record.created, tz=dt.UTC).astimezone()
        stamp = f"{when:%H:%M:%S}" if self.terminal else when.isoformat(" ", "milliseconds")
        level = f"{record.levelname:<7}"
        if self.coloured and (colour := _COLOURS.get(record.levelname)):
            level = f"\x1b[{colour}m{level}\x1b[0m"
        text = f"{stamp} {level} {self.who}{record.getMessage()}"
        if record.exc_info:
            text += f"\n{self.formatException(record.exc_info)}"
        return redacted(text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message; exc and event if there is one."""

    def __init__(self, *, who: str = "") -> None:
        super().__init__()
        self.who = who

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        when = dt.datetime.fromtimestamp(record.created, tz=dt.UTC)
        line: dict[str, Any] = {
            "time": when.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": redacted(record.getMessage()),
        }
        if self.who:
            line["worker"] = self.who
        if record.exc_info:
            line["exc"] = redacted(self.formatException(record.exc_info))
        if isinstance(event := getattr(record, "event", None), dict):
            line["event"] = {name: _harmless(value) for name, value in event.items()}  # pyright: ignore[reportUnknownVariableType]  # anybody's log may have an "event"
        return json.dumps(line, ensure_ascii=False, default=str)


def _harmless(value: Any) -> Any:
    return redacted(value) if isinstance(value, str) else value


def level_of(ctx: click.Context, level: str | None) -> str | None:
    """Return the level that was asked for with `--log-level`; `-v` outdoes all but the flag."""
    flag = ctx.get_parameter_source("log_level") is ParameterSource.COMMANDLINE
    return level if flag or not ctx.ensure_object(Session).verbose else None


def log_to_stderr(log_format: str, level: str | None, *, who: str = "") -> None:
    """Write every logger's lines to stderr; ours from *level* on.

    None: from INFO on, or from DEBUG with `-v`. *who*: a child process, whose parent has said
    what there is to say about the level.
    """
    terminal = sys.stderr.isatty()
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter(who=who)
        if log_format == "json"
        else TextFormatter(terminal=terminal, who=who)
    )
    logging.getLogger("nursery_queue").handlers.clear()  # what `-v` may have put there
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(capture=log_format == "json")
    log_level.overrule(level)
    if who:
        log_level.forgive()
    log_level.complain()


def say_at_once(level: int, message: str) -> None:
    """Write a line on stderr past `logging`, whose locks interrupted code may hold.

    For signal handlers, and for the last words of a process.
    """
    record = logging.makeLogRecord(
        {
            "name": "nursery_queue.cli",
            "levelno": level,
            "levelname": logging.getLevelName(level),
            "msg": message,
        }
    )
    formatters = [handler.formatter for handler in logging.getLogger().handlers]
    ours = [each for each in formatters if isinstance(each, TextFormatter | JsonFormatter)]
    line = ours[0].format(record) if ours else message
    rest = f"{line}\n".encode(errors="backslashreplace")
    with contextlib.suppress(OSError):  # it is not read, or not fast enough
        while rest:
            rest = rest[os.write(2, rest) :]


def enable_our_loggers() -> None:
    """Let our loggers speak although the application's own set-up has switched them off."""
    for name, logger in list(logging.Logger.manager.loggerDict.items()):
        if name.partition(".")[0] == "nursery_queue" and isinstance(logger, logging.Logger):
            logger.disabled = False


def be_verbose() -> None:
    """Log at level DEBUG."""
    logging.getLogger("nursery_queue").setLevel(logging.DEBUG)
    if not logging.getLogger().handlers:
        # With commands that have no log: to see what happens below.
        handler = logging.StreamHandler()
        handler.setFormatter(TextFormatter(terminal=sys.stderr.isatty()))
        logging.getLogger("nursery_queue").addHandler(handler)
