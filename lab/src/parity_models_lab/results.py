"""Files of experiments: TOML that describes them, and results, kept by content while they run,
written as JSON, printed as tables."""

import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from rich.console import Console
from rich.table import Table

from parity_models.documents import as_struct, content_of, why_not_writable
from parity_models.errors import UserError, suggest
from parity_models.options import Option
from parity_models.progress import Progress, progress_bars

Key = TypeVar("Key")
Job = TypeVar("Job")
Result = TypeVar("Result")
Row = Mapping[str, object]
"""One row of a table: values by column."""

Out = Annotated[Path | None, Option("Write the result to this folder, too.", metavar="DIR")]
OutFolder = Annotated[Path, Option("The folder to write results to.", metavar="DIR")]
Work = Annotated[Path, Option("The folder for intermediate results, used again.", metavar="DIR")]
Seed = Annotated[int, Option("Fixes all that is random.", ge=0)]

MAX_WIDTH = 1000
"""The most characters of a table's line."""

INVALID = "invalid"
"""The column that says why a row says nothing; such rows are printed in red."""


def names_in(folder: Traversable) -> list[str]:
    """Return the names of the TOML files in a folder of the package."""
    names = (file.name for file in folder.iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def load_toml(name: str, folder: Traversable, kind: type[Result], notes: str) -> Result:
    """Read the struct that a file describes, one of the package's `folder` by name or any; `notes`
    is the page about such files. Raises UserError for a missing file, and for a wrong one."""
    known, what = names_in(folder), kind.__name__.lower()
    file = folder / f"{name}.toml" if name in known else Path(name)
    try:
        return as_struct(msgspec.toml.decode(content_of(file)), kind)
    except OSError as error:
        raise UserError(
            f"cannot read the {what} {name}: {error.strerror}; give a file, or one of "
            f"{', '.join(known)}{suggest(name, known)}"
        ) from error
    except msgspec.DecodeError as error:
        raise UserError(f"{name} is not TOML: {error}; see {notes}") from error
    except (ValueError, UserError) as error:
        raise UserError(f"{name} does not describe a {what}: {error}; see {notes}") from error


class ResultCache:
    """A folder of results, one JSON file each, named by what determines it. A damaged file counts
    as missing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error

    def get(self, key: str, kind: type[Result]) -> Result | None:
        try:
            return msgspec.json.decode((self._folder / f"{key}.json").read_bytes(), type=kind)
        except (OSError, ValueError):
            return None

    def put(self, key: str, result: object) -> None:
        file = self._folder / f"{key}.json"
        unfinished = file.with_suffix(".part")
        unfinished.write_bytes(msgspec.json.encode(result))
        unfinished.replace(file)


@cache
def code_digest() -> str:
    """Name the code that runs trials: that of the package, and of this one."""
    digest = sha256()
    for package in ("parity_models", "parity_models_lab"):
        for file in sorted(Path(str(files(package))).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def simulated(
    function: Callable[[Job], Result], jobs: Mapping[Key, Job]
) -> Iterator[tuple[Key, Result]]:
    """Yield each job's key and result as it is done, on all cores, while a bar shows how many are.

    Those that have not begun are not awaited when the caller stops, by Ctrl-C, say.
    """
    with progress_bars() as bars, ProcessPoolExecutor() as pool:
        futures = {pool.submit(function, job): key for key, job in jobs.items()}
        try:
            for done, future in enumerate(as_completed(futures)):
                bars.on_progress(Progress("simulated", done, len(jobs)))
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def check_out(folder: Path) -> None:
    """Raise UserError unless results can be written to this folder, before hours are spent."""
    if folder.is_file():
        raise UserError(f"--out is a folder, and {folder} is a file")
    if why := why_not_writable(folder):
        raise UserError(f"--out: {why}; choose another folder")


def report(title: str, rows: Sequence[Row], file: Path | None, **about: object) -> None:
    """Print rows as a table, and write them as JSON, one a line, with the command, the machine, and
    further facts `about` them. The folder of the `file`, if there is one, is made."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(title=title, title_justify="left", pad_edge=False)
    for name in columns:
        text = any(isinstance(row.get(name), str) for row in rows)
        table.add_column(name, justify="left" if text else "right", overflow="fold")
    for row in rows:
        style = "red" if row.get(INVALID) else None
        table.add_row(*(_text(row.get(name)) for name in columns), style=style)
    console = Console(highlight=False)
    wide = console.measure(table, options=console.options.update(max_width=MAX_WIDTH)).maximum
    console.width = max(console.width, wide)  # in lines that the terminal breaks, not in columns
    console.print(table)
    if file is None:
        return
    head = {
        "title": title,
        "command": shlex.join(["parm-lab", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "code": code_digest(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, "
        f"Python {platform.python_version()}, "
        + ", ".join(f"{n} {version(n)}" for n in ("parity-models", "numpy", "onnxruntime")),
        **about,
    }
    fields = [f"  {_json(name)}: {_json(value)}" for name, value in head.items()]
    lines = ",\n".join(f"    {_json(row)}" for row in rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{\n" + ",\n".join([*fields, f'  "rows": [\n{lines}\n  ]']) + "\n}\n")


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _text(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        short = isinstance(value, float) and abs(value) < 1000
        return f"{value:.4g}" if short else f"{value:,.0f}"
    if value is None:
        return ""
    return value if isinstance(value, str) else _json(value)
