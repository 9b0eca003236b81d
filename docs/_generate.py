"""Pages made when the site is built: the command line from `parm`, the API from docstrings.

A MkDocs hook. Nothing is written into docs/: the pages exist in the built site alone.
"""

import ast
import html
import inspect
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import parity_models
from parity_models.cli.main import command
from parity_models.codes import DECODERS, ENCODERS
from parity_models.options import OptionField, declared_in
from parity_models.scheduling.policies import POLICIES
from parity_models.serving.options import ENGINES
from parity_models.training.networks import NETWORKS

SOURCE = Path(__file__).parent.parent / "src" / "parity_models"

API = {
    "": [],
    "codes": [],
    "scheduling": ["core", "actions", "work", "port", "policies.policy", "choice"],
    "bundle": ["bundle", "onnx_model"],
    "tensors": ["queries", "signature"],
    "trust": ["envelope", "gate"],
    "tasks": ["metrics"],
    "training": [],
    "evaluation": [],
    "serving": ["server", "options", "frontend", "engine"],
    "simulation": ["simulation", "emulation"],
    "load": ["spec", "result"],
    "errors": [],
}
"""The public packages, each with the modules whose public names are shown as well."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Enter the pages into the navigation."""
    commands = [{f"parm {name}": f"reference/command-line/{name}.md"} for name, _ in _commands()]
    packages = [{_full(name): f"reference/api/{_full(name)}.md"} for name in API]
    assert config.nav is not None
    _section(config.nav, "Command line").extend(commands)
    _section(config.nav, "Python API").extend(packages)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Make the pages."""
    pages = {"reference/command-line/index.md": _command_index()}
    for name, entry in _commands():
        pages[f"reference/command-line/{name}.md"] = "\n".join(_command_page(entry, f"parm {name}"))
    pages["reference/options.md"] = "\n".join(_options())
    pages["reference/api/index.md"] = _api_index()
    for name in API:
        pages[f"reference/api/{_full(name)}.md"] = "\n".join(_api_page(name))
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def _section(nav: list[Any], title: str) -> list[Any]:
    """Return the pages under this title, at any depth of the navigation."""
    return next(pages for name, pages in _sections(nav) if name == title)


def _sections(nav: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    for entry in nav:
        for name, below in entry.items() if isinstance(entry, dict) else ():
            if isinstance(below, list):
                yield name, below
                yield from _sections(below)


# The command line


def _commands() -> Iterable[tuple[str, Any]]:
    return command().commands.items()


def _command_index() -> str:
    lines = ["# Command line", "", inspect.cleandoc(command().help or ""), ""]
    lines += ["| command | purpose | from Python |", "|---|---|---|"]
    for name, entry in _commands():
        python = ", ".join(f"[`{each}`][parity_models.{each}]" for each in _functions(name))
        lines.append(f"| [`parm {name}`]({name}.md) | {_text(entry.help)} | {python} |")
    lines += ["", "Before any command:", ""]
    lines += _parameters(command().make_context("parm", [], resilient_parsing=True))
    lines += [
        "",
        "Exit codes: 0 success; 1 failure; 2 a mistake in the command, explained in one line; "
        "130 interrupted.",
    ]
    return "\n".join(lines)


def _command_page(entry: Any, path: str, level: int = 1) -> Iterator[str]:
    # A subcommand is loaded when it is used: its context has the real command.
    context = entry.make_context(path, [], resilient_parsing=True)
    real = context.command
    yield f"{'#' * level} {path}"
    yield ""
    yield _text(real.help or entry.help)
    yield ""
    usage = " ".join(real.collect_usage_pieces(context))
    yield f"```text\n{path} {usage}\n```"
    yield ""
    for function in _functions(path.removeprefix("parm ")):
        yield from _call(function)
    yield from _parameters(context)
    for name, below in getattr(real, "commands", {}).items():
        yield ""
        yield from _command_page(below, f"{path} {name}", level + 1)


def _functions(command: str) -> list[str]:
    """Return the public functions that a command calls."""
    others = {
        "parity": ["train_parity"],
        "backup": ["train_backup"],
        "bundle": ["make_bundle"],
        "export": ["export_repository"],
        "load": ["offer_load"],
    }
    return others.get(command, [command])


def _call(name: str) -> Iterator[str]:
    """Yield the call of a public function, with defaults and without types."""
    signature = inspect.signature(getattr(parity_models, name))
    plain = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
    call = signature.replace(parameters=plain, return_annotation=signature.empty)
    yield f"```python\nparity_models.{name}{call}\n```"
    yield ""
    yield f"The same from Python: [`parity_models.{name}`][parity_models.{name}]."
    yield ""


def _parameters(context: Any) -> Iterator[str]:
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and "--help" not in parameter.opts:
            yield f"`{record[0].strip()}`"
            yield f":   {_text(record[1]) or ' '}"
            yield ""


def _text(help: str | None) -> str:
    """Help as Markdown: nothing in it is markup."""
    text = html.escape(inspect.cleandoc(help or "").replace("\b\n", ""), quote=False)
    for mark in "*_`[]|":
        text = text.replace(mark, f"\\{mark}")
    return text


# The options of extensions

REGISTRIES = {
    "policy": POLICIES,
    "encoder": ENCODERS,
    "decoder": DECODERS,
    "engine": ENGINES,
    "network": NETWORKS,
}


OPTIONS = (
    "SearchOptions",
    "TrainingOptions",
    "SimulationOptions",
    "Goal",
    "LoadSpec",
    "ServeOptions",
)
"""Exported classes of options."""


def _options() -> Iterator[str]:
    yield "# Options"
    yield ""
    yield "Generated from their declarations."
    yield ""
    yield "## Of extensions"
    yield ""
    yield (
        "Options follow the name: `hedging@hedge-delay=5ms`, `resnet18@width=0.25`. A bare number "
        "of time is in milliseconds unless the range says otherwise. Extensions that are not in a "
        "table have no options."
    )
    for kind, registry in REGISTRIES.items():
        yield ""
        yield f"**{kind.capitalize()}**: {', '.join(f'`{name}`' for name in registry.names)}"
        if not any(declared_in(extension.Options) for extension in registry):
            continue
        yield ""
        yield f"| {kind} | option | type | range | default | meaning |"
        yield "|---|---|---|---|---|---|"
        for extension in registry:
            for field in declared_in(extension.Options):
                option, name = field.option, field.name.replace("_", "-")
                range_ = option.bounds(typed=True)
                yield _row(field, f"`{extension.name}` | `{name}`", range_, field.default_in_words)
    yield ""
    yield "## Of Python functions"
    yield ""
    yield "Times are in seconds, sizes in bytes, shares from 0 to 1."
    for name in OPTIONS:
        yield ""
        yield f"**[`{name}`][parity_models.{name}]**"
        yield ""
        yield "| field | type | range | default | meaning |"
        yield "|---|---|---|---|---|"
        for field in declared_in(getattr(parity_models, name)):
            range_ = field.option.bounds(typed=False)
            yield _row(field, f"`{field.name}`", range_, f"{field.default}")


def _row(field: OptionField, name: str, range_: str, default: str) -> str:
    """Return a row of a table of options."""
    choices = getattr(field.kind, "__members__", {})
    type_ = ", ".join(map(str, choices.values())) or field.kind.__name__
    return f"| {name} | {type_} | {range_} | {default} | {_text(field.option.help)} |"


# The API


def _full(package: str) -> str:
    return f"parity_models.{package}".rstrip(".")


def _source(package: str) -> ast.Module:
    path = SOURCE / package
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text())


def _api_index() -> str:
    lines = [
        "# Python API",
        "",
        "Generated from docstrings. Names that are not on these pages may change without notice.",
        "",
        "| package | contents |",
        "|---|---|",
    ]
    for package in API:
        first = (ast.get_docstring(_source(package)) or "").split("\n\n")[0].replace("\n", " ")
        lines.append(f"| [`{_full(package)}`]({_full(package)}.md) | {first} |")
    return "\n".join(lines)


def _api_page(package: str) -> Iterator[str]:
    source = _source(package)
    yield f"# `{_full(package)}`"
    yield ""
    yield ast.get_docstring(source) or ""
    yield ""
    names = _exports(package)
    for name in names:
        yield f"::: {_full(package)}.{name}"
        yield ""
    if not names and not API[package] and not (SOURCE / package).is_dir():
        yield f"::: {_full(package)}\n    options:\n      show_root_heading: false"
    for module in API[package]:
        yield f"::: {_full(package)}.{module}"
        yield ""


def _exports(package: str) -> list[str]:
    return list(getattr(import_module(_full(package)), "__all__", []))
