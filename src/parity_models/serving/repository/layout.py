"""What is in a repository's folder: NAME/VERSION, each a bundle, as Triton lays out its models.

A model is a folder; its versions are folders in it that are named by whole numbers, from 1 on.
Anything else is left alone. A model may bring `serve.toml`, which says how it is served.
"""

import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from parity_models.errors import UserError
from parity_models.models.bundle import Bundle
from parity_models.options import OptionField, declared_in
from parity_models.options import options_of as declared_options_of
from parity_models.scheduling.choice import choose, declared_options
from parity_models.serving.engines import EngineChoice
from parity_models.serving.options import ServeOptions
from parity_models.serving.served_model import VERSION

SETTINGS = "serve.toml"

_PER_MODEL = (
    "instances",
    "parity_instances",
    "max_batch",
    "max_queue",
    "deadline",
    "min_ready",
    "verify_every",
    "agreement",
)
"""Options of the server that a model may override."""

OptionsFor = Callable[[Bundle], ServeOptions]
"""The options by which a bundle is served if its model has no settings. Raises UserError if it
cannot be served so."""


def scan(folder: Path) -> dict[str, dict[str, Path]]:
    """The folders of all versions, oldest first, by their models. Raises UserError."""
    try:
        models = sorted(each for each in folder.iterdir() if _is_shown(each))
    except OSError as error:
        raise UserError(f"the repository {folder} cannot be read: {error.strerror}") from error
    return {each.name: versions_in(each) for each in models}


def versions_in(folder: Path) -> dict[str, Path]:
    """The folders of a model's versions, oldest first; none if the folder is gone."""
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
    folder: Path,
    bundle: Bundle,
    options_for: OptionsFor,
    *,
    version: str = VERSION,
    shares: bool = False,
) -> ServeOptions:
    """The options by which a `version` of the model in `folder` is served: its settings, or else
    those of all. If it `shares` instances with others, its settings cannot say how many; these
    options then have the least.
    Raises UserError for settings that cannot be.
    """
    options = replace(options_for(bundle), name=folder.name)
    path = folder / SETTINGS
    given = _read(path)
    engine = options.engine
    try:
        declared = {each.name: each for each in declared_options_of(engine.kind.Options)}
        own = _taken(given, declared)
        values = engine.kind.options_of_model(engine.options, own, bundle, folder.name, version)
        options = replace(options, engine=EngineChoice(engine.name, values))
        _check_instances(given, options.engine, bundle, shares=shares)
        options = _with(options, given, declared)
        if shares:
            options = replace(options, instances=options.min_ready, parity_instances=0)
        return options
    except UserError as error:
        if not given:
            raise
        raise UserError(f"{path}: {error.spelled(_key)}") from error


def _read(path: Path) -> dict[str, Any]:
    """What settings say, by the names of options; nothing if there are none. Raises UserError."""
    try:
        given = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error
    return {key.replace("-", "_"): value for key, value in given.items()}


def _check_instances(
    given: Mapping[str, Any], engine: EngineChoice, bundle: Bundle, *, shares: bool
) -> None:
    for key in given:
        if key not in ("instances", "parity_instances"):
            continue
        if shares:
            raise UserError(
                f"{_key(key)} is not for a model that shares instances with others; leave it out, "
                "and reserve some with --reserve NAME=N"
            )
        if engine.kind.fixed_roles(engine.settings, bundle) is not None:
            raise UserError(
                f"leave {_key(key)} out with the engine {engine.name}: it has the instances that "
                "it is given"
            )


def _taken(given: Mapping[str, Any], declared: Mapping[str, OptionField]) -> dict[str, Any]:
    """Those of the options that are declared, in their own units."""
    return {
        key: declared[key].convert(declared[key].from_typed(value, _key), _key)
        for key, value in given.items()
        if key in declared
    }


def _with(
    options: ServeOptions, given: Mapping[str, Any], of_engine: Collection[str]
) -> ServeOptions:
    declared = {each.name: each for each in declared_in(ServeOptions) if each.name in _PER_MODEL}
    changed = _taken(given, declared)
    of_policy = {
        key: value for key, value in given.items() if key not in declared and key not in of_engine
    }
    policy = of_policy.pop("policy", None)
    if policy is None:
        for key in of_policy:
            raise UserError(
                f"{_key(key)} is no option of a model: there are "
                f"{', '.join(map(_key, (*_PER_MODEL, *of_engine)))}, and policy with its options"
            )
        return replace(options, **changed)
    if not isinstance(policy, str):
        raise UserError(f"policy is a name, not {policy!r}")
    fields = {each.name: each for each in declared_options(policy, of_policy.get("dispatch"))}
    for key in given:
        if key in fields and key in of_engine:
            raise UserError(
                f"{_key(key)} is an option of the engine {options.engine.name}, and of the policy "
                f"{policy} or its dispatch rule, too; rename that of the one that is your own"
            )
    values = {
        key: fields[key].from_typed(value, _key) if key in fields else value
        for key, value in of_policy.items()
    }
    return replace(options, policy=choose(policy, values, _key), **changed)


def _key(option: str) -> str:
    return option.replace("_", "-")
