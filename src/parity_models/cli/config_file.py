"""Options from a TOML file and from the environment, where the command line does not give them.

A command of the class that `configured_command_for` makes has `--config FILE`. The file's keys are
the command's flags without their dashes in front, and each flag has a variable, PARM_ and its name:
--max-batch, max-batch and PARM_MAX_BATCH. The command line goes before the environment, and that
before the file.
"""

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from parity_models.cli.extensions import (
    CONFIG,
    PREFIX,
    ExtensionCommand,
    FlagSource,
    spelling_in,
    values_of,
)
from parity_models.errors import UserError

_NOT_IN_FILES = ("--help", "--config", "--print-config")

ConfigPath = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="A TOML file with options, each under its flag's name without the dashes in front. "
        "Flags go before it, and so do variables: PARM_MAX_BATCH is that of --max-batch.",
        metavar="FILE",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class ConfigFile:
    """The keys of a TOML file, with their values."""

    path: Path | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    def typed(self, keys: Mapping[str, Any]) -> dict[str, Any]:
        """The values as they would be typed, by the names of parameters; `keys` are the parameters
        by their keys. Raises UserError for other keys, and values that no option takes."""
        for key, value in self.values.items():
            if key not in keys:
                near = get_close_matches(key, keys, 1)
                meant = f"did you mean {near[0]}?" if near else "parm serve --help lists the flags"
                table = f"; tables like [{key}] have no place in it" * isinstance(value, dict)
                raise UserError(f"{self.path} has an unknown key {key!r}{table}; {meant}")
        return {
            keys[key].name: self._typed(key, value, keys[key]) for key, value in self.values.items()
        }

    def _typed(self, key: str, value: Any, parameter: Any) -> Any:
        if isinstance(value, list):
            texts = [self._text(key, each) for each in value]
            return texts if parameter.multiple else ",".join(texts)
        if isinstance(value, dict):
            if "=" not in (parameter.metavar or ""):  # as NAME=AMOUNT has it
                raise UserError(f"{key} in {self.path} is a table; it takes one value: {key} = ...")
            return ",".join(f"{name}={self._text(key, each)}" for name, each in value.items())
        text = self._text(key, value)
        if isinstance(value, bool) != parameter.is_flag and not isinstance(value, str):
            kind = "true or false" if parameter.is_flag else "no truth value"
            raise UserError(f"{key} in {self.path} is {text}; it takes {kind}")
        return [text] if parameter.multiple else text

    def _text(self, key: str, value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str | int | float):
            return str(value)
        raise UserError(
            f"{key} in {self.path} is a {type(value).__name__}, which no option takes; give text, "
            "a number, true or false"
        )


def read_config(path: Path) -> ConfigFile:
    """The file's keys. Raises UserError if it cannot be read, or is no TOML."""
    try:
        return ConfigFile(path, tomllib.loads(path.read_text()))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error


def configured_command_for(**kinds: FlagSource) -> type[ExtensionCommand]:
    """Like `command_for`, for a command whose options may also come from a file and variables."""
    return type("Command", (_ConfiguredCommand,), {"kinds": kinds})


class _ConfiguredCommand(ExtensionCommand):
    """A command that reads a file and the environment before its flags."""

    def make_context(
        self, info_name: str | None, args: list[str], *more: Any, **settings: Any
    ) -> Any:
        """The context. Raises UserError for a file that cannot be read, or says what cannot be."""
        file = ConfigFile()
        given = values_of(args, "--config") or [os.environ.get(f"{PREFIX}_CONFIG", "")]
        if given[-1] and not settings.get("resilient_parsing"):
            file = read_config(Path(given[-1]))
        self.add_flags([*args, *self._named_elsewhere(file)])
        for parameter in self.params:
            if isinstance(parameter, TyperOption):
                parameter.show_envvar = False  # all have one, as the help of --config says
        settings["default_map"] = file.typed(_by_key(self.params)) | {CONFIG: str(file.path)}
        settings["auto_envvar_prefix"] = PREFIX
        try:
            return TyperCommand.make_context(self, info_name, args, *more, **settings)
        except typer.BadParameter as error:
            if error.ctx is not None and error.param is not None:
                error.param_hint = spelling_in(error.ctx)(error.param.name)
            raise

    def _named_elsewhere(self, file: ConfigFile) -> Sequence[str]:
        """What names extensions, in the file and the environment, as on the command line."""
        named = []
        for kind in self.kinds:
            for name in (file.values.get(kind), os.environ.get(f"{PREFIX}_{kind.upper()}")):
                if isinstance(name, str):
                    named.append(f"--{kind}={name}")
        return named


def _by_key(parameters: Sequence[Any]) -> dict[str, Any]:
    """The parameters that a file may give, by their keys."""
    return {
        flag.removeprefix("--"): parameter
        for parameter in parameters
        for flag in parameter.opts
        if flag.startswith("--") and flag not in _NOT_IN_FILES
    }
