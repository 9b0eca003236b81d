"""The envelope recognises queries unlike those that stand-ins learned from, and impossible
outputs."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from fuzzing import fuzz, mutated
from onnx_models import linear_model
from parity_models.bundle.bundle import NewModel, open_bundle, write_bundle
from parity_models.errors import BundleError
from parity_models.tensors.signature import Named, Tensor
from parity_models.training.export import floats
from parity_models.trust.envelope import (
    Envelope,
    Ids,
    decode_envelope,
    encode_envelope,
    fit_envelope,
)

Array = NDArray[Any]
RNG = np.random.default_rng(0)
DIGITS = RNG.permutation(load_digits().images[:, None] / 16).astype(np.float32)
WORDS, LONGEST = 400, 24


# Queries of each kind: `count` of them, drawn by a seed


def digits(count: int, seed: int) -> Named:
    rows = np.random.default_rng(seed).permutation(DIGITS[:1200] if seed < 2 else DIGITS[1200:])
    return {"input": rows[:count]}


def images(count: int, seed: int) -> Named:
    """Smooth images with values from 0 to 1, too large for components."""
    rng = np.random.default_rng(seed)
    rows, columns = np.linspace(0, 1, 96)[:, None], np.linspace(0, 1, 96)
    waves = rng.uniform(0, 6, (4, count, 3, 1, 1))
    waved = np.sin(waves[0] * rows + waves[1]) * np.cos(waves[2] * columns + waves[3])
    noisy = 0.5 + 0.35 * waved + rng.normal(0, 0.03, (count, 3, 96, 96))
    return {"input": np.clip(noisy, 0, 1).astype(np.float32)}


def table(count: int, seed: int) -> Named:
    """Rows of features that hang together: prices, ages, flags, counts."""
    hidden = np.random.default_rng(seed).normal(size=(count, 3))
    features = hidden @ np.random.default_rng(1).normal(size=(3, 20))
    features += np.random.default_rng(seed + 9).normal(0, 0.2, features.shape)
    features[:, 0] = np.exp(3 * features[:, 0] / 2 + 8)
    features[:, 1] = features[:, 1] > 1.5
    return {"input": features.astype(np.float32)}


def texts(count: int, seed: int) -> Named:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, LONGEST + 1, count)
    lengths[0] = LONGEST
    mask = (np.arange(LONGEST) < lengths[:, None]).astype(np.int64)
    return {"ids": rng.integers(1, WORDS, (count, LONGEST)) * mask, "mask": mask}


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


def sounds(count: int, seed: int) -> Named:
    rng = np.random.default_rng(seed)
    waves = np.sin(np.arange(300) * rng.uniform(0.05, 0.2, (count, 1)) + rng.random((count, 1)))
    lengths = rng.integers(50, 301, (count, 1))
    return {"sound": np.where(np.arange(300) < lengths, waves, 0).astype(np.float16)}


class Queries(NamedTuple):
    inputs: tuple[Tensor, ...]
    draw: Callable[[int, int], Named]
    train: int = 2000
    held_out: int = 500


KINDS = {
    "digits": Queries((floats((1, 8, 8)),), digits, 1000, 200),
    "images": Queries((floats((3, 96, 96)),), images, 200, 50),
    "table": Queries((floats((20,)),), table),
    "text": Queries(
        (Tensor("ids", "INT64", ("length",)), Tensor("mask", "INT64", ("length",))), texts
    ),
    "features": Queries(
        (
            Tensor("categories", "INT64", (3,)),
            Tensor("numbers", "FP32", (20,)),
            Tensor("old", "BOOL", ()),
            Tensor("time", "UINT64", (2,)),
        ),
        features,
    ),
    "sounds": Queries((Tensor("sound", "FP16", ("samples",)),), sounds),
}
ARRAYS = ("digits", "images", "table")
OUTPUTS = np.random.default_rng(9).normal(size=(2000, 3)).astype(np.float32)


def fitted(kind: str, train: int | None = None, held_out: int | None = None) -> Envelope:
    inputs, draw, *counts = KINDS[kind]
    queries, others = draw(train or counts[0], 0), draw(held_out or counts[1], 1)
    return fit_envelope(inputs, queries, others, OUTPUTS)


def of_rows(rows: Array, outputs: Array = OUTPUTS) -> Envelope:
    return fit_envelope([floats(rows.shape[1:])], {"input": rows}, {"input": rows}, outputs)


@pytest.fixture(scope="module")
def envelopes() -> dict[str, Envelope]:
    return {kind: fitted(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_few_honest_queries_are_rejected(envelopes: dict[str, Envelope], kind: str) -> None:
    envelope, queries = envelopes[kind], KINDS[kind].draw(300, 2)
    assert envelope.unlike(queries).mean() <= 0.02
    assert 0 <= envelope.false_alarms <= 0.02
    assert envelope.held_out == KINDS[kind].held_out
    again = decode_envelope(encode_envelope(envelope))
    assert encode_envelope(again) == encode_envelope(envelope)
    np.testing.assert_array_equal(again.unlike(queries), envelope.unlike(queries))


@pytest.mark.parametrize("value", [100.0, -3.4e38, np.nan])
@pytest.mark.parametrize("kind", ARRAYS)
def test_absurd_values_are_unlike(envelopes: dict[str, Envelope], kind: str, value: float) -> None:
    rows = KINDS[kind].draw(50, 2)["input"]
    value *= float(np.abs(rows).max()) if abs(value) == 100 else 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert envelopes[kind].unlike({"input": np.full_like(rows, value)}).all()
        rows.reshape(50, -1)[:, 7] = value
        assert envelopes[kind].unlike({"input": rows}).all()


@pytest.mark.parametrize("kind", ARRAYS)
def test_noise_in_range_is_unlike(envelopes: dict[str, Envelope], kind: str) -> None:
    rows = KINDS[kind].draw(200, 2)["input"]
    axes = 0 if rows.ndim == 2 else None
    low, high = rows.min(axis=axes), rows.max(axis=axes)
    shares = RNG.uniform(size=rows.shape)
    for each in (shares, shares > 0.5):
        noise = (low + each * (high - low)).astype(np.float32)
        assert envelopes[kind].unlike({"input": noise}).mean() > 0.9


def test_outliers_among_training_inputs_do_not_widen_the_envelope() -> None:
    train = DIGITS[:1200].copy()
    train[:3] = 1e6
    envelope = of_rows(train)
    assert envelope.unlike({"input": np.full((1, 1, 8, 8), 10, np.float32)}).all()
    assert envelope.unlike({"input": DIGITS[1200:]}).mean() <= 0.015


def test_impossible_outputs_are_recognised() -> None:
    outputs = RNG.normal(size=(400, 3)).astype(np.float32) * [1, 10, 1000]
    envelope = of_rows(DIGITS[:400], outputs)
    assert not envelope.impossible(outputs).any()
    assert not envelope.impossible(1.2 * outputs).any()
    wrong = np.zeros((6, 3), np.float32)
    wrong[0, 0], wrong[1, 1], wrong[2, 2], wrong[3, 0] = np.nan, np.inf, -np.inf, 50
    wrong[4, 2] = -3e38
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert envelope.impossible(wrong).tolist() == [True] * 5 + [False]


def put(value: float) -> Callable[[Array], Array]:
    """Replace one value, the first."""

    def change(array: Array) -> Array:
        array.reshape(len(array), -1)[:, 0] = value
        return array

    return change


ABSURD: dict[str, tuple[str, str, Callable[[Array], Array]]] = {
    "an id beyond all": ("text", "ids", put(WORDS)),
    "an id below all": ("text", "ids", put(-1)),
    "a mask of twos": ("text", "mask", put(2)),
    "a category beyond its column's": ("features", "categories", put(161)),
    "a category below its column's": ("features", "categories", put(50)),
    "one absurd number": ("features", "numbers", put(1e30)),
    "not a number": ("features", "numbers", put(np.nan)),
    "another time": ("features", "time", put(2**60)),
    "noise in range": ("features", "numbers", lambda each: RNG.uniform(-4, 4, each.shape)),
    "a loud sample": ("sounds", "sound", put(1e4)),
    "noise": ("sounds", "sound", lambda each: RNG.uniform(-1, 1, each.shape)),
}


@pytest.mark.parametrize("what", ABSURD)
def test_queries_unlike_those_in_training(envelopes: dict[str, Envelope], what: str) -> None:
    kind, name, change = ABSURD[what]
    queries = KINDS[kind].draw(200, 3)
    queries[name] = np.asarray(change(queries[name].copy()), queries[name].dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert envelopes[kind].unlike(queries).mean() > 0.9


def test_padding_is_ignored_and_longer_queries_are_unlike(envelopes: dict[str, Envelope]) -> None:
    queries, envelope = texts(300, 6), envelopes["text"]
    wider = {name: np.pad(each, ((0, 0), (0, 40))) for name, each in queries.items()}
    np.testing.assert_array_equal(envelope.unlike(wider), envelope.unlike(queries))
    longer = {
        name: np.pad(each[:1], ((0, 0), (0, 1)), constant_values=1)
        for name, each in queries.items()
    }
    assert envelope.unlike(longer).all()


def test_much_longer_texts_are_unlike() -> None:
    texts, tensor = np.array([["where is my card?"], ["ok"]], object), Tensor("text", "BYTES", (1,))
    scores = np.zeros((2, 3), np.float32)
    fitted = fit_envelope((tensor,), {"text": texts}, {"text": texts}, scores)
    envelope = decode_envelope(encode_envelope(fitted))
    asked = np.array([["why?"], [""], [texts[0, 0] * 2], [texts[0, 0] * 3]], object)
    assert envelope.unlike({"text": asked}).tolist() == [False, False, False, True]
    numbers = replace(envelope, inputs=(Tensor("text", "FP32", (1,)),))
    with pytest.raises(BundleError, match="do not fit the input 'text' FP32"):
        decode_envelope(encode_envelope(numbers))


def test_constant_and_few_queries_have_an_envelope_too() -> None:
    inputs = (Tensor("ids", "INT32", (4,)), Tensor("numbers", "FP32", (300,)))
    queries: Named = {"ids": np.full((3, 4), 5, np.int32), "numbers": np.ones((3, 300), np.float32)}
    envelope = fit_envelope(inputs, queries, queries, OUTPUTS[:1].repeat(3, 0))
    assert not envelope.unlike(queries).any()
    for name, factor in (("ids", 2), ("numbers", 100)):
        assert envelope.unlike({**queries, name: factor * queries[name]}).all()
    assert not envelope.impossible(OUTPUTS[:1]).any()
    assert envelope.impossible(np.full((1, 3), 1e9, np.float32)).all()


# In the bundle


def bundle_with(envelope: Envelope, folder: Path) -> Path:
    linear_model(folder / "deployed.onnx", (1, 8, 8), (3,))
    path = folder / "bundle"
    write_bundle(path, deployed=NewModel(folder / "deployed.onnx", "linear"), envelope=envelope)
    return path


def test_an_envelope_survives_a_bundle(envelopes: dict[str, Envelope], tmp_path: Path) -> None:
    envelope = envelopes["digits"]
    bundle = open_bundle(bundle_with(envelope, tmp_path))
    found = bundle.envelope()
    assert found is not None
    assert encode_envelope(found) == encode_envelope(envelope)
    content = (bundle.path / "envelope.msgpack").read_bytes()
    (bundle.path / "envelope.msgpack").write_bytes(content[:-1] + b"\0")
    with pytest.raises(BundleError, match=r"envelope\.msgpack"):
        open_bundle(bundle.path)


def test_an_envelope_of_others_is_refused(envelopes: dict[str, Envelope], tmp_path: Path) -> None:
    for other, message in (
        (of_rows(DIGITS[:50], OUTPUTS[:, :2]), r"shape \[2\].*\[3\]"),
        (envelopes["features"], "is for the inputs 'categories'"),
    ):
        with pytest.raises(BundleError, match=message):
            bundle_with(other, tmp_path)


def test_unsound_envelopes_are_refused(envelopes: dict[str, Envelope]) -> None:
    nan = np.full((1, 8, 8), np.nan, np.float32)
    digits, text = (envelopes[kind] for kind in ("digits", "text"))

    def with_first(envelope: Envelope, **changes: object) -> Envelope:
        return replace(envelope, parts=(replace(envelope.parts[0], **changes), *envelope.parts[1:]))

    for damaged, message in (
        (with_first(text, low=(5,), high=(4,)), "the input 'ids'"),
        (with_first(text, low=(0, 0), high=(9, 9)), "the input 'ids'"),
        (with_first(digits, center=nan), "the input 'input'"),
        (with_first(digits, center=np.zeros((1, 8, 9), np.float32)), "the input 'input'"),
        (with_first(digits, spread=np.zeros((1, 8, 8), np.float32)), "the input 'input'"),
        (with_first(digits, components=np.zeros((2, 9), np.float32)), "the input 'input'"),
        (replace(digits, high=nan[0]), "range of outputs"),
        (replace(text, parts=text.parts[:1]), "the inputs that it names"),
        (replace(text, longest={}), "the inputs that it names"),
    ):
        with pytest.raises(BundleError, match=message):
            decode_envelope(encode_envelope(damaged))
    assert isinstance(text.parts[0], Ids)
    for content in (b"words", encode_envelope(digits)[:-9]):
        with pytest.raises(BundleError, match="is damaged or not an envelope"):
            decode_envelope(content)


@fuzz(150)
@given(st.data())
def test_mutated_files_are_refused_or_judge_without_failing(data: st.DataObject) -> None:
    for content, queries in SMALL:
        try:
            envelope = decode_envelope(data.draw(mutated(st.just(content))))
        except BundleError:
            continue
        assert envelope.unlike(queries).shape == (3,)


SMALL = [
    (encode_envelope(fitted(kind, 40, 10)), KINDS[kind].draw(3, 0)) for kind in ("text", "features")
]
