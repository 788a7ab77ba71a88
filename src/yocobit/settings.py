"""Settings: frozen dataclasses that validate their fields on construction.

The annotation of a field is its rule: a type, a Literal, or a number with bounds such as
`Annotated[int, Meta(ge=1)]`. An error names the field, the rule and the value in one line.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
from collections.abc import Collection, Mapping
from typing import (
    Annotated,
    Any,
    Literal,
    SupportsIndex,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
from msgspec import Meta

from yocobit.errors import ConfigError, shown

Count = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]  # 0 included
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
PositiveFraction = Annotated[float, Meta(gt=0, le=1)]

_S = TypeVar("_S", bound="Settings")

_WORDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    type(None): "absent",
}


def whole_number(name: str, value: Any, least: int, most: int) -> int:
    """Return an argument as an int; ConfigError unless it is an integer from `least` to `most`."""
    if not isinstance(value, SupportsIndex) or isinstance(value, bool):
        raise ConfigError(f"{name} must be an integer but is {shown(value, 40)}")
    number = operator.index(value)
    if not least <= number <= most:
        rule = f"at least {least}" if number < least else f"at most {most}"
        raise ConfigError(f"{name} must be {rule} but is {shown(number, 40)}")
    return number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Base class of settings; a subclass with more rules calls this __post_init__ first."""

    def __post_init__(self) -> None:
        for name, kind in _annotations(type(self), with_bounds=True).items():
            value = getattr(self, name)
            if not _is_utf8(value):  # a path of another encoding: JSON could not hold it
                raise ConfigError(f"{name} must be UTF-8 but is {shown(value)}")
            try:
                # Converts lists to tuples, and integers to floats where the field is a float.
                converted = msgspec.convert(value, kind)
            except msgspec.ValidationError:
                rule = _rule(value, _annotations(type(self), with_bounds=False)[name], kind)
                raise ConfigError(f"{name} must be {rule} but is {shown(value)}") from None
            if not _is_finite(converted):
                rule = "a finite number of at most 64 bits"
                raise ConfigError(f"{name} must be {rule} but is {shown(value)}")
            object.__setattr__(self, name, converted)

    def require(self, holds: bool, name: str, rule: str) -> None:
        """Raise ConfigError with the rule and the value of the field unless the rule holds."""
        if not holds:
            raise ConfigError(f"{name} {rule} but is {shown(getattr(self, name))}")

    @classmethod
    def from_dict(cls: type[_S], fields: Mapping[str, Any], source: str = "config") -> _S:
        """Create settings from JSON or TOML values; ConfigError names the bad key in `source`."""
        known = {field.name: field for field in dataclasses.fields(cls)}
        for name in fields:
            if name not in known:
                raise ConfigError(
                    f"{source}: unknown key {shown(name, 80)}; {_remedy(name, known)}"
                )
        for name, field in known.items():
            defaults = (field.default, field.default_factory)
            if name not in fields and all(each is dataclasses.MISSING for each in defaults):
                raise ConfigError(f"{source}: key '{name}' is missing")
        try:
            return cls(**fields)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None


def _remedy(name: str, known: Collection[str]) -> str:
    """Return the known key that resembles an unknown one, or all of them."""
    # Of a long name the middle is cut out; it resembles no key.
    if close := difflib.get_close_matches(shown(name, 80)[1:-1], known, n=1):
        return f"did you mean {close[0]}?"
    return f"known keys: {', '.join(known)}"


def _is_utf8(value: object) -> bool:
    """Whether UTF-8 can encode each string of a value."""
    if isinstance(value, tuple | list):
        return all(map(_is_utf8, value))
    if not isinstance(value, str) or value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_finite(value: object) -> bool:
    """Whether each number of a value is finite and each integer has at most 64 bits."""
    if isinstance(value, tuple):
        return all(map(_is_finite, value))
    if isinstance(value, int):
        return -(1 << 63) <= value < 1 << 64
    return not isinstance(value, float) or math.isfinite(value)


# The annotations by class: get_type_hints takes 50 us, and each request has settings.
_KNOWN: dict[tuple[type, bool], dict[str, Any]] = {}


def _annotations(cls: type, with_bounds: bool) -> dict[str, Any]:
    if (found := _KNOWN.get((cls, with_bounds))) is None:
        found = _KNOWN[cls, with_bounds] = get_type_hints(cls, include_extras=with_bounds)
    return found


def _rule(value: Any, kind: Any, bounded: Any) -> str:
    """Return the violated rule: the type of the field, or its bounds."""
    try:
        value = msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return _describe(kind)
    parts = (bounded, *get_args(bounded))
    bounds = next(meta for part in parts for meta in getattr(part, "__metadata__", ()))
    limits = {"at least": bounds.ge, "above": bounds.gt, "at most": bounds.le, "below": bounds.lt}
    given = {words: limit for words, limit in limits.items() if limit is not None}
    if bounds.multiple_of and value > 0 and value % bounds.multiple_of:
        return f"a multiple of {bounds.multiple_of}"
    if given.keys() == {"at least", "at most"}:
        return f"between {bounds.ge} and {bounds.le}"
    return " and ".join(f"{words} {limit:g}" for words, limit in given.items())


def _describe(kind: Any) -> str:
    """Describe the valid values of a type in words."""
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(repr(argument) for argument in arguments)
    if get_origin(kind) is tuple:
        return "a list, each item " + _describe(arguments[0])
    if arguments:
        return " or ".join(_describe(argument) for argument in arguments)
    if dataclasses.is_dataclass(kind):
        return "a table"
    return _WORDS.get(kind) or str(kind.__name__)
