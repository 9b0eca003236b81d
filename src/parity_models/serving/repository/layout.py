"""The folder of a repository: NAME/VERSION, each a bundle, as Triton lays out its models.

A model is a folder; its versions are folders in it that are named by whole numbers from 1 on.
Anything else is ignored. A model may have a `serve.toml`, its settings.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from parity_models.errors import OptionError, UserError
from parity_models.models.bundle import Bundle
from parity_models.options import OptionField, declared_in
from parity_models.scheduling.choice import choose, declared_options
from parity_models.serving.engines import EngineChoice
from parity_models.serving.options import ServeOptions
from parity_models.serving.served_model import VERSION

SETTINGS = "serve.toml"

_PER_MODEL = (
    "instances",
    "extra_instances",
    "max_batch",
    "max_queue",
    "deadline",
    "verify_every",
    "agreement",
)
"""Options of the server that a model's settings may override."""


def scan(folder: Path) -> dict[str, dict[str, Path]]:
    """Return the folders of all versions, oldest first, by model.

    Raises:
        UserError: The folder cannot be read.

    """
    try:
        models = sorted(each for each in folder.iterdir() if _is_shown(each))
    except OSError as error:
        raise UserError(f"the repository {folder} cannot be read: {error.strerror}") from error
    return {each.name: versions_in(each) for each in models}


def versions_in(folder: Path) -> dict[str, Path]:
    """Return the folders of a model's versions, oldest first; none if the folder is gone."""
    try:
        found = [each for each in folder.iterdir() if _is_version(each.name) and each.is_dir()]
    except OSError:
        return {}
    return {each.name: each for each in sorted(found, key=lambda each: int(each.name))}


def _is_shown(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdigit() and not name.startswith("0")


def options_of(
    folder: Path, bundle: Bundle, options: ServeOptions, version: str = VERSION
) -> ServeOptions:
    """Return the options by which a `version` of the model in `folder` is served: `options`, and
    the model's settings.

    Raises:
        UserError: The settings are wrong.

    """
    path = folder / SETTINGS
    given = _read(path)
    engine = options.engine
    try:
        of_engine = {each.name: each for each in declared_in(engine.kind.Options)}
        own = _taken(given, of_engine)
        values = engine.kind.options_of_model(engine.options, own, bundle, folder.name, version)
        engine = EngineChoice(engine.name, values)
        for key in ("instances", "extra_instances"):
            if key in given and engine.kind.fixed_roles(engine.settings, bundle) is not None:
                raise UserError(
                    f"leave {_key(key)} out with the engine {engine.name}: it has the instances "
                    "that it is given"
                )
        options = replace(options, name=folder.name, engine=engine)
        return _with(options, given, of_engine)
    except UserError as error:
        if not given:
            raise
        said = error.typed.replace("--", "") if isinstance(error, OptionError) else str(error)
        raise UserError(f"{path}: {said}") from error


def _read(path: Path) -> dict[str, Any]:
    """Read settings, by option; empty if there are none. Raises UserError."""
    try:
        given = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error
    return {key.replace("-", "_"): value for key, value in given.items()}


def _taken(given: Mapping[str, Any], declared: Mapping[str, OptionField]) -> dict[str, Any]:
    """Return those of the values whose options are declared, in the options' units."""
    return {key: _parsed(declared[key], given[key]) for key in given if key in declared}


def _parsed(field: OptionField, value: Any) -> Any:
    try:
        return field.parse(value)
    except UserError as error:
        raise UserError(f"{_key(field.name)} {error}") from None


def _with(
    options: ServeOptions, given: Mapping[str, Any], of_engine: Mapping[str, OptionField]
) -> ServeOptions:
    of_server = {each.name: each for each in declared_in(ServeOptions) if each.name in _PER_MODEL}
    changed = _taken(given, of_server)
    rest = {key: value for key, value in given.items() if key not in {*of_server, *of_engine}}
    policy = rest.pop("policy", None)
    if policy is None:
        for key in rest:
            raise UserError(
                f"{_key(key)} is no option of a model: there are "
                f"{', '.join(map(_key, (*_PER_MODEL, *of_engine)))}, and policy with its options"
            )
        return replace(options, **changed)
    if not isinstance(policy, str):
        raise UserError(f"policy is a name, not {policy!r}")
    fields = {each.name: each for each in declared_options(policy, rest.get("dispatch"))}
    for key in given.keys() & fields.keys() & of_engine.keys():
        raise UserError(
            f"{_key(key)} is an option of the engine {options.engine.name}, and of the policy "
            f"{policy} or its dispatch rule, too; rename that of the one that is your own"
        )
    values = {
        key: _parsed(fields[key], value) if key in fields else value for key, value in rest.items()
    }
    return replace(options, policy=choose(policy, values), **changed)


def _key(option: str) -> str:
    return option.replace("_", "-")
