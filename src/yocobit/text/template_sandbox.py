"""The sandbox of chat templates: Jinja with transformers' additions, in bounded memory and steps.

A rendering has a limit of steps (iterations, calls, filters, operators) and of characters and list
items that all its operations make, counted before they are made where one can multiply. The
caller limits the time: sorting values within these limits is not counted.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, NoReturn, cast

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_STEPS = 1 << 20
_CALL_STEPS = 8  # of a call: a macro takes that much longer than an iteration
MAX_CHARACTERS = 1 << 25
SHORT_STEPS, SHORT_CHARACTERS = 1 << 11, 1 << 15  # of a short conversation: about a millisecond
_SEARCHED_PER_STEP = 1 << 9  # characters or items
_MAX_WIDTH = 1 << 16  # of a padding
_MAX_BITS = 1 << 14  # of an integer
# In formats: widths above 999, and widths that are arguments.
_WIDTHS = re.compile(r"%[^a-zA-Z%]*(\d{4}|\*)|\{[^{}]*(:[^{}]*\d{4}|\{)")

# Methods whose results can be far longer than their arguments.
_FORBIDDEN_METHODS = {"expandtabs", "translate", "to_bytes"}
_PADDING_METHODS = {"center", "ljust", "rjust", "zfill"}
_PADDING_FILTERS = {"center", "indent", "batch", "slice"}
# Filters that pass values on. The others convert them to strings.
_PASSING = {
    "abs",
    "attr",
    "batch",
    "count",
    "d",
    "default",
    "dictsort",
    "first",
    "float",
    "groupby",
    "int",
    "items",
    "last",
    "length",
    "list",
    "map",
    "max",
    "min",
    "random",
    "reject",
    "rejectattr",
    "reverse",
    "round",
    "select",
    "selectattr",
    "slice",
    "sort",
    "sum",
    "unique",
}


class _Budget:
    """The steps and characters that a rendering has left."""

    def __init__(self, steps: int, characters: int) -> None:
        self.steps, self.characters = steps, characters

    def step(self, n: int = 1) -> None:
        self.steps -= n
        if self.steps < 0:
            raise TemplateError(f"more than {MAX_STEPS:,} steps")

    def spend(self, n: int) -> None:
        self.characters -= n
        if self.characters < 0:
            raise TemplateError("more text than a prompt can have")


_budget: ContextVar[_Budget] = ContextVar("_budget")
_is_short: ContextVar[bool] = ContextVar("_is_short", default=False)


@contextmanager
def limits(more_characters: int = 0) -> Iterator[None]:
    """Compile or render templates within new limits."""
    budget = _Budget(MAX_STEPS, MAX_CHARACTERS + more_characters)
    if _is_short.get():
        budget = _Budget(SHORT_STEPS, SHORT_CHARACTERS)
    token = _budget.set(budget)
    try:
        yield
    finally:
        _budget.reset(token)


@contextmanager
def short_limits() -> Iterator[None]:
    """Reduce `limits` to SHORT_STEPS and SHORT_CHARACTERS."""
    token = _is_short.set(True)
    try:
        yield
    finally:
        _is_short.reset(token)


def counted(value: Any) -> Any:
    """Return a value that an operation made, its characters or items counted."""
    if isinstance(value, str | bytes | list | tuple | dict):
        _budget.get().spend(len(value))
    elif isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise TemplateError(f"an integer of more than {_MAX_BITS:,} bits")
    return value


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one template."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # would evaluate constant expressions while compiling
            extensions=[_Generation, loopcontrols],
            finalize=_measured,
        )
        self.filters["tojson"] = _to_json
        self.filters.update({name: _limited(name, each) for name, each in self.filters.items()})
        self.filters |= {"_iterated": _iterated, "_concatenated": _concatenated}
        self.filters["_searched"] = _searched
        self.globals |= {
            "raise_exception": _reject,
            "strftime_now": lambda form: datetime.datetime.now().strftime(form),
            "namespace": _Namespace,
        }
        del self.globals["lipsum"]

    concat = staticmethod(lambda pieces: _joined("", pieces))  # type: ignore[assignment]

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        return super()._generate(_Limiter().visit(source), *args, **options)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _budget.get().step()
        if operator == "%" and isinstance(left, str):
            _check_format(left, left.count("%"), right)
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            _budget.get().spend(len(left) + len(right))
        elif operator == "*":
            _check_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * max(0, right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, /, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        _budget.get().step(_CALL_STEPS)
        method = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str | bytes):
            _searched(owner)
        if isinstance(owner, str | bytes | int | float):
            if name in _FORBIDDEN_METHODS:
                raise SecurityError(f"{name} is not available in chat templates")
            if name in _PADDING_METHODS:
                _check_widths([*args, *options.values()])
            if name == "join" and isinstance(owner, str) and args:
                return _joined(owner, args[0])
            if name == "replace" and isinstance(owner, str):
                _check_replace(owner, *args)
            if name in ("format", "format_map") and isinstance(owner, str):
                _check_format(owner, owner.count("{"), (*args, *options.values()))
        return counted(super().call(context, function, *args, **options))


class _Generation(Extension):
    """{% generation %}: marks what transformers learns from; without a meaning here."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Macro) -> Any:
        return caller()


class _Limiter(NodeTransformer):
    """Makes loops, `~` and comparisons count."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filter(cast(nodes.Expr, node.iter), "_iterated")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "_concatenated")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        for operand in node.ops:
            operand.expr = _filter(operand.expr, "_searched")
        return node


class _Namespace(Namespace):
    """A namespace without underscore names, as in transformers: they could reach Python itself."""

    def __init__(*args: Any, **attributes: Any) -> None:
        self, *given = args
        fields = dict(*given, **attributes)
        for name in fields:
            _check_name(name)
        Namespace.__init__(self, fields)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have the name {name!r}")


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _limited(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that counts what it makes."""
    n_before = int(hasattr(function, "jinja_pass_arg"))  # the environment or a context

    @wraps(function)
    def limited(*args: Any, **options: Any) -> Any:
        _budget.get().step()
        value, *others = args[n_before:] or [None]
        if name in _PADDING_FILTERS:
            _check_widths([*others, *options.values()])
        if name not in _PASSING:
            for each in args[n_before:]:
                _measured(each)
        if name == "join":
            value = list(_iterated(value or ()))
            separator = others[0] if others else options.get("d", "")
            _budget.get().spend(sum(len(_text(each)) + len(_text(separator)) for each in value))
            args = (*args[:n_before], value, *others)
        elif name == "replace":
            new = options.get("new", others[1] if len(others) > 1 else "")
            _check_replace(_text(value), others[0] if others else options.get("old", ""), new)
        elif name == "indent":
            width = others[0] if others else options.get("width", 4)
            n = width if isinstance(width, int) else len(_text(width))
            _budget.get().spend(n * _text(value).count("\n"))
        elif name == "format":
            _check_format(_text(value), _text(value).count("%"), (*others, *options.values()))
        elif name == "wordwrap":
            _budget.get().spend(len(_text(value)) * len(_text(options.get("wrapstring", ""))))
        elif name == "sum" and not isinstance(options.get("start", 0), int | float):
            raise TemplateError("sum adds numbers only")
        return counted(function(*args, **options))

    return limited


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON with transformers' options; Jinja's own filter would escape it for HTML."""
    if indent is not None and len(str(indent)) > 2:
        raise TemplateError("tojson: indent must have at most two digits or characters")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _reject(message: Any) -> NoReturn:
    raise TemplateError(_text(message))


def _iterated(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _budget.get().step()
        yield value


def _concatenated(values: list[Any]) -> str:
    return _joined("", values)


def _joined(separator: str, values: Iterable[Any]) -> str:
    texts = [_text(value) for value in _iterated(values)]
    _budget.get().spend(sum(map(len, texts)) + len(separator) * len(texts))
    return separator.join(texts)


def _searched(value: Any) -> Any:
    """Return a value, the time to search it counted."""
    if isinstance(value, str | bytes | list | tuple):
        _budget.get().step(len(value) // _SEARCHED_PER_STEP)
    return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(_measured(value))


def _measured(value: Any) -> Any:
    """Return a value; TemplateError if its text would be too long: nested lists can be shared."""
    if isinstance(value, list | tuple | dict | set):
        characters, n_values = _budget.get().characters, MAX_STEPS
        stack: list[Any] = [value]
        while stack:
            each = stack.pop()
            n_values -= 1
            characters -= len(each) if isinstance(each, str) else 1
            if characters < 0 or n_values < 0:
                raise TemplateError("more text than a prompt can have")
            if isinstance(each, Mapping):
                stack += [*each, *each.values()]
            elif isinstance(each, list | tuple | set):
                stack += each
    return value


def _check_widths(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > _MAX_WIDTH:
            raise TemplateError(f"arguments must be at most {_MAX_WIDTH:,} but one is larger")


def _check_format(form: str, n_fields: int, values: Any) -> None:
    """Count the characters of a formatted string before it is made."""
    if _WIDTHS.search(form):
        raise TemplateError("a format must have no width above 999")
    values = values if isinstance(values, tuple) else (values,)
    longest = max((len(_text(value)) for value in values), default=0)
    _budget.get().spend(len(form) + n_fields * (longest + 999))


def _check_replace(text: str, old: Any = "", new: Any = "", *_: Any) -> None:
    _budget.get().spend(len(text) + text.count(_text(old)) * len(_text(new)))


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
        return
    for sequence, n in ((left, right), (right, left)):
        if hasattr(sequence, "__len__") and isinstance(n, int):
            _budget.get().spend(len(sequence) * max(0, n))


def _check_bits(n: int) -> None:
    if n > _MAX_BITS:
        raise TemplateError(f"an integer of more than {_MAX_BITS:,} bits")
