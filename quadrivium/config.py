"""Frozen dataclasses to JSON and back. Unknown keys and wrong types are errors that name the key."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from quadrivium.errors import ConfigError

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A (nested) dataclass as plain JSON values."""
    return dataclasses.asdict(config)


def from_dict(cls: type[T], values: dict[str, Any], where: str) -> T:
    """Build dataclass ``cls`` from JSON values. ``where`` names the file in errors. Raises ConfigError."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: an object belongs here, not {values!r:.60}")
    hints = get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}; known are {', '.join(sorted(known))}")
    built = {key: _cast(hints[key], value, f"{where}: {key}") for key, value in values.items()}
    try:
        return cls(**built)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from None


def _cast(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if origin in (typing.Union, types.UnionType):
        options = [h for h in get_args(hint) if h is not type(None)]
        if value is None and len(options) < len(get_args(hint)):
            return None
        return _cast(options[0], value, where)
    if origin is typing.Literal:
        if value not in get_args(hint):
            raise ConfigError(f"{where} is {value!r}; it is one of {', '.join(map(repr, get_args(hint)))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} is {value!r:.60}; a list belongs here")
        kinds = get_args(hint)
        repeated = len(kinds) == 2 and kinds[1] is Ellipsis
        if not repeated and len(kinds) != len(value):
            raise ConfigError(f"{where} has {len(value)} entries; {len(kinds)} belong here")
        return tuple(_cast(kinds[0] if repeated else kinds[i], v, where) for i, v in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)):
        raise ConfigError(f"{where} is {value!r:.60}; a {hint.__name__} belongs here")
    return value
