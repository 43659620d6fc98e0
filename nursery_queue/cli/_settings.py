"""Settings: what a flag does not say, the environment or pyproject.toml may."""

from __future__ import annotations

import functools
import os
import tomllib

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs
import click

from click.core import ParameterSource

from nursery_queue._core._log_level import is_level

from ._types import Checked


F = TypeVar("F", bound=Callable[..., Any])

ENVIRONMENT = "NURSERY_QUEUE_"
TABLE = "tool.nursery_queue"
# Say where the server is; the other PG* variables only complete what is said elsewhere.
_LIBPQ_PLACES = ("PGSERVICE", "PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE")

_known: dict[str, Setting] = {}


class Setting(click.Option):
    """An option with a twin in the environment and one in pyproject.toml.

    Its default is shown in help.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **({"show_default": True} | kwargs))
        assert self.name is not None
        # The types that its twin in pyproject.toml may have.
        self.kinds: tuple[type, ...] = (bool,) if self.is_flag else (str,)
        if isinstance(self.type, Checked):
            self.kinds = self.type.kinds
        self.envvar = f"{ENVIRONMENT}{self.name.upper()}"
        _known.setdefault(self.name, self)

    def consume_value(self, ctx: click.Context, opts: Any) -> tuple[Any, ParameterSource]:
        """Find the value: flag, environment, pyproject.toml, default."""
        value, source = super().consume_value(ctx, opts)
        assert self.name is not None
        if source is ParameterSource.ENVIRONMENT:
            self.checked(ctx, value, f"the environment variable {self.envvar}")
        elif source is ParameterSource.DEFAULT:
            project = project_settings(Path.cwd())
            project.check(ctx)
            if self.name in project.values:
                return project.values[self.name], ParameterSource.DEFAULT_MAP
        return value, source

    def checked(self, ctx: click.Context, value: Any, where: str) -> None:
        """Raise `click.UsageError` that says *where* if *value* will not do."""
        try:
            self.type_cast_value(ctx, value)
        except click.BadParameter as exc:
            raise click.UsageError(f"{where}: {exc.message}", ctx) from exc

    def check_kind(self, ctx: click.Context, value: Any, where: str) -> None:
        """Raise `click.UsageError` if *value* from TOML is of a wrong type, or will not do."""
        values = value if self.multiple and isinstance(value, list) else [value]  # pyright: ignore[reportUnknownVariableType]  # whatever TOML holds
        if any(type(each) not in self.kinds for each in values):  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]  # as above
            wanted = " or ".join(_IN_WORDS[kind] for kind in self.kinds)
            wanted = f"a list of {wanted}s" if self.multiple else wanted
            raise click.UsageError(f"{where} must be {wanted}, not {value!r}", ctx)
        self.checked(ctx, values if self.multiple else value, where)


class LevelSetting(Setting):
    """The level of the log. A bad one in the environment is warned of, and no usage error.

    It is for programs of all kinds, and none is to fail for it.
    """

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """Return the level that the environment has; None: there is none, or no good one."""
        level = (super().resolve_envvar_value(ctx) or "").strip()
        return level if is_level(level) else None


_IN_WORDS: Mapping[type, str] = {
    str: "string",
    int: "whole number",
    float: "number",
    bool: "true or false",
}


class DsnSetting(Setting):
    """The DSN, which other programs have variables for, too."""

    def consume_value(self, ctx: click.Context, opts: Any) -> tuple[Any, ParameterSource]:
        """Find the value: flag, our variable, DATABASE_URL, PG*, pyproject.toml, default."""
        value, source = super().consume_value(ctx, opts)
        origin = {
            ParameterSource.COMMANDLINE: "--dsn",
            ParameterSource.ENVIRONMENT: str(self.envvar),
            ParameterSource.DEFAULT_MAP: str(project_settings(Path.cwd()).file),
            ParameterSource.DEFAULT: "the defaults of libpq",
        }[source]
        if source not in {ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT}:
            if url := os.environ.get("DATABASE_URL"):
                value, source, origin = url, ParameterSource.ENVIRONMENT, "DATABASE_URL"
            elif names := [name for name in _LIBPQ_PLACES if os.environ.get(name)]:
                value, source, origin = "", ParameterSource.ENVIRONMENT, ", ".join(names)
        return Dsn(value or "", origin), source


@attrs.frozen
class Dsn:
    """A DSN as it was given, and by what."""

    text: str = attrs.field(repr=False)
    origin: str


def setting(*flags: str, cls: type[Setting] = Setting, **kwargs: Any) -> Callable[[F], F]:
    """Return the decorator that gives a command this option."""

    def decorate(command: F) -> F:
        return click.option(*flags, cls=cls, **kwargs)(command)

    return decorate


# -- pyproject.toml ------------------------------------------------------------------------


@attrs.define(eq=False)
class ProjectSettings:
    """What `[tool.nursery_queue]` says, by the names of our options."""

    file: Path | None
    values: Mapping[str, Any]
    _checked: bool = attrs.field(default=False, init=False)

    def check(self, ctx: click.Context) -> None:
        """Raise `click.UsageError`, naming file and key, unless all of it makes sense."""
        if self._checked:
            return
        self._checked = True
        for key, value in self.values.items():
            where = f"{self.file}: {key!r} in [{TABLE}]"
            if key not in _known:
                msg = f"{where} is no setting; there are: {', '.join(sorted(_known))}"
                raise click.UsageError(msg, ctx)
            _known[key].check_kind(ctx, value, where)


@functools.cache
def project_settings(directory: Path) -> ProjectSettings:
    """Read the nearest pyproject.toml with our table in it, from *directory* upwards."""
    for each in (directory, *directory.parents):
        file = each / "pyproject.toml"
        try:
            document = tomllib.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as exc:
            raise click.UsageError(f"{file} cannot be read: {exc}") from exc
        tools = document.get("tool", {})
        if not isinstance(tools, dict):
            raise click.UsageError(f"{file}: tool must be a table, not {tools!r}")
        table = tools.get("nursery_queue")  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]  # whatever TOML holds
        if isinstance(table, dict):
            named = {str(key).replace("-", "_"): value for key, value in table.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]  # whatever TOML holds
            return ProjectSettings(file, named)  # pyright: ignore[reportUnknownArgumentType]  # as above
        if table is not None:
            raise click.UsageError(f"{file}: {TABLE} must be a table, not {table!r}")
    return ProjectSettings(None, {})
