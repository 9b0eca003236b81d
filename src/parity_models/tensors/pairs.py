"""Pairs: a log of queries and a model's answers to them, in place of the model.

    {"text": "where is my card?", "answer": "card_arrival", "time": "2026-05-01T09:30:00"}
    {"inputs": {"x": [0.1, 0.7]}, "answer": [0.2, 0.8]}

Files are JSON lines, CSV with a header, or Parquet. They are read in pieces, and of a long log the
last part is kept, so memory is bounded.
"""

import csv
import logging
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import count
from math import isfinite
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np

from parity_models.errors import DataError, needs
from parity_models.tensors.features import TextFeatures
from parity_models.tensors.signature import Array, Named, Signature, Tensor
from parity_models.tensors.texts import BYTES, as_texts

_log = logging.getLogger(__name__)

MAX_PAIRS, MAX_VALUES = 100_000, 2**26
"""The most distinct queries that are kept, and the most characters and numbers in all of them."""

MAX_OUTPUTS = 2**25
"""The most values of all answers as a model's outputs: one for each query and label."""

MAX_LINE = 2**20
"""The most bytes of a line."""

PARQUET_ROWS = 256
"""The rows of a Parquet file that are read at once."""

MAX_LABELS, MAX_OTHERS = 1_000, 4_096
"""The most labels, and the most others that are remembered until clients have them."""

RARE = 5
"""A label with fewer distinct queries is rare."""

MAX_UNREADABLE = 0.05
"""The largest share of lines that may be unreadable."""

NAMED, MAX_REASON = 5, 200
"""The most lines, or labels, that a note names, and the most characters about a line."""


@dataclass(frozen=True)
class Pairs:
    """Distinct queries, n `inputs` by name, and the commonest answer to each.

    Answers are labels, texts (n,), or float32 (n, *shape). `labels` are all labels, ascending; none
    for numbers. If the log has `times`, queries are in the order in which they first came.
    """

    inputs: Named
    answers: Array
    labels: tuple[str, ...]
    times: bool
    notes: tuple[str, ...]

    @property
    def signature(self) -> Signature:
        """The signature of a model that gives these answers: for labels, a share for each."""
        kinds = {"O": BYTES, "f": "FP32", "i": "INT64"}
        taken = [Tensor(n, kinds[x.dtype.kind], x.shape[1:]) for n, x in self.inputs.items()]
        shape = (len(self.labels),) if self.labels else self.answers.shape[1:]
        return Signature(tuple(taken), (Tensor("answer", "FP32", shape),))

    def predictions(self, labels: tuple[str, ...]) -> Array:
        """Return the answers as a model's outputs, with `labels` as its classes."""
        return Labels.of(labels).outputs(self.answers) if labels else self.answers


class Labels:
    """The labels of a model's classes, and others that the model gives nevertheless.

    A label is an output of 1 for its class and 0 for the rest. Another label is an output of equal
    values, which agrees with no stand-in's; the newest MAX_OTHERS of them can be turned back.
    """

    def __init__(self, labels: tuple[str, ...]) -> None:
        self._labels = labels
        self._numbers = {label: number for number, label in enumerate(labels)}
        self._others = dict[float, str]()
        self._count = 0

    @classmethod
    @cache
    def of(cls, labels: tuple[str, ...]) -> Self:
        """Return the one object for these labels."""
        return cls(labels)

    def outputs(self, texts: Array) -> Array:
        """Return labels (n,) or (n, 1) as outputs (n, labels)."""
        outputs = np.zeros((len(texts), len(self._labels)), np.float32)
        for row, text in zip(outputs, texts.ravel().tolist(), strict=True):
            if (number := self._numbers.get(text)) is not None:
                row[number] = 1.0
                continue
            if not self._count:
                _log.warning(
                    "the model answers %.200r, none of the %d labels of its log; stand-ins "
                    "do not know it, so it counts as a difference",
                    text,
                    len(self._labels),
                )
            self._count += 1
            row[:] = -float(self._count % 2**20)
            self._others.pop(row[0].item(), None)
            self._others[row[0].item()] = text
            if len(self._others) > MAX_OTHERS:
                del self._others[next(iter(self._others))]
        return outputs

    def texts(self, outputs: Array) -> Array:
        """Return outputs (n, labels) as labels (n, 1)."""
        known = [self._labels[number] for number in outputs.argmax(axis=1)]
        texts = [
            self._others.get(row[0].item(), label) if row[0] == row[-1] == row.max() else label
            for row, label in zip(outputs, known, strict=True)
        ]
        return np.array(texts, object).reshape(-1, 1)


def read_pairs(path: Path, most: int = MAX_PAIRS) -> Pairs:
    """Read the pairs in a file; the last of them, if more than `most` are distinct.

    Repeated queries count once, with their commonest answer; texts are the same if they differ by
    case, width and punctuation only. Raises DataError for a file that cannot be read, with more
    than a share MAX_UNREADABLE of unreadable lines, or from which nothing can be learned.
    """
    if (reader := READERS.get(path.suffix)) is None:
        raise DataError(f"{path} is not a log of pairs: it has to end in {', '.join(READERS)}")
    log = _Log(most)
    try:
        for number, line in reader(path):
            log.add(number, line)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    try:
        return log.pairs()
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


class _Line(msgspec.Struct):
    """A line of a log."""

    answer: str | float | list[float]
    text: str | None = None
    inputs: dict[str, str | float | list[Any]] | None = None
    time: str | float | None = None


@dataclass
class _Query:
    """A distinct query: its text or its arrays by name, their size, its answers, its first time."""

    value: Any
    size: int
    answers: Counter[Any]
    time: float | None


class _Log:
    """The distinct queries of a log, by what makes them distinct, and what lines are unreadable."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._queries = OrderedDict[Any, _Query]()
        self._form: Any = None
        """The inputs and the kind of the answer of the first line; all must have the same."""
        self._lines = self._values = self._unreadable = self._dropped = 0
        self._named: list[str] = []
        self._features = TextFeatures()

    def add(self, number: int, line: "bytes | _Line | ValueError") -> None:
        """Take in a line, or the reason why there is none."""
        self._lines += 1
        try:
            if isinstance(line, ValueError):
                raise line
            parsed = line if isinstance(line, _Line) else msgspec.json.decode(line, type=_Line)
            inputs, value, key = self._read(parsed)
            kind, answer = _answer(parsed.answer)
            self._form = self._form or (inputs, kind)
            if self._form != (inputs, kind):
                raise ValueError(f"{inputs} and {kind}, where lines before have {self._form}")
            time = _seconds(parsed.time)
        except (ValueError, RecursionError, OverflowError) as error:
            self._unreadable += 1
            self._named = [*self._named, f"line {number} ({str(error)[:MAX_REASON]})"][:NAMED]
            return
        known = self._queries.get(key)
        if known is None:
            size = len(value) if isinstance(value, str) else sum(x.size for x in value.values())
            known = self._queries[key] = _Query(value, size, Counter(), time)
            self._values += size
        elif known.time is not None:
            known.time = None if time is None else min(time, known.time)
        known.answers[answer] += 1
        while len(self._queries) > self._most or self._values > MAX_VALUES:
            self._values -= self._queries.popitem(last=False)[1].size
            self._dropped += 1

    def _read(self, line: _Line) -> tuple[Any, Any, Any]:
        """Return the names and shapes of a line's inputs, their values, and their key."""
        inputs = {"text": line.text} if line.text is not None else line.inputs or {}
        if any(isinstance(each, str) for each in inputs.values()):
            if len(inputs) > 1:
                raise ValueError("a text and further inputs; a stand-in takes one text")
            ((name, text),) = inputs.items()
            as_texts(np.array([text], object))
            return name, text, self._features.normal(str(text))
        arrays = {name: np.array([each], np.float64) for name, each in inputs.items()}
        if not arrays or not all(map(_finite, arrays.values())):
            raise ValueError("neither a text nor finite numbers")
        key = b"".join(arrays[name].tobytes() for name in sorted(arrays))
        return {name: each.shape[1:] for name, each in arrays.items()}, arrays, key

    def pairs(self) -> Pairs:
        """Return what was read. Raises DataError if nothing can be learned from it."""
        queries, named = list(self._queries.values()), "; ".join(self._named)
        if self._unreadable > MAX_UNREADABLE * self._lines or not queries:
            raise DataError(
                f"{self._unreadable:,} of {self._lines:,} lines cannot be read as pairs: "
                + (named or "there are none")
            )
        notes = [f"{self._lines:,} lines, {len(queries):,} distinct queries"]
        if self._unreadable:
            notes.append(f"{self._unreadable:,} lines cannot be read as pairs: {named}")
        if self._dropped:
            notes.append(f"only the last {len(queries):,} distinct queries count")
        untimed = sum(each.time is None for each in queries)
        if not untimed:
            queries.sort(key=lambda each: each.time or 0.0)
        elif untimed < len(queries):
            notes.append(f"{untimed:,} queries have no time, so that of the others does not count")
        if several := sum(len(each.answers) > 1 for each in queries):
            notes.append(
                f"queries with several answers, of which the commonest counts: {several:,}"
            )
        answers = [max(each.answers, key=each.answers.__getitem__) for each in queries]
        if len(set(answers)) == 1:
            raise DataError("all answers are the same, so nothing can be learned from them")
        inputs, kind = self._form
        labels = _labels(Counter(answers), notes) if kind == "a label" else ()
        if labels and len(queries) * len(labels) > MAX_OUTPUTS:
            queries, answers = (x[-(MAX_OUTPUTS // len(labels)) :] for x in (queries, answers))
            notes.append(f"of so many labels, only {len(queries):,} queries count")
        if isinstance(inputs, str):
            named_inputs = {inputs: np.array([[each.value] for each in queries], object)}
        else:
            named_inputs = {x: _numbers([each.value[x] for each in queries]) for x in inputs}
        given = np.array(answers, object if labels else np.float32)
        given = given if labels else given.reshape(len(given), -1)
        return Pairs(named_inputs, given, labels, not untimed, tuple(notes))


def _labels(counts: Counter[str], notes: list[str]) -> tuple[str, ...]:
    """Return the labels, ascending, and note peculiar ones. Raises DataError if they are many."""
    if len(counts) > MAX_LABELS:
        raise DataError(
            f"there are {len(counts):,} different answers, and a stand-in knows {MAX_LABELS:,} "
            "labels at most; generated text cannot be learned, and numbers are read as numbers "
            "from JSON lines"
        )
    alike: dict[str, list[str]] = {}
    for label in sorted(counts):
        alike.setdefault(label.strip().casefold(), []).append(label)
    for found in [each for each in alike.values() if len(each) > 1][:NAMED]:
        notes.append(f"labels that differ by case or spaces only: {', '.join(map(repr, found))}")
    if rare := [label for label in sorted(counts) if counts[label] < RARE]:
        notes.append(
            f"{len(rare):,} of {len(counts):,} labels have fewer than {RARE} distinct queries, so "
            f"stand-ins hardly ever give them: {', '.join(map(repr, rare[:NAMED]))}"
            + (", ..." if len(rare) > NAMED else "")
        )
    return tuple(sorted(counts))


def _numbers(values: list[Array]) -> Array:
    """Return arrays as one: of integers if all are, else of float32."""
    array = np.concatenate(values)
    whole = bool((array == np.rint(array)).all() and np.abs(array).max() < 2**53)
    return array.astype(np.int64 if whole else np.float32)


def _finite(values: Array) -> bool:
    """Return whether there are values, and all are finite as float32."""
    return values.size > 0 and bool((np.abs(values) <= np.finfo(np.float32).max).all())


def _answer(answer: str | float | list[float]) -> tuple[str, Any]:
    """Return the kind of an answer, and its value."""
    if isinstance(answer, str):
        as_texts(np.array([answer], object))
        return "a label", answer
    values = np.atleast_1d(np.array(answer, np.float64))
    if not _finite(values):
        raise ValueError("an answer that is not finite")
    return f"{len(values)} numbers", tuple(values.tolist())


def _seconds(time: str | float | None) -> float | None:
    """Return a time, in seconds or in the form of ISO 8601, in seconds."""
    if time is None or time == "":
        return None
    try:
        seconds = float(time)
    except ValueError:
        seconds = datetime.fromisoformat(str(time)).timestamp()
    if not isfinite(seconds):
        raise ValueError(f"a time of {time}")
    return seconds


# Files


def _lines(path: Path) -> Iterator[tuple[int, bytes | ValueError]]:
    """Yield the lines of a file that are not empty, from 1, or the reason why one is left out."""
    number = 0
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE):
            number += 1
            if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise DataError(f"{path} is UTF-16; save it as UTF-8")
            rest = line
            while len(rest) == MAX_LINE and not rest.endswith(b"\n"):
                rest = file.readline(MAX_LINE)
            if rest is not line:
                yield number, ValueError(f"more than {MAX_LINE:,} bytes")
            elif line := line.removeprefix(b"\xef\xbb\xbf").strip():
                yield number, line


def _csv(path: Path) -> Iterator[tuple[int, _Line | ValueError]]:
    """Yield the records of a CSV file."""
    broken: list[tuple[int, ValueError]] = []
    number = 0

    def texts() -> Iterator[str]:
        nonlocal number
        for number, line in _lines(path):
            if isinstance(line, ValueError):
                broken.append((number, line))
                continue
            yield line.decode(errors="surrogateescape") + "\n"  # as_texts refuses what is escaped

    reader = csv.reader(texts())
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise DataError(f"{path} has no header of CSV, in lines that end in LF: {error}") from error
    names = _columns(path, header)
    while True:
        try:
            record = next(reader, None)
            if record is None:
                break
            if len(record) != len(names):
                raise ValueError(f"{len(record)} columns, not {len(names)}")
            yield number, msgspec.convert(dict(zip(names, record, strict=True)), _Line)
        except (csv.Error, ValueError) as error:
            yield number, ValueError(str(error))
    yield from broken


def _parquet(path: Path) -> Iterator[tuple[int, _Line | ValueError]]:
    """Yield the rows of a Parquet file, from 1."""
    with needs("train", "a log in Parquet"):
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    numbers = count(1)
    try:
        with path.open("rb") as opened, ParquetFile(opened) as file:
            names = _columns(path, file.schema_arrow.names)
            for batch in file.iter_batches(PARQUET_ROWS):
                for row in batch.rename_columns(names).to_pylist():
                    number = next(numbers)
                    try:
                        yield number, _from_row(row)
                    except (TypeError, ValueError) as error:
                        yield number, ValueError(str(error))
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error


def _from_row(row: dict[str, Any]) -> _Line:
    return msgspec.convert(msgspec.to_builtins(row, builtin_types=(bytes,)), _Line)


def _columns(path: Path, given: list[str]) -> list[str]:
    """Return the names of a table's columns. If none is called answer, the only one that is not
    known is it."""
    others = [each for each in given if each not in ("text", "inputs", "time")]
    names = ["answer" if others == [each] else each for each in given]
    if "answer" not in names or {"text", "inputs"}.isdisjoint(names):
        raise DataError(
            f"{path} has the columns {', '.join(given) or 'none'}; a log has text and answer, and "
            "maybe time"
        )
    return names


READERS = {".jsonl": _lines, ".csv": _csv, ".parquet": _parquet}
"""What reads a file of pairs, by its suffix."""
