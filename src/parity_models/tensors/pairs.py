"""Pairs: a log of queries and a model's answers to them, in place of the model.

    {"text": "where is my card?", "answer": "card_arrival", "time": 1719830000}
    {"inputs": {"x": [0.1, 0.7]}, "answer": [0.2, 0.8]}

Files are JSON lines, CSV with a header, or Parquet. They are read line by line, and of a long log
the last part is kept, so memory is bounded.
"""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from parity_models.errors import DataError
from parity_models.tensors.features import TextFeatures
from parity_models.tensors.signature import Array, Named, Signature, Tensor
from parity_models.tensors.texts import BYTES, as_texts

SUFFIXES = (".jsonl", ".ndjson", ".csv", ".parquet")
"""The suffixes of files of pairs."""

MAX_PAIRS, MAX_VALUES = 200_000, 2**27
"""The most distinct queries that are kept, and the most characters and numbers in all of them."""

MAX_LINE = 2**22
"""The most bytes of a line."""

MAX_LABELS = 1_000

RARE = 5
"""A label with fewer distinct queries is rare."""

UNREADABLE = 0.05
"""The largest share of lines that may be unreadable."""

NAMED = 5
"""The most lines, or labels, that a note names."""


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

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def signature(self) -> Signature:
        """The signature of a model that gives these answers: for labels, a share for each."""
        kinds = {"O": BYTES, "f": "FP32", "i": "INT64"}
        taken = [Tensor(n, kinds[x.dtype.kind], x.shape[1:]) for n, x in self.inputs.items()]
        shape = (len(self.labels),) if self.labels else self.answers.shape[1:]
        return Signature(tuple(taken), (Tensor("answer", "FP32", shape),))

    def predictions(self, labels: tuple[str, ...], which: slice | Array = slice(None)) -> Array:
        """Return some of the answers as a model's outputs, with `labels` as its classes."""
        return outputs_of(self.answers[which], labels) if labels else self.answers[which]


def outputs_of(answers: Array, labels: tuple[str, ...]) -> Array:
    """Return the labels in `answers` (n,) as outputs (n, labels): 1 for the label, else 0. A label
    that is not among `labels` gives zeros, which agree with no output."""
    numbers = {label: number for number, label in enumerate(labels)}
    outputs = np.zeros((len(answers), len(labels)), np.float32)
    for row, answer in zip(outputs, answers.ravel().tolist(), strict=True):
        if answer in numbers:
            row[numbers[answer]] = 1.0
    return outputs


def read_pairs(path: Path) -> Pairs:
    """Read the pairs in a file.

    Repeated queries are one: texts are the same if they differ by case, width and punctuation only.
    Raises DataError for a file that cannot be read, with more than a share UNREADABLE of unreadable
    lines, or with answers from which nothing can be learned.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path} is not a log of pairs; give a {', a '.join(SUFFIXES)} file")
    log = _Log(path)
    try:
        rows = _READERS[path.suffix](path)
        for number, row in rows:
            log.add(number, row)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    return log.pairs()


class _Unreadable(ValueError):
    """A line that is no pair."""


@dataclass
class _Query:
    value: Any
    size: int
    answers: Counter[Any]
    time: float | None


class _Log:
    """The distinct queries of a log, by what makes them distinct."""

    def __init__(self, path: Path) -> None:
        self._path, self._queries = path, dict[Any, _Query]()
        self._form: Any = None
        self._lines = self._values = self._dropped = 0
        self._unreadable: list[str] = []
        self._features = TextFeatures()

    def add(self, number: int, row: Any) -> None:
        """Take in a line: an object, or the reason why there is none."""
        self._lines += 1
        try:
            if isinstance(row, _Unreadable):
                raise row
            name, value, key = self._query(row)
            kind, answer = _answer(row.get("answer"))
            time = _time(row.get("time"))
            self._form = self._form or (name, kind)
            if self._form != (name, kind):
                raise _Unreadable(
                    f"has {_said(name, kind)}, where lines before have {_said(*self._form)}"
                )
        except ValueError as error:
            self._unreadable.append(f"line {number} {error}")
            self._unreadable[NAMED:] = [""] * (len(self._unreadable) - NAMED)
            return
        known = self._queries.get(key)
        if known is None:
            size = len(value) if isinstance(value, str) else sum(x.size for x in value.values())
            known = self._queries[key] = _Query(value, size, Counter(), time)
            self._values += size
        known.answers[answer] += 1
        while len(self._queries) > MAX_PAIRS or self._values > MAX_VALUES:
            self._values -= self._queries.pop(next(iter(self._queries))).size
            self._dropped += 1

    def _query(self, row: Any) -> tuple[Any, Any, Any]:
        """Return the form of a line's query, its value, and what makes it distinct."""
        if not isinstance(row, Mapping):
            raise _Unreadable('is no object like {"text": ..., "answer": ...}')
        inputs = {"text": row["text"]} if "text" in row else row.get("inputs")
        if not isinstance(inputs, Mapping) or not inputs:
            raise _Unreadable("has neither a text nor inputs by name")
        if len(inputs) == 1 and isinstance(text := next(iter(inputs.values())), str):
            as_texts(np.array([text], object))
            return next(iter(inputs)), text, self._features.normal(text)
        arrays = {}
        for name, value in inputs.items():
            try:
                array = np.asarray(value)
            except ValueError as error:  # rows of unequal lengths
                raise _Unreadable(f"has inputs {name!r} of unequal lengths") from error
            if array.dtype.kind not in "iuf" or not np.isfinite(array).all() or not array.size:
                raise _Unreadable(f"has inputs {name!r} that are not finite numbers")
            arrays[name] = array.astype(np.float64)
        form = tuple((name, each.shape) for name, each in arrays.items())
        return form, arrays, b"".join(each.tobytes() for each in arrays.values())

    def pairs(self) -> Pairs:
        """Return what was read. Raises DataError if nothing can be learned from it."""
        path, failed, queries = self._path, len(self._unreadable), list(self._queries.values())
        some = "; ".join(each for each in self._unreadable if each)
        if failed > UNREADABLE * self._lines or not queries:
            raise DataError(
                f"{path}: {failed:,} of {self._lines:,} lines cannot be read"
                + (f": {some}" if some else "; give a line for each query and its answer")
            )
        notes = [f"{failed:,} lines cannot be read: {some}"] if failed else []
        if self._dropped:
            notes.append(f"the last {len(queries):,} distinct queries are kept")
        timed = [each for each in queries if each.time is not None]
        if times := len(timed) == len(queries):
            queries.sort(key=lambda each: each.time or 0.0)
        elif timed:
            notes.append(f"{len(queries) - len(timed):,} queries have no time, so none counts")
        several = sum(len(each.answers) > 1 for each in queries)
        if several:
            notes.append(
                f"{several:,} queries had more than one answer, of which the commonest counts"
            )
        notes.insert(0, f"{self._lines:,} lines, {len(queries):,} distinct queries")
        name, (kind, _) = self._form
        commonest = [max(x.answers.items(), key=lambda one: one[1])[0] for x in queries]
        if len(set(commonest)) == 1:
            raise DataError(f"{path}: all answers are the same, so nothing can be learned")
        labels, answers = (), np.array(commonest, object if kind == "label" else np.float32)
        if kind == "label":
            labels = self._labels(Counter(commonest), notes)
        elif kind == "number":
            answers = answers[:, np.newaxis]
        inputs: Named
        if isinstance(name, str):
            inputs = {name: np.array([[each.value] for each in queries], object)}
        else:
            inputs = {n: np.stack([each.value[n] for each in queries]) for n, _ in name}
            inputs = {n: _numbers(each) for n, each in inputs.items()}
        return Pairs(inputs, answers, labels, times, tuple(notes))

    def _labels(self, counts: Counter[str], notes: list[str]) -> tuple[str, ...]:
        if len(counts) > MAX_LABELS:
            raise DataError(
                f"{self._path} has {len(counts):,} different answers, and a stand-in knows "
                f"{MAX_LABELS:,} labels at most; numbers are learned as numbers from JSON lines, "
                "and generated text cannot be learned"
            )
        rare = [label for label, count in sorted(counts.items()) if count < RARE]
        if rare:
            named = ", ".join(map(repr, rare[:NAMED])) + ", ..." * (len(rare) > NAMED)
            notes.append(
                f"{len(rare):,} of {len(counts):,} labels have fewer than {RARE} distinct queries, "
                f"so stand-ins hardly ever answer them: {named}"
            )
        folded: dict[str, list[str]] = {}
        for label in sorted(counts):
            folded.setdefault(label.strip().casefold(), []).append(label)
        for alike in [each for each in folded.values() if len(each) > 1][:NAMED]:
            notes.append(f"labels differ by case or spaces only: {', '.join(map(repr, alike))}")
        return tuple(sorted(counts))


def _numbers(array: Array) -> Array:
    """Return numbers as integers if all are, else as float32."""
    whole = bool((array == np.rint(array)).all()) and np.abs(array).max() < 2**53
    return array.astype(np.int64 if whole else np.float32)


def _said(name: Any, kind: tuple[str, int]) -> str:
    query = f"the text {name!r}" if isinstance(name, str) else f"inputs {dict(name)}"
    return f"{query} and {'an answer' if not kind[1] else f'{kind[1]} values'}, a {kind[0]}"


def _answer(answer: Any) -> tuple[tuple[str, int], Any]:
    """Return the kind of an answer, and its value."""
    match answer:
        case bool():
            return ("label", 0), str(answer).lower()
        case str():
            as_texts(np.array([answer], object))
            return ("label", 0), answer
        case int() | float() if isfinite(np.float32(answer)):
            return ("number", 0), float(answer)
        case [*values] if values and all(
            isinstance(x, int | float) and isfinite(np.float32(x)) for x in values
        ):
            return ("vector", len(values)), tuple(map(float, values))
    raise _Unreadable("has no answer that is a label, a finite number or a vector of these")


def _time(time: Any) -> float | None:
    if isinstance(time, str) and time:
        try:
            time = datetime.fromisoformat(time).timestamp()
        except ValueError:
            time = float(time)  # raises ValueError
    return None if time in (None, "") else float(time)


# Files


def _lines(path: Path) -> Iterator[tuple[int, str | _Unreadable]]:
    """Yield the lines of a file, from 1, or the reason why one cannot be read."""
    number = 0
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE):
            number += 1
            if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise DataError(f"{path} is UTF-16; save it as UTF-8")
            whole = line
            while len(whole) == MAX_LINE and not whole.endswith(b"\n"):
                whole = file.readline(MAX_LINE)
            if whole is not line:
                yield number, _Unreadable(f"has more than {MAX_LINE:,} bytes")
                continue
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield number, _Unreadable(f"is not UTF-8 at its byte {error.start}")


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in _lines(path):
        if isinstance(line, str):
            if not line.strip():
                continue
            try:
                yield number, msgspec.json.decode(line)
            except (ValueError, RecursionError) as error:
                yield number, _Unreadable(f"is not JSON ({error})")
        else:
            yield number, line


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the records of a CSV file. Without a column called answer, the only other one is it."""
    unreadable: list[tuple[int, _Unreadable]] = []

    def readable() -> Iterator[str]:
        for number, line in _lines(path):
            if isinstance(line, str):
                yield line
            else:
                unreadable.append((number, line))

    reader = csv.reader(readable())
    header = next(reader, [])
    others = [each for each in header if each not in ("text", "time")]
    names = ["answer" if others == [each] else each for each in header]
    if "text" not in names or "answer" not in names:
        raise DataError(
            f"{path} has the columns {', '.join(header) or 'none'}; a log in CSV has the columns "
            "text and answer, and maybe time"
        )
    while True:
        try:
            record = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield reader.line_num, _Unreadable(f"is not CSV ({error})")
            continue
        if len(record) == len(names):
            yield reader.line_num, dict(zip(names, record, strict=True))
        elif record:
            yield reader.line_num, _Unreadable(f"has {len(record)} columns, not {len(names)}")
    yield from unreadable


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{path} needs pyarrow: pip install pyarrow, or save JSON lines") from error
    try:
        batches = parquet.ParquetFile(path).iter_batches()
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from enumerate(rows, 1)
    except ValueError as error:  # pyarrow's errors for files that are not Parquet
        raise DataError(f"{path} is damaged or not a Parquet file ({error})") from error


_READERS = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _csv,
    ".parquet": _parquet,
}
