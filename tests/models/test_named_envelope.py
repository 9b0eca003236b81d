"""The envelope knows queries of named inputs unlike those that stand-ins learned from."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fuzzing import fuzz, mutated
from parity_models.errors import BundleError
from parity_models.models.bundle import open_bundle
from parity_models.models.envelope import Numbers
from parity_models.models.named_envelope import (
    Ids,
    NamedEnvelope,
    decode_any,
    encode_any,
    numbers_in,
)
from parity_models.models.named_inputs import Named
from parity_models.models.signature import Axis, Signature, Tensor
from parity_models.training.named_envelope import fit_named_envelope
from text_models import write_text_bundle

Array = NDArray[Any]

WORDS, LONGEST = 400, 24
TEXT = (Tensor("ids", "INT64", ("length",)), Tensor("mask", "INT64", ("length",)))
FEATURES = (
    Tensor("categories", "INT64", (3,)),
    Tensor("numbers", "FP32", (20,)),
    Tensor("old", "BOOL", ()),
    Tensor("time", "UINT64", (2,)),
)
FILES = (Tensor("bytes", "INT32", (512,)),)
SOUNDS = (Tensor("sound", "FP16", ("samples",)),)


def texts(count: int, seed: int) -> Named:
    """Words as often as in languages, most of which are followed by one of a few."""
    rng = np.random.default_rng(seed)
    ranks = 1 / np.arange(1, WORDS)
    ids = rng.choice(np.arange(1, WORDS), (count, LONGEST), p=ranks / ranks.sum())
    for at in range(1, LONGEST):
        follows = rng.random(count) < 0.7
        ids[:, at] = np.where(follows, (7 * ids[:, at - 1]) % (WORDS - 1) + 1, ids[:, at])
    lengths = rng.integers(1, LONGEST + 1, count)
    lengths[0] = LONGEST
    mask = (np.arange(LONGEST) < lengths[:, None]).astype(np.int64)
    return {"ids": ids * mask, "mask": mask}


def features(count: int, seed: int) -> Named:
    rng = np.random.default_rng(seed)
    categories = rng.geometric(0.1, (count, 3)).clip(0, [60, 30, 4])
    categories[:, 0] += 100
    numbers = rng.normal(size=(count, 4)) @ np.random.default_rng(0).normal(size=(4, 20))
    return {
        "categories": categories,
        "numbers": (numbers + rng.normal(0, 0.1, numbers.shape)).astype(np.float32),
        "old": rng.random(count) < 0.3,
        "time": rng.integers(2**40, 2**41, (count, 2)).astype(np.uint64),
    }


def files(count: int, seed: int) -> Named:
    rng = np.random.default_rng(seed)
    steps = rng.choice([0, 1, 1, 1, 2, 40], (count, 512)).cumsum(axis=1)
    return {"bytes": (steps % 250).astype(np.int32)}


def sounds(count: int, seed: int) -> Named:
    rng = np.random.default_rng(seed)
    waves = np.sin(np.arange(300) * rng.uniform(0.05, 0.2, (count, 1)) + rng.random((count, 1)))
    lengths = rng.integers(50, 301, (count, 1))
    return {"sound": np.where(np.arange(300) < lengths, waves, 0).astype(np.float16)}


KINDS: dict[str, tuple[tuple[Tensor, ...], Callable[[int, int], Named]]] = {
    "text": (TEXT, texts),
    "features": (FEATURES, features),
    "files": (FILES, files),
    "sounds": (SOUNDS, sounds),
}
OUTPUTS = np.random.default_rng(9).normal(size=(2000, 3)).astype(np.float32)


def fitted(kind: str) -> NamedEnvelope:
    inputs, draw = KINDS[kind]
    return fit_named_envelope(inputs, draw(2000, 0), draw(500, 1), OUTPUTS)


@pytest.fixture(scope="module")
def envelopes() -> dict[str, NamedEnvelope]:
    return {kind: fitted(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_few_honest_queries_are_called_unlike(
    envelopes: dict[str, NamedEnvelope], kind: str
) -> None:
    envelope = envelopes[kind]
    assert envelope.unlike_in(KINDS[kind][1](2000, 2)).mean() <= 0.015
    assert 0 <= envelope.false_alarms <= 0.02
    assert envelope.held_out == 500


def changed(kind: str, name: str, change: Callable[[Array], Array]) -> Named:
    queries = KINDS[kind][1](200, 3)
    return {**queries, name: np.asarray(change(queries[name].copy()), queries[name].dtype)}


def put(value: float) -> Callable[[Array], Array]:
    """One value, the first, is another."""

    def change(array: Array) -> Array:
        array.reshape(len(array), -1)[:, 0] = value
        return array

    return change


RNG = np.random.default_rng(4)
ABSURD: dict[str, tuple[str, str, Callable[[Array], Array]]] = {
    "an id beyond all": ("text", "ids", put(WORDS)),
    "an id below all": ("text", "ids", put(-1)),
    "a mask that is none": ("text", "mask", put(2)),
    "a category beyond its column's": ("features", "categories", put(161)),
    "a category below its column's": ("features", "categories", put(50)),
    "one absurd number": ("features", "numbers", put(1e30)),
    "not a number": ("features", "numbers", put(np.nan)),
    "another time": ("features", "time", put(2**60)),
    "noise in range": ("features", "numbers", lambda each: RNG.uniform(-4, 4, each.shape)),
    "a byte beyond all": ("files", "bytes", put(256)),
    "random bytes": ("files", "bytes", lambda each: RNG.integers(0, 250, each.shape)),
    "bytes in another order": ("files", "bytes", lambda each: RNG.permuted(each, axis=1)),
    "one byte over and over": ("files", "bytes", lambda each: np.full_like(each, 7)),
    "a loud sample": ("sounds", "sound", put(1e4)),
    "an infinite sample": ("sounds", "sound", put(np.inf)),
    "noise": ("sounds", "sound", lambda each: RNG.uniform(-1, 1, each.shape)),
}


@pytest.mark.parametrize("what", ABSURD)
def test_what_no_training_query_was_like_is_unlike(
    envelopes: dict[str, NamedEnvelope], what: str
) -> None:
    kind, name, change = ABSURD[what]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert envelopes[kind].unlike_in(changed(kind, name, change)).mean() > 0.99


def whole(ids: Array) -> Named:
    return {"ids": ids, "mask": np.ones_like(ids)}


def test_texts_of_known_words_that_are_unlike_as_a_whole_are_told(
    envelopes: dict[str, NamedEnvelope],
) -> None:
    unlike = envelopes["text"].unlike_in
    rare = RNG.integers(WORDS // 2, WORDS, (200, LONGEST))
    assert unlike(whole(rare)).mean() > 0.95
    assert unlike(whole(np.full((1, LONGEST), 1))).all()
    words = texts(200, 5)["ids"]
    assert unlike({"ids": words, "mask": np.zeros_like(words)}).mean() > 0.9
    longer = np.pad(whole(texts(1, 0)["ids"])["ids"], ((0, 0), (0, 1)), constant_values=1)
    assert unlike(whole(longer)).all()


def test_padding_says_nothing(envelopes: dict[str, NamedEnvelope]) -> None:
    queries = texts(300, 6)
    wider = {name: np.pad(each, ((0, 0), (0, 40))) for name, each in queries.items()}
    envelope = envelopes["text"]
    np.testing.assert_array_equal(envelope.unlike_in(wider), envelope.unlike_in(queries))


def test_rows_as_a_server_has_them_are_judged_as_arrays_are(
    envelopes: dict[str, NamedEnvelope],
) -> None:
    queries = texts(50, 7)
    queries["ids"][::2, 0] = WORDS
    output = Tensor("logits", "FP32", (3,))
    kind = Signature(TEXT, (output,), {"length": Axis((LONGEST,))}).largest
    found = envelopes["text"].unlike(kind.input.join(queries))
    np.testing.assert_array_equal(found, envelopes["text"].unlike_in(queries))
    assert found[::2].all()
    assert not found[1::2].any()


def test_constant_and_few_queries_have_an_envelope_too() -> None:
    inputs = (Tensor("ids", "INT32", (4,)), Tensor("type", "INT8", (300,)))
    ids, types = np.full((3, 4), 5, np.int32), np.zeros((3, 300), np.int8)
    queries: Named = {"ids": ids, "type": types}
    envelope = fit_named_envelope(inputs, queries, queries, OUTPUTS[:3])
    assert not envelope.unlike_in(queries).any()
    assert envelope.unlike_in({**queries, "ids": ids + 1}).all()
    assert envelope.impossible(np.full((1, 3), 1e9, np.float32)).all()


def test_golden_queries_are_made_of_what_is_known_of_numbers_alone(
    envelopes: dict[str, NamedEnvelope],
) -> None:
    assert isinstance(numbers_in(envelopes["features"], "numbers"), Numbers)
    assert numbers_in(envelopes["features"], "time") is None
    assert numbers_in(envelopes["text"], "ids") is None


# In the bundle


@pytest.mark.parametrize("kind", KINDS)
def test_it_comes_out_of_its_file_as_it_went_in(
    envelopes: dict[str, NamedEnvelope], kind: str
) -> None:
    envelope = envelopes[kind]
    again = decode_any(encode_any(envelope))
    assert encode_any(again) == encode_any(envelope)
    queries = KINDS[kind][1](300, 8)
    assert isinstance(again, NamedEnvelope)
    np.testing.assert_array_equal(again.unlike_in(queries), envelope.unlike_in(queries))


@pytest.mark.slow
def test_a_bundle_of_other_inputs_refuses_it(
    envelopes: dict[str, NamedEnvelope], tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="is of the inputs 'categories'"):
        write_text_bundle(tmp_path, backed=True, envelope=envelopes["features"])
    bundle = open_bundle(write_text_bundle(tmp_path, backed=True, envelope=envelopes["text"]))
    assert isinstance(bundle.envelope(), NamedEnvelope)


def ids_in(envelope: NamedEnvelope) -> Ids:
    part = envelope.parts[0]
    assert isinstance(part, Ids)
    return part


def test_ids_that_cannot_be_are_refused(envelopes: dict[str, NamedEnvelope]) -> None:
    none = np.empty(0, np.float32)
    text, features = envelopes["text"], envelopes["features"]
    of_text, of_features = ids_in(text), ids_in(features)
    for envelope, wrong, message in (
        (text, replace(of_text, low=(5,), high=(4,)), "empty"),
        (text, replace(of_text, low=(0, 0), high=(9, 9)), "2 columns"),
        (text, replace(of_text, table=none), "no table"),
        (text, replace(of_text, table=none + np.nan), "no table"),
        (text, replace(of_text, table=np.full(3, np.nan, np.float32)), "not finite"),
        (features, replace(of_features, pairs=np.zeros(3, np.float32)), "no neighbours"),
    ):
        damaged = replace(envelope, parts=(wrong, *envelope.parts[1:]))
        with pytest.raises(BundleError, match=message):
            decode_any(encode_any(damaged))
    with pytest.raises(BundleError, match="1 inputs of 2"):
        decode_any(encode_any(replace(text, parts=text.parts[:1])))
    with pytest.raises(BundleError, match="axes"):
        decode_any(encode_any(replace(text, longest={})))


@fuzz(150)
@given(st.data())
def test_mutated_files_are_refused_or_judge_without_failing(data: st.DataObject) -> None:
    content = data.draw(mutated(st.sampled_from([SMALL_TEXT, SMALL_FEATURES])))
    try:
        envelope = decode_any(content)
    except BundleError:
        return
    assert isinstance(envelope, NamedEnvelope)
    for inputs, queries in ((TEXT, texts(3, 0)), (FEATURES, features(3, 0))):
        if envelope.inputs == inputs:  # else no bundle holds it
            assert envelope.unlike_in(queries).shape == (3,)


SMALL_TEXT, SMALL_FEATURES = (
    encode_any(fit_named_envelope(inputs, draw(40, 0), draw(10, 1), OUTPUTS))
    for inputs, draw in ((TEXT, texts), (FEATURES, features))
)
