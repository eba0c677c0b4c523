"""What a task's handler returns: from the value to JSON when it ends, and from JSON to the value for who waits.

pydantic does both by the return annotation, where there is one. As with arguments, nothing is turned into something else in
silence: the text is read back and compared. None is always taken, and nothing is stored for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from pgsched.arguments import has_nul, short
from pgsched.errors import ResultError, TaskError

_MOST_BYTES = 16 * 1024 * 1024
"""What can be sent at all: jsonb, which ends at 256 MB, may need six bytes for one of text."""


class Returned:
    """What one task's function returns."""

    def __init__(self, task: str, function: Callable[..., Any]) -> None:
        self._task = task
        self._function = function

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        """Read late, so that a name may be defined below the task."""
        try:
            hint = get_type_hints(self._function, include_extras=True).get("return", Any)
        except NameError as error:
            raise TaskError(f'task "{self._task}": an annotation cannot be resolved: {error}') from error
        try:
            return TypeAdapter(hint)
        except Exception as error:
            raise TaskError(
                f'task "{self._task}": pydantic has no schema for what it returns ({hint!r}): annotate what JSON can hold, or '
                f"leave the annotation out: {error}"
            ) from error

    def prepare(self) -> None:
        """Resolve the annotation now. Raises `TaskError` where pydantic knows nothing of it."""
        _ = self._adapter

    def dump(self, value: Any) -> str:
        """What the handler returned, as the annotation takes it, in JSON. Raises `ResultError` where `load` would make something
        else of it."""
        if value is None:
            return "null"
        try:
            valid = self._adapter.validate_python(value)
        except ValidationError as error:
            raise self._refused(value, f"it does not fit the annotation ({_first(error)})") from error
        try:
            text = self._adapter.dump_json(valid)
        except (PydanticSerializationError, UnicodeEncodeError, ValueError) as error:
            raise self._refused(value, f"JSON cannot hold it ({error})") from error
        if len(text) > _MOST_BYTES:
            raise self._refused(value, f"its JSON takes {len(text)} bytes, and at most {_MOST_BYTES} can be sent")
        if b"\\u0000" in text and has_nul(json.loads(text)):
            raise self._refused(value, "it has a NUL character, which Postgres cannot store")
        try:
            same = bool(self._adapter.validate_json(text) == valid)
        except Exception:  # (also what a foreign type's comparison raises)
            same = False
        if not same:
            raise self._refused(value, f"JSON would make {short(text.decode())} of it, which is not the same")
        return text.decode()

    def load(self, text: str | None) -> Any:
        """What the handler returned. Raises `ResultError` when it does not fit the annotation."""
        if text is None or text == "null":
            return None
        try:
            return self._adapter.validate_json(text)
        except ValidationError as error:
            raise ResultError(
                f'task "{self._task}": its stored result {short(text)} does not fit the annotation ({_first(error)}): has '
                "the code changed since? Job.info() has it as it is stored"
            ) from error

    def _refused(self, value: Any, why: str) -> ResultError:
        return ResultError(
            f'task "{self._task}" returned the {type(value).__name__} {short(value)}: {why}; annotate a return type that says '
            "how to read it back, or return another value"
        )


def _first(error: ValidationError) -> str:
    """Where the first value is that does not fit, and why."""
    first = error.errors(include_url=False, include_input=False)[0]
    return ".".join(str(part) for part in first["loc"]) + (": " if first["loc"] else "") + first["msg"]
