"""minijinja set up to compute and print what the Jinja2 environment of `transformers` does.

    CompiledTemplate(source).render(context) -> text

Source passes through `jinja_source.translate`. Floats of a request go in as `PythonFloat` (see `with_python_floats`),
because a float in minijinja forgets that 2.0 is not 2 and prints 1e-07 as 0.0000001.

What stays different: `%` does not format strings, values of different types compare without an error, a loop over a
computed None yields nothing, macros have neither `varargs` nor `kwargs`, `safe` text does not escape what is added to
it, floats that the template itself makes print without exponents and lose `.0` in `tojson`, and a list that the
template makes prints invisible characters as they are.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NoReturn

import minijinja
from minijinja import TemplateError

from dynamo.frontend.jinja_source import NOT_ITERABLE, UNDEFINED, WHITESPACE, translate
from dynamo.shared.errors import InternalError, InvalidRequest

Clock = Callable[[], datetime]

# About a second of rendering: far beyond a full context window, far below a stuck process.
FUEL = 20_000_000
# The template asks for what this environment lacks: no message can change that.
_OUR_FAULT = {"UnknownFilter", "UnknownFunction", "UnknownTest", "TemplateNotFound"}
_NAME = "chat_template"


class ChatTemplateError(Exception):
    """A template that cannot be compiled or found; the message says why."""


class PythonFloat:
    """A float that minijinja cannot convert: it prints as Python prints it and comes back to filters unchanged."""

    __slots__ = ("value",)

    def __init__(self, value: float | str) -> None:
        self.value = float(value)

    def __repr__(self) -> str:
        return repr(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __eq__(self, other: object) -> bool:
        return self.value == (other.value if isinstance(other, PythonFloat) else other)

    def __hash__(self) -> int:
        return hash(self.value)


def with_python_floats(value: Any) -> Any:
    """The same JSON value, copied where it holds a float."""
    kind = type(value)
    if kind is float:
        return PythonFloat(value)
    if kind is dict:
        changed = {name: new for name, old in value.items() if (new := with_python_floats(old)) is not old}
        return {**value, **changed} if changed else value
    if kind is list:
        items = [with_python_floats(item) for item in value]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else items
    return value


class CompiledTemplate:
    def __init__(self, source: str, now: Clock = datetime.now) -> None:
        self._environment = _environment(now)
        try:
            self._environment.add_template(_NAME, translate(source))
        except TemplateError as error:
            raise ChatTemplateError(f"the chat template does not compile: {_describe(error)}") from None

    def render(self, context: Mapping[str, Any]) -> str:
        """Raises InvalidRequest with the template's own words when it refuses what it is given."""
        try:
            return self._environment.render_template(_NAME, **context)
        except TemplateError as error:
            if error.kind in _OUR_FAULT:
                raise InternalError(f"The chat template of this model cannot be rendered: {_describe(error)}") from None
            raise _refusal(_describe(error)) from None
        except (TypeError, ValueError, AttributeError, LookupError, RecursionError) as error:  # from a Python object
            raise _refusal(str(error)) from None


def _refusal(detail: str) -> InvalidRequest:
    message = f"The chat template of this model cannot render these messages: {detail}"
    return InvalidRequest(message, param="messages")


def _describe(error: TemplateError) -> str:
    detail = "rendering takes too long" if error.kind == "OutOfFuel" else error.detail or error.kind
    return f"{detail} (line {error.line})" if error.line else detail


# --------------------------------------------------------------------------- what templates call


class _Undefined:
    """Stands for an undefined value where None would be taken for null."""

    def __str__(self) -> str:
        return ""


def _environment(now: Clock) -> minijinja.Environment:
    return minijinja.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        fuel=FUEL,
        filters=_FILTERS,
        tests={"python_float": lambda value: isinstance(value, PythonFloat)},
        globals={
            "raise_exception": _raise_exception,
            "strftime_now": lambda format: now().strftime(format),
            NOT_ITERABLE: _refuse_iteration,
            WHITESPACE: _WHITESPACE,
            UNDEFINED: _Undefined(),
        },
    )


_WHITESPACE = "".join(filter(str.isspace, map(chr, range(0x3001))))


def _raise_exception(message: object) -> NoReturn:
    raise InvalidRequest(str(message), param="messages")


def _refuse_iteration() -> NoReturn:
    raise TypeError("None is not iterable")


def _json_default(value: object) -> float:
    if isinstance(value, PythonFloat):
        return value.value
    raise TypeError(f"{type(value).__name__.strip('_')} is not JSON serializable")


_compact_json = json.JSONEncoder(ensure_ascii=False, default=_json_default).encode


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As in `transformers`: no HTML escapes, `json.dumps` defaults for the rest."""
    if not ensure_ascii and indent is None and separators is None and not sort_keys:
        return _compact_json(value)
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=_json_default,
    )


def _python_method(value: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """Only names that `jinja_source` lists get here; of those, no method of a str or list that it lets pass changes."""
    method = getattr(value, name, None) if isinstance(value, (str, list, tuple)) else None
    if method is None or (isinstance(value, list) and name not in ("index", "count")):
        raise TypeError(f"a template cannot call {name}() of a {type(value).__name__}")
    return method(*args, **kwargs)


def _int(value: Any, default: int = 0, base: int = 10) -> int:
    value = _number(value)
    try:
        return int(value, base) if isinstance(value, str) else int(value)
    except (TypeError, ValueError):
        return int(_float(value, default))


def _float(value: Any, default: float = 0.0) -> float:
    value = _number(value)
    try:
        return float(value)
    except (TypeError, ValueError):
        return default


def _number(value: Any) -> Any:
    if isinstance(value, _Undefined):
        raise TypeError("an undefined value is no number")
    return value.value if isinstance(value, PythonFloat) else value


def _replace(text: Any, old: str, new: str, count: int = -1) -> str:
    return _text(text).replace(_text(old), _text(new), count)


def _indent(text: object, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{type(text).__name__} has no lines to indent")
    margin = width if isinstance(width, str) else " " * width
    lines = (text + "\n").splitlines()
    head = margin + lines[0] if first else lines[0]
    tail = [margin + line if line or blank else line for line in lines[1:]]
    return "\n".join([head, *tail])


def _escape(text: Any) -> str:
    return html.escape(_text(text)).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


_FILTERS: dict[str, Callable[..., Any]] = {
    "tojson": _tojson,
    "python_method": _python_method,
    "int": _int,
    "float": _float,
    "replace": _replace,
    "indent": _indent,
    "e": _escape,
    "escape": _escape,
}
