"""Texts: read from files and bytes as they are, or refused with the reason; and their features."""

import hashlib
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import fuzz, mutated
from parity_models.errors import DataError
from parity_models.tensors.features import TextFeatures
from parity_models.tensors.queries import as_batch, read_batch
from parity_models.tensors.signature import Axis, Signature, Tensor, pad
from parity_models.tensors.texts import MAX_TEXT, read_texts, write_texts

SCORES = Tensor("scores", "FP32", (3,))
TEXT = Signature((Tensor("text", "BYTES", (1,)),), (SCORES,))
TEXTS = ["where is my card?", "größer 😀", "", "\u2028a"]


def content(*texts: str) -> bytes:
    return write_texts(np.array(texts, object))


@given(mutated(st.lists(st.text(max_size=9), max_size=4).map(lambda texts: content(*texts))))
@fuzz(300)
def test_bytes_are_texts_or_refused(data: bytes) -> None:
    for count in range(5):
        try:
            texts = read_texts(data, (count,))
        except ValueError:
            continue
        assert write_texts(texts) == data


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (content("a")[:-1], "ends within text 1 of 1"),
        (b"\0\0", "ends within text 1 of 1"),
        (content("a", "b"), "has 5 bytes after its 1 texts"),
        (content((MAX_TEXT + 1) * "a"), "has a text of 65537 bytes; a text has 65536 at most"),
        (b"\1\0\0\0\xff", "not UTF-8: invalid start byte at its byte 0"),
    ],
)
def test_bytes_that_are_no_text(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_texts(data, (1,))


@pytest.mark.parametrize("name", ["a.txt", "a.npy", "a.npz"])
def test_files_of_texts(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.txt":
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(TEXTS).encode() + b"\r\n")
    elif name == "a.npy":
        np.save(path, np.array(TEXTS))
    else:
        np.savez(path, text=np.array(TEXTS)[:, np.newaxis], labels=np.arange(len(TEXTS)))
    batch = read_batch(path, TEXT)["text"]
    assert batch.dtype.hasobject
    assert batch[:, 0].tolist() == TEXTS


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([1, 2], r"'text' in inputs has a int, not a text"),
        (["a\ud800"], "has a text without UTF-8: surrogates not allowed"),
        ([b"\xff"], "has a text that is not UTF-8"),
        (["a" * 2**20], "has a text of 1048576 bytes; a text has 65536 at most"),
        ([[["a"]]], r"has rows of shape \[1, 1\]; the model takes 'text' BYTES \[1\]"),
    ],
)
def test_values_that_are_no_texts(given: Any, why: str) -> None:
    with pytest.raises(DataError, match=why):
        as_batch(np.array(given, object), TEXT)


def test_files_that_hold_no_texts(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("größer".encode("latin-1"))
    with pytest.raises(DataError, match=r"is damaged or not an .txt file"):
        read_batch(tmp_path / "latin.txt", TEXT)


def test_rows_of_several_texts_are_filled_up_with_empty_ones() -> None:
    several = Tensor("text", "BYTES", ("length",))
    signature = Signature((several,), (SCORES,), {"length": Axis((2, 4))})
    padded = pad({"text": np.array([["a", "b", "c"]], object)}, signature, [3])
    assert padded["text"].tolist() == [["a", "b", "c", ""]]


# Features of texts


FEATURES = TextFeatures()


def test_features_are_those_of_every_other_machine() -> None:
    said = "".join(f"{each:04x}" for each in FEATURES.ids("Where is my Größe-42 card? 日本"))
    assert hashlib.sha256(said.encode()).hexdigest()[:16] == "6bb2d660069e4039"


@given(st.text())
def test_any_text_has_features(text: str) -> None:
    ids = FEATURES.ids(text)
    assert len(ids) >= 1
    assert ids.min() >= 0
    assert ids.max() < FEATURES.buckets
    wide = FEATURES.ids(unicodedata.normalize("NFKC", text))
    assert np.array_equal(ids, wide)


@pytest.mark.parametrize("text", ["", "?!", "\x00", "\ud800", "a" * 100_000, "ﷺ" * 5000])
def test_peculiar_texts_have_features(text: str) -> None:
    assert 1 <= len(FEATURES.ids(text)) < 5 * FEATURES.limit


def test_case_width_and_punctuation_do_not_matter() -> None:
    assert FEATURES.normal("Ｗhere IS, my card?!") == FEATURES.normal("where is my card")


@given(st.lists(st.sampled_from(["card", "loan", "fee"]), min_size=2, max_size=6))
def test_n_grams_and_words_do_not_depend_on_their_place(words: list[str]) -> None:
    found = set(FEATURES.ids(" ".join(words)))
    assert all(set(FEATURES.ids(each)) <= found for each in words)


def test_hashes_spread_over_the_buckets() -> None:
    ids = np.concatenate([FEATURES.ids(f"{i * 7919} {i * 104729}") for i in range(5000)])
    distinct = {tuple(x) for x in np.unique(ids).reshape(-1, 1).tolist()}
    assert len(distinct) > FEATURES.buckets / 8
