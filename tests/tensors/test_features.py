"""Features of texts are the same on every machine, and those of like texts are alike."""

import hashlib
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_models.tensors.features import TextFeatures

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
