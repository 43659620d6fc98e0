"""Finds the application that APP names, or says exactly what is missing."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback

from pathlib import Path
from types import ModuleType
from typing import Any

from nursery_queue._declare._app import App

from ._failures import USAGE, ProblemError


log = logging.getLogger("nursery_queue.cli")

_OURS = Path(__file__).parents[1]
_EXAMPLE = "write MODULE:ATTRIBUTE, such as myproject.tasks:app"


def load_app(where: str) -> App:
    """Import `module:attribute`, with the current directory on the path, and return the App.

    Raises `ProblemError` with exit code 2 for whatever goes wrong, the module's own errors
    included.
    """
    module_name, colon, attribute = where.partition(":")
    if not (colon and module_name and attribute):
        hint = _EXAMPLE
        if where.endswith(".py"):
            hint = f"write {where.removesuffix('.py').replace('/', '.')}:app if it is called app"
        raise _problem(f"{where!r} does not name an application", hint)
    if (directory := os.getcwd()) not in sys.path:  # noqa: PTH109  # sys.path holds strings
        sys.path.insert(0, directory)
    module = _imported(module_name, directory)
    app = _attribute(module, attribute)
    if not isinstance(app, App):
        raise _problem(f"{where} is of type {type(app).__qualname__}, not an App", _apps_in(module))
    if not app.task_types:
        log.warning("%s has no task types: does its module import those with handlers?", where)
    return app


def _imported(name: str, directory: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(f"{exc.name}.")):
            msg = f"there is no module {exc.name!r}"
            raise _problem(msg, f"looked in {directory} and in the rest of sys.path") from exc
        raise _failed(name, exc) from exc
    except (Exception, SystemExit) as exc:  # what a module raises is the module's choice
        raise _failed(name, exc) from exc


def _failed(name: str, exc: BaseException) -> ProblemError:
    frames = [
        frame
        for frame in traceback.extract_tb(exc.__traceback__)
        if "importlib" not in frame.filename and frame.filename != __file__
    ]
    # Rather the line that calls us than ours that refuses what it says.
    theirs = [
        frame
        for frame in frames
        if not frame.filename.startswith("<") and not Path(frame.filename).is_relative_to(_OURS)
    ]
    last = (theirs or frames)[-1:]
    place = "".join(f" ({frame.filename}:{frame.lineno})" for frame in last)
    what = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    return _problem(f"importing {name!r} failed{place}:\n  {what}", "-v shows the traceback")


def _attribute(module: ModuleType, path: str) -> Any:
    found: Any = module
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as exc:
            raise _problem(f"module {module.__name__!r} has no {path!r}", _apps_in(module)) from exc
    return found


def _apps_in(module: ModuleType) -> str:
    names = [name for name, value in vars(module).items() if isinstance(value, App)]
    if not names:
        return f"no App in {module.__name__} either: make one with `app = nursery_queue.App()`"
    return "did you mean " + " or ".join(f"{module.__name__}:{name}" for name in names) + "?"


def _problem(message: str, hint: str) -> ProblemError:
    return ProblemError(message, hint=hint, code=USAGE)
