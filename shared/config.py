"""Options of a process: one frozen dataclass per process is the only source of flags, `DYN_*` names, defaults and help.

    @dataclass(frozen=True, kw_only=True)
    class FrontendConfig(Config):
        http_port: int = option(8000, env="DYN_HTTP_PORT", help="Port to listen on.")

A value comes from the flag, else the variable, else the default; `provenance` says which. Flags are the field name with
dashes unless `flags` says otherwise; every flag is also accepted with underscores. A bool gets a `--no-` twin.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self


class ConfigError(Exception):
    """A value does not fit its option; the message names the flag and the variable."""


@dataclass(frozen=True)
class Option:
    env: tuple[str, ...]
    flags: tuple[str, ...]
    help: str
    choices: tuple[str, ...]
    parse: Callable[[str], Any] | None
    is_secret: bool
    deprecated: str | None
    minimum: float | None = None
    maximum: float | None = None


def option(
    default: Any,
    *,
    env: str | tuple[str, ...] = (),
    flags: tuple[str, ...] = (),
    help: str,
    choices: tuple[str, ...] = (),
    parse: Callable[[str], Any] | None = None,
    is_secret: bool = False,
    deprecated: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """A dataclass field that is also a flag and a variable; the first of several `env` that is set wins."""
    names = (env,) if isinstance(env, str) else env
    opt = Option(names, flags, help, choices, parse, is_secret, deprecated, minimum, maximum)
    return dataclasses.field(default=default, metadata={"option": opt})


def parse_bool(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in {"1", "true", "yes", "on"}:
        return True
    if lowered in {"0", "false", "no", "off", ""}:
        return False
    raise ValueError("expected one of true, false, 1, 0, yes, no, on, off")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of the per-process configs: `load` them, never build argparse by hand."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, wherever they came from. A subclass with rules of its own calls this first."""
        for name, (_field, opt, _kind) in self.options().items():
            value = getattr(self, name)
            if isinstance(value, int | float) and not _is_within(value, opt.minimum, opt.maximum):
                raise ConfigError(f"{spelling(name, opt)} must be {_range(opt.minimum, opt.maximum)}, not {value}")

    @classmethod
    def options(cls) -> dict[str, tuple[dataclasses.Field[Any], Option, Any]]:
        """Field name -> (field, option, type), in order of declaration."""
        hints = typing.get_type_hints(cls)
        return {
            f.name: (f, f.metadata["option"], hints[f.name]) for f in dataclasses.fields(cls) if "option" in f.metadata
        }

    @classmethod
    def load(
        cls, argv: Sequence[str], environ: Mapping[str, str] = os.environ, *, prog: str, description: str = ""
    ) -> tuple[Self, dict[str, str]]:
        """Parse flags over variables over defaults. Returns the config and, per field, where its value came from.

        Exits with status 2 and one line on stderr when a value does not fit (as argparse does).
        """
        parser = cls._parser(prog, description)
        given = vars(parser.parse_args(cls._normalised(argv)))
        values: dict[str, Any] = {}
        provenance: dict[str, str] = {}
        for name, (_field, opt, kind) in cls.options().items():
            provenance[name] = "default"
            if given.get(name) is not None:
                values[name], provenance[name] = given[name], "flag"
                continue
            for variable in opt.env:
                if (text := environ.get(variable)) is not None and text != "":
                    try:
                        values[name] = _convert(text, kind, opt)
                    except ValueError as error:
                        parser.error(f"{variable}={text!r}: {error}")
                    provenance[name] = variable
                    break
        try:
            return cls(**values), provenance
        except ConfigError as error:
            parser.error(str(error))

    @classmethod
    def _normalised(cls, argv: Sequence[str]) -> list[str]:
        """`--http_port=1` and `--http-port=1` are the same flag; values are left alone."""
        out = []
        for word in argv:
            if word.startswith("--"):
                flag, equals, value = word.partition("=")
                word = flag.replace("_", "-") + equals + value
            out.append(word)
        return out

    @classmethod
    def _parser(cls, prog: str, description: str) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(
            prog=prog, usage="%(prog)s [options]", description=description, allow_abbrev=False
        )
        for name, (field, opt, kind) in cls.options().items():
            flags = flags_of(name, opt)
            default = "unset" if field.default is None else field.default
            help = f"{opt.help} [{', '.join((*opt.env, f'default {default}'))}]".replace("%", "%%")
            if _plain_type(kind) is bool:
                parser.add_argument(*flags, dest=name, action=argparse.BooleanOptionalAction, default=None, help=help)
            else:
                parser.add_argument(
                    *flags,
                    dest=name,
                    type=_converter(kind, opt),
                    metavar="{" + ",".join(opt.choices) + "}" if opt.choices else name.upper(),
                    help=help,
                )
        return parser


def flags_of(name: str, opt: Option) -> tuple[str, ...]:
    return opt.flags or ("--" + name.replace("_", "-"),)


def spelling(name: str, opt: Option) -> str:
    """How a user may have given it, as in `--http-port (DYN_HTTP_PORT)`."""
    flag = flags_of(name, opt)[0]
    return f"{flag} ({', '.join(opt.env)})" if opt.env else flag


def _is_within(value: float, minimum: float | None, maximum: float | None) -> bool:
    is_bounded = minimum is not None or maximum is not None
    return not is_bounded or (
        math.isfinite(value) and (minimum is None or value >= minimum) and (maximum is None or value <= maximum)
    )


def _range(minimum: float | None, maximum: float | None) -> str:
    if minimum is not None and maximum is not None:
        return f"from {minimum} to {maximum}"
    return f"at least {minimum}" if minimum is not None else f"at most {maximum}"


def _plain_type(kind: Any) -> Any:
    """`int | None` -> int."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return next(arg for arg in typing.get_args(kind) if arg is not type(None))
    return kind


def _converter(kind: Any, opt: Option) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return _convert(text, kind, opt)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None

    return convert


def _convert(text: str, kind: Any, opt: Option) -> Any:
    plain = _plain_type(kind)
    if plain is not kind and text == "None":  # the anchor spells 'switched off' this way
        return None
    parse = opt.parse or (parse_bool if plain is bool else plain)
    value = parse(text)
    if opt.choices and value not in opt.choices:
        raise ValueError(f"expected one of {', '.join(opt.choices)}")
    return value
