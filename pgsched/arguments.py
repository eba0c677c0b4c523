"""A task's arguments: from the call to JSON when it is enqueued, and from JSON to the call when it runs.

pydantic validates them from the signature both times, since the code may have changed in between. What JSON cannot hold
is refused when it is enqueued: the text is read back and compared, so nothing is turned into something else in silence
(pydantic writes NaN as null, a set as a list, `{1: 2}` as `{"1": 2}`).
"""

from __future__ import annotations

import functools
import inspect
import json
import operator
import types
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import Annotated, Any, NotRequired, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, PlainSerializer, SecretBytes, SecretStr, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError
from typing_extensions import TypedDict

from pgsched.edges import Path, Result, find_results, without_results
from pgsched.errors import ArgumentsError, TaskError

_SECRETS: dict[Any, Any] = {
    SecretStr: Annotated[SecretStr, PlainSerializer(lambda v: v.get_secret_value(), when_used="json")],
    SecretBytes: Annotated[SecretBytes, PlainSerializer(lambda v: v.get_secret_value(), when_used="json")],
}


class Arguments:
    """The parameters of one task's function. Raises `TaskError` for a signature whose arguments cannot be stored by name."""

    def __init__(self, task: str, function: Callable[..., Any], secret: tuple[str, ...]) -> None:
        self.task = task
        self._function = function
        self._parameters = inspect.signature(function).parameters
        for parameter in self._parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise TaskError(
                    f'task "{task}": its parameter {parameter} takes any number of arguments; they are stored by name, so '
                    "name each, or take one list or dict"
                )
        for name in secret:
            if name not in self._parameters:
                raise TaskError(f'task "{task}": secret= names "{name}", and it has no such parameter')
        self._named_secret = secret
        self._less: dict[tuple[str, ...], Arguments] = {}
        self._positional = [
            p.name for p in self._parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        self._positional_only = [p.name for p in self._parameters.values() if p.kind == p.POSITIONAL_ONLY]

    @cached_property
    def _types(self) -> dict[str, Any]:
        """The annotation of each parameter; read late, so that a name may be defined below the task."""
        try:
            hints = get_type_hints(self._function, include_extras=True)
        except NameError as error:
            raise TaskError(f'task "{self.task}": an annotation cannot be resolved: {error}') from error
        return {name: hints.get(name, Any) for name in self._parameters}

    @cached_property
    def secret(self) -> list[str]:
        """The parameters that are shown masked: those named, and those typed as a secret of pydantic's."""
        typed = [name for name, hint in self._types.items() if _reveal(hint)[1]]
        return sorted({*self._named_secret, *typed})

    @cached_property
    def _required(self) -> bool:
        return any(p.default is inspect.Parameter.empty for p in self._parameters.values())

    @cached_property
    def _adapter(self) -> TypeAdapter[dict[str, Any]]:
        fields = {
            name: hint if self._parameters[name].default is inspect.Parameter.empty else NotRequired[hint]
            for name, (hint, _) in ((n, _reveal(h)) for n, h in self._types.items())
        }
        model = TypedDict(f"{self.task} arguments", fields)  # type: ignore[misc]
        model.__pydantic_config__ = ConfigDict(extra="forbid", hide_input_in_errors=True)  # type: ignore[attr-defined]
        try:
            return TypeAdapter[dict[str, Any]](model)  # type: ignore[arg-type]
        except Exception as error:
            raise TaskError(f'task "{self.task}": pydantic has no schema for its parameters: {error}') from error

    def prepare(self) -> None:
        """Resolve the annotations now. Raises `TaskError` where one cannot be validated."""
        _ = self._adapter, self.secret

    def dump(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """The arguments of a call as JSON. Raises `ArgumentsError` that names each argument that does not fit."""
        given = self._by_name(args, kwargs)
        try:
            values = self._adapter.validate_python(given)
        except ValidationError as error:
            raise ArgumentsError(self._explain(error, given)) from error
        try:
            text = self._adapter.dump_json(values)
            if b"\\u0000" not in text and self._adapter.validate_json(text) == values:
                return text.decode()
        except (ValidationError, PydanticSerializationError, UnicodeEncodeError):
            pass
        self._name_what_json_cannot_hold(values)
        return self._adapter.dump_json(values).decode()

    def dump_with_results(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, list[tuple[Path, Result]]]:
        """`dump` of arguments some of which take results of other jobs, and where each of those goes.

        A parameter that takes one, or has one within it, is validated when the job runs.
        """
        given = self._by_name(args, kwargs)
        taking = [found for name, value in given.items() for found in find_results(value, (name,))]
        if not taking:
            return self.dump((), given), []
        later = {str(path[0]): without_results(given[str(path[0])]) for path, _ in taking}
        if unknown := later.keys() - self._parameters.keys():
            known = ", ".join(self._parameters) or "none"
            raise ArgumentsError(f'task "{self.task}": {", ".join(unknown)} is no parameter (they are: {known})')
        text = self._leaving(tuple(later)).dump((), {n: v for n, v in given.items() if n not in later})
        try:
            # (Read back: what JSON would make something else of, such as a key that is a number, is refused.)
            plain = json.dumps(later, allow_nan=False, ensure_ascii=False)
            plain.encode()
            is_same = json.loads(plain) == later and not has_nul(later)
        except (TypeError, ValueError, RecursionError):
            is_same = False
        if not is_same:
            raise ArgumentsError(
                f'task "{self.task}": {", ".join(later)}: beside a result only what JSON can hold as it is: texts without NUL, '
                "numbers, booleans, null, lists, and dicts with texts as keys"
            )
        return json.dumps(json.loads(text) | later), taking

    def _leaving(self, names: tuple[str, ...]) -> Arguments:
        """The same without these parameters."""
        if (less := self._less.get(names)) is None:
            less = Arguments(self.task, self._function, self._named_secret)
            less._parameters = types.MappingProxyType({n: p for n, p in self._parameters.items() if n not in names})
            self._less[names] = less
        return less

    def load(self, text: bytes, taken: Collection[str] = ()) -> tuple[list[Any], dict[str, Any]]:
        """Positional and named arguments for the function; `taken`: those that are results of other jobs.

        Raises `ArgumentsError` when they do not fit.
        """
        if text == b"{}" and not self._required:
            return [], {}
        try:
            values = self._adapter.validator.validate_json(text)
        except ValidationError as error:
            of_results = all(item["loc"] and item["loc"][0] in taken for item in error.errors(include_input=False))
            whence = (
                "as another job returned it"
                if of_results
                else "as stored when the job was enqueued: has the code changed since?"
            )
            raise ArgumentsError(f"{self._explain(error, {})} ({whence})") from error
        if not self._positional_only:
            return [], values
        return [values.pop(name) for name in self._positional_only if name in values], values

    def _by_name(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        if not args:
            return kwargs
        named = dict(zip(self._positional, args, strict=False))
        if len(args) > len(self._positional) or not named.keys().isdisjoint(kwargs):
            try:
                inspect.signature(self._function).bind(*args, **kwargs)
            except TypeError as error:
                raise ArgumentsError(f'task "{self.task}": {error}') from None
        return named | kwargs

    def _explain(self, error: ValidationError, given: Mapping[str, Any]) -> str:
        """Each argument that does not fit, with its value unless it is secret."""
        problems = []
        for item in error.errors(include_url=False, include_input=True):
            name = str(item["loc"][0]) if item["loc"] else "arguments"
            where = ".".join(str(part) for part in item["loc"])
            if item["type"] == "missing" and len(item["loc"]) == 1:
                problems.append(f"{where} is missing")
            elif item["type"] == "extra_forbidden" and len(item["loc"]) == 1:
                problems.append(f"{where} is no parameter (they are: {', '.join(self._parameters) or 'none'})")
            else:
                value = "a secret" if name in self.secret else short(item["input"])
                problems.append(f"{where} is {value}: {item['msg'][:1].lower()}{item['msg'][1:]}")
        return f'task "{self.task}": ' + "; ".join(problems)

    def _name_what_json_cannot_hold(self, values: dict[str, Any]) -> None:
        """Raise for the first argument that does not come back from JSON as it went in."""
        for name, value in values.items():
            adapter: TypeAdapter[Any] = TypeAdapter(_reveal(self._types[name])[0])
            shown = "a secret" if name in self.secret else short(value)
            try:
                text = adapter.dump_json(value)
            except (PydanticSerializationError, UnicodeEncodeError) as error:
                raise ArgumentsError(f'task "{self.task}": {name} is {shown}: JSON cannot hold it ({error})') from error
            if has_nul(json.loads(text)):
                raise ArgumentsError(
                    f'task "{self.task}": {name} is {shown}: it has a NUL character, which Postgres cannot store'
                )
            try:
                back = adapter.validate_json(text)
            except ValidationError:
                back = _DIFFERENT
            if back is _DIFFERENT or back != value:
                raise ArgumentsError(
                    f'task "{self.task}": {name} is {shown}: JSON would make {short(text.decode())} of it, which is not '
                    "the same; give the parameter a type that says how to read it back, or pass another value"
                )


_DIFFERENT = object()


def _reveal(hint: Any) -> tuple[Any, bool]:
    """The annotation with its secrets written in the clear, and whether there are any (pydantic would write stars)."""
    if hint in _SECRETS if isinstance(hint, type) else False:
        return _SECRETS[hint], True
    parts = get_args(hint)
    origin = get_origin(hint)
    if not parts or origin is None:
        return hint, False
    if origin is Annotated:
        inner, found = _reveal(parts[0])
        return (Annotated[(inner, *parts[1:])], True) if found else (hint, False)
    revealed = [_reveal(part) if not isinstance(part, list) else (part, False) for part in parts]
    if not any(found for _, found in revealed):
        return hint, False
    new = tuple(part for part, _ in revealed)
    return functools.reduce(operator.or_, new) if origin in (Union, types.UnionType) else origin[new], True


def has_nul(value: Any) -> bool:
    """Whether a text in this JSON value has a character that Postgres cannot store."""
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(has_nul(k) or has_nul(v) for k, v in value.items())
    return isinstance(value, list) and any(map(has_nul, value))


def short(value: Any) -> str:
    """A value for an error message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}... ({len(text)} characters)"
