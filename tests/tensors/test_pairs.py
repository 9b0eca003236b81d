"""Logs of queries and answers are read line by line, whatever is in them."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import Table, array
from pyarrow.parquet import write_table

from parity_models.errors import DataError
from parity_models.tensors.pairs import Labels, Pairs, read_pairs

LINES = [{"text": f"question {i}", "answer": "ab"[i % 2]} for i in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pairs")


def read(folder: Path, *lines: Any, **names: str) -> Pairs:
    """Read a log of these lines, which are objects or bytes."""
    path = folder / names.get("name", "log.jsonl")
    whole = [x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines]
    path.write_bytes(b"\n".join(whole))
    return read_pairs(path)


def test_labels_become_classes(folder: Path) -> None:
    found = read(folder, *LINES)
    assert found.labels == ("a", "b")
    assert not found.times
    assert found.inputs["text"].shape == (40, 1)
    assert found.signature.outputs[0].shape == (2,)
    assert found.predictions(found.labels)[:2].tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(("answers", "shape"), [([1.5, 2], (1,)), ([[1, 2, 3], [2.5, 3, 4]], (3,))])
def test_numbers_and_vectors_are_outputs(folder: Path, answers: Any, shape: Any) -> None:
    lines = ({"inputs": {"x": [1, 2], "y": 0.5}, "answer": answers[0]},)
    found = read(folder, *lines, {"inputs": {"x": [3, 4], "y": 1}, "answer": answers[1]})
    assert found.labels == ()
    assert found.predictions(()).shape == (2, *shape)
    assert [(x.name, x.datatype, x.shape) for x in found.signature.inputs] == [
        ("x", "INT64", (2,)),
        ("y", "FP32", ()),
    ]


def test_a_repeated_query_counts_once_with_its_commonest_answer(folder: Path) -> None:
    said = [("Where IS my card?", "a"), ("where is my card", "b"), ("Where is my card!", "b")]
    found = read(folder, *LINES, *({"text": text, "answer": label} for text, label in said))
    assert len(found.answers) == 41
    assert found.answers[-1] == "b"
    assert "queries with several answers, of which the commonest counts: 1" in found.notes


def test_inputs_are_told_apart_by_their_names_in_any_order(folder: Path) -> None:
    lines = [
        {"inputs": {"x": 1, "y": 2}, "answer": "a"},
        {"inputs": {"y": 1, "x": 2}, "answer": "b"},
    ]
    found = read(folder, *lines, {"inputs": {"y": 2, "x": 1}, "answer": "a"})
    assert [found.inputs[name].tolist() for name in "xy"] == [[1, 2], [2, 1]]


def test_queries_are_in_the_order_of_their_first_times(folder: Path) -> None:
    times = {"old": "2026-01-01T00:00:00+00:00", "new": 1.9e9, "middle": "1800000000"}
    lines = [{"text": text, "answer": text, "time": time} for text, time in times.items()]
    found = read(folder, *lines, {"text": "old", "answer": "old", "time": 2e9})
    assert found.times
    assert found.inputs["text"].ravel().tolist() == ["old", "middle", "new"]
    some = read(folder, *lines, {"text": "x", "answer": "x"})
    assert not some.times
    assert any("1 queries have no time" in each for each in some.notes)


def test_a_byte_order_mark_and_line_ends_of_windows_are_no_content(folder: Path) -> None:
    lines = b"\r\n".join(json.dumps(each).encode() for each in LINES)
    assert len(read(folder, b"\xef\xbb\xbf" + lines + b"\r\n\r\n").answers) == 40


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "line 41"),
        (b'{"text": "\xff", "answer": "a"}', "line 41"),
        (b'{"text": "x\x00", "answer": "a"}', "line 41"),
        (b'{"text": "x", "answer": null}', "answer"),
        (b'{"text": "x", "answer": 3}', "lines before have"),
        (b'{"text": "x", "answer": 1e400}', "line 41"),
        (b'{"text": "\\ud800", "answer": "a"}', "line 41"),
        (b'{"answer": "a"}', "neither a text nor finite numbers"),
        (b'{"inputs": {"x": [[1], [1, 2]]}, "answer": "a"}', "line 41"),
        (b'{"inputs": {"x": "a", "y": "b"}, "answer": "a"}', "takes one text"),
        (b'{"text": "x", "answer": "a", "time": "yesterday"}', "yesterday"),
        (b'{"text": "x", "answer": "a", "time": "nan"}', "a time of nan"),
        (b'{"inputs": {"x": %b1%b}, "answer": "a"}' % (64 * b"[", 64 * b"]"), "line 41"),
        (b'{"text": "' + b"x" * 2**20 + b'", "answer": "a"}', "more than 1,048,576 bytes"),
        (b'{"text": "' + b"x" * 2**17 + b'", "answer": "a"}', "65536 at most"),
        (b"[" * 100_000, "line 41"),
    ],
)
def test_an_unreadable_line_is_named_and_skipped(folder: Path, line: bytes, said: str) -> None:
    found = read(folder, *LINES, line, {"text": "after", "answer": "b"})
    assert len(found.answers) == 41
    assert said in found.notes[1]


def test_too_many_unreadable_lines_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"10 of 50 lines cannot be read.*line 41.*line 45"):
        read(folder, *LINES, *[b"{"] * 10)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "none"),
        ([{"text": "x", "answer": "a"}, {"text": "y", "answer": "a"}], "all answers are the same"),
        ([{"text": f"x {i}", "answer": f"{i}"} for i in range(1001)], "1,001 different answers"),
        ([b"\xff\xfe{\x00"], "UTF-16"),
    ],
)
def test_a_log_that_teaches_nothing_is_refused(folder: Path, lines: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(folder, *lines)


def test_a_file_of_another_kind_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"it has to end in \.jsonl, \.csv, \.parquet"):
        read_pairs(folder / "log.xlsx")
    with pytest.raises(DataError, match="No such file"):
        read_pairs(folder / "nothing.jsonl")


def test_peculiar_labels_are_noted(folder: Path) -> None:
    found = read(folder, *LINES, {"text": "x", "answer": "A"}, {"text": "y", "answer": "rare"})
    assert "labels that differ by case or spaces only: 'A', 'a'" in found.notes
    assert any("2 of 4 labels have fewer than 5 distinct queries" in x for x in found.notes)


def test_of_a_long_log_the_last_part_is_kept(folder: Path) -> None:
    read(folder, *LINES)
    found = read_pairs(folder / "log.jsonl", most=10)
    assert found.inputs["text"].ravel().tolist() == [x["text"] for x in LINES[-10:]]
    assert "only the last 10 distinct queries count" in found.notes


CSV = b"text,label\r\n" + b"".join(b'"q, %d",%s\r\n' % (i, b"xy"[i % 2 :][:1]) for i in range(60))


def test_csv_is_read_with_any_name_of_the_answer(folder: Path) -> None:
    found = read(folder, b'\xef\xbb\xbf%b"two\r\nlines",x\r\n' % CSV, name="log.csv")
    assert found.labels == ("x", "y")
    assert found.inputs["text"][-1, 0] == "two\nlines"


@pytest.mark.parametrize("line", [b"alone", b"\xff,x", b'"' + b"q" * 200_000 + b'",x'])
def test_an_unreadable_record_is_skipped(folder: Path, line: bytes) -> None:
    found = read(folder, CSV + b"\r\n" + line + b"\r\nafter,x\r\n", name="log.csv")
    assert len(found.answers) == 61
    assert "1 lines cannot be read as pairs: line 63 (" in found.notes[1]


def test_csv_without_texts_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"has the columns a, b; .* text and answer"):
        read(folder, b"a,b\n1,2\n", name="log.csv")
    with pytest.raises(DataError, match="lines that end in LF"):
        read(folder, CSV.replace(b"\r\n", b"\r"), name="log.csv")


def test_parquet_is_read_like_json_lines(folder: Path) -> None:
    day = datetime(2026, 5, 1, tzinfo=UTC)
    rows: list[dict[str, Any]] = [
        {"time": day - i * timedelta(hours=1), "text": f"q {i}", "label": "ab"[i % 2]}
        for i in range(300)
    ]
    rows[7]["label"] = None
    write_table(Table.from_pylist(rows), folder / "texts.parquet")
    found = read_pairs(folder / "texts.parquet")
    assert found.times
    assert found.labels == ("a", "b")
    assert found.inputs["text"].ravel().tolist()[:2] == ["q 299", "q 298"]
    assert "1 lines cannot be read as pairs: line 8 (" in found.notes[1]

    inputs = [{"x": [float(i), 1.0], "n": i} for i in range(60)]
    columns = {"inputs": inputs, "answer": [[0.5, float(i)] for i in range(60)]}
    write_table(Table.from_pydict(columns), folder / "numbers.parquet")
    found = read_pairs(folder / "numbers.parquet")
    assert found.inputs["x"].shape == found.answers.shape == (60, 2)


def test_parquet_that_is_no_log_is_refused(folder: Path) -> None:
    path = folder / "bad.parquet"
    write_table(Table.from_pydict({"a": [1], "b": [2]}), path)
    with pytest.raises(DataError, match="has the columns a, b"):
        read_pairs(path)
    write_table(Table.from_pydict({"text": array([b"x"]), "answer": ["a"]}), path)
    with pytest.raises(DataError, match="1 of 1 lines cannot be read as pairs"):
        read_pairs(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_pairs(path)


@given(
    lines=st.lists(st.binary(max_size=60), max_size=20),
    suffix=st.sampled_from([".jsonl", ".csv", ".parquet"]),
)
def test_any_bytes_are_pairs_or_an_error(folder: Path, lines: list[bytes], suffix: str) -> None:
    path = folder / f"any{suffix}"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match="any"):
        read_pairs(path)


@given(st.lists(st.text(alphabet="abcdef", min_size=1, max_size=3), min_size=1, max_size=20))
def test_labels_come_back_whether_known_or_not(said: list[str]) -> None:
    labels = Labels(("a", "b", "ab"))
    outputs = labels.outputs(np.array(said, object))
    assert labels.texts(outputs).ravel().tolist() == said
    known = [each in ("a", "b", "ab") for each in said]
    assert (np.ptp(outputs, axis=1) > 0).tolist() == known
