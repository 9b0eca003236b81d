"""The envelope recognises queries unlike those that stand-ins learned from, and impossible
outputs."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from fuzzing import fuzz, mutated
from onnx_models import linear_model
from parity_models.errors import BundleError
from parity_models.models.bundle import NewModel, open_bundle, write_bundle
from parity_models.models.envelope import (
    Envelope,
    Ids,
    Numbers,
    decode_envelope,
    encode_envelope,
)
from parity_models.models.export import floats
from parity_models.models.queries import Named
from parity_models.models.signature import Tensor
from parity_models.training.envelope import fit_envelope

Array = NDArray[Any]
RNG = np.random.default_rng(0)
DIGITS = RNG.permutation(load_digits().images[:, None] / 16).astype(np.float32)


def images(count: int, shape: tuple[int, ...] = (3, 32, 32)) -> Array:
    """Smooth images with values from 0 to 1."""
    rows, columns = np.linspace(0, 1, shape[1])[:, None], np.linspace(0, 1, shape[2])
    waves = RNG.uniform(0, 6, (4, count, shape[0], 1, 1))
    waved = np.sin(waves[0] * rows + waves[1]) * np.cos(waves[2] * columns + waves[3])
    noisy: Array = 0.5 + 0.35 * waved + RNG.normal(0, 0.03, (count, *shape))
    return np.clip(noisy, 0, 1).astype(np.float32)


def table(count: int) -> Array:
    """Rows of features that hang together: prices, ages, flags, counts."""
    hidden = np.random.default_rng(count).normal(size=(count, 3))
    features = hidden @ np.random.default_rng(1).normal(size=(3, 20))
    features += np.random.default_rng(2).normal(0, 0.2, features.shape)
    features[:, 0] = np.exp(3 * features[:, 0] / 2 + 8)
    features[:, 1] = features[:, 1] > 1.5
    return features.astype(np.float32)


def sounds(count: int) -> Array:
    time = np.arange(400)
    tones = RNG.uniform(0.02, 0.2, (count, 2, 1)) * time + RNG.uniform(0, 6, (count, 2, 1))
    return (RNG.uniform(0.3, 1, (count, 2, 1)) * np.sin(tones)).astype(np.float32)


ONE_INPUT: dict[str, Callable[[], tuple[Array, ...]]] = {
    "digits": lambda: (DIGITS[:1200], DIGITS[1200:1400], DIGITS[1400:]),
    "pixels": lambda: tuple(
        each.reshape(len(each), -1) for each in (DIGITS[:1200], DIGITS[1200:1400], DIGITS[1400:])
    ),
    "images": lambda: (images(1500), images(300), images(1000)),
    "large images": lambda: tuple(images(n, (3, 96, 96)) for n in (200, 50, 300)),
    "table": lambda: (table(3000), table(500), table(2001)),
    "sounds": lambda: (sounds(1500), sounds(300), sounds(1001)),
}


def one_input(train: Array, held_out: Array, outputs: Array) -> Envelope:
    inputs = [floats(train.shape[1:])]
    return fit_envelope(inputs, {"input": train}, {"input": held_out}, outputs)


def unlike(envelope: Envelope, rows: Array) -> NDArray[np.bool_]:
    return envelope.unlike({"input": rows})


@pytest.fixture(scope="module", params=ONE_INPUT)
def fitted(request: pytest.FixtureRequest) -> tuple[Envelope, Array, Array]:
    """An envelope, the inputs it was fitted to, and others like them."""
    train, validation, test = ONE_INPUT[request.param]()
    return one_input(train, validation, outputs_of(train)), train, test


def outputs_of(rows: Array) -> Array:
    return rows.reshape(len(rows), -1)[:, :3].copy()


def test_few_honest_inputs_are_called_unlike(fitted: tuple[Envelope, Array, Array]) -> None:
    envelope, _, test = fitted
    assert unlike(envelope, test).mean() <= 0.015
    assert 0 <= envelope.false_alarms <= 0.02
    assert envelope.held_out > 0


@pytest.mark.parametrize("value", [100.0, -100.0, 1e30, 3e38, -3.4e38, np.nan, np.inf, -np.inf])
def test_absurd_values_are_unlike_even_one_of_them(
    fitted: tuple[Envelope, Array, Array], value: float
) -> None:
    envelope, train, test = fitted
    scale = 1 if abs(value) != 100 else float(np.abs(train).max())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert unlike(envelope, np.full((2, *test.shape[1:]), value * scale, np.float32)).all()
        rows = test[:50].copy()
        rows.reshape(50, -1)[:, 7] = value * scale
        assert unlike(envelope, rows).all()


@pytest.mark.parametrize("binary", [False, True])
def test_noise_in_range_is_unlike(fitted: tuple[Envelope, Array, Array], binary: bool) -> None:
    envelope, train, test = fitted
    low, high = train.min(axis=0), train.max(axis=0)
    if train.ndim > 2:
        low, high = np.full_like(low, train.min()), np.full_like(high, train.max())
    shares = RNG.uniform(size=(200, *test.shape[1:]))
    if binary:
        shares = (shares > 0.5).astype(float)
    noise = (low + shares * (high - low)).astype(np.float32)
    assert unlike(envelope, noise).mean() > 0.9


def test_outliers_among_training_inputs_do_not_widen_the_envelope() -> None:
    train = DIGITS[:1200].copy()
    train[:3] = 1e6
    envelope = one_input(train, DIGITS[1200:1400], outputs_of(train))
    assert unlike(envelope, np.full((1, 1, 8, 8), 10, np.float32)).all()
    assert unlike(envelope, DIGITS[1400:]).mean() <= 0.015


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.uint8, np.bool_])
def test_all_number_types_are_taken(dtype: type[np.generic]) -> None:
    train = RNG.integers(0, 2, (300, 6)).astype(np.float32)
    envelope = one_input(train, train, train)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = train.astype(dtype)
        assert unlike(envelope, rows).mean() < 0.05
        if dtype in (np.float64, np.int64):
            rows[:] = 1e300 if dtype is np.float64 else 2**62
            assert unlike(envelope, rows).all()
        assert unlike(envelope, rows[:0]).shape == (0,)


def test_outputs_that_cannot_be_right_are_known() -> None:
    outputs = RNG.normal(size=(400, 3)).astype(np.float32) * [1, 10, 1000]
    envelope = one_input(DIGITS[:400], DIGITS[1200:1400], outputs)
    assert not envelope.impossible(outputs).any()
    assert not envelope.impossible(1.2 * outputs).any()
    wrong = np.zeros((6, 3), np.float32)
    wrong[0, 0], wrong[1, 1], wrong[2, 2], wrong[3, 0] = np.nan, np.inf, -np.inf, 50
    wrong[4, 2] = -3e38
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert envelope.impossible(wrong).tolist() == [True] * 5 + [False]


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


def waves(count: int, seed: int) -> Named:
    rng = np.random.default_rng(seed)
    waves = np.sin(np.arange(300) * rng.uniform(0.05, 0.2, (count, 1)) + rng.random((count, 1)))
    lengths = rng.integers(50, 301, (count, 1))
    return {"sound": np.where(np.arange(300) < lengths, waves, 0).astype(np.float16)}


KINDS: dict[str, tuple[tuple[Tensor, ...], Callable[[int, int], Named]]] = {
    "text": (TEXT, texts),
    "features": (FEATURES, features),
    "files": (FILES, files),
    "sounds": (SOUNDS, waves),
}
OUTPUTS = np.random.default_rng(9).normal(size=(2000, 3)).astype(np.float32)


def fitted_to(kind: str) -> Envelope:
    inputs, draw = KINDS[kind]
    return fit_envelope(inputs, draw(2000, 0), draw(500, 1), OUTPUTS)


@pytest.fixture(scope="module")
def envelopes() -> dict[str, Envelope]:
    return {kind: fitted_to(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_few_honest_queries_of_any_kind_are_called_unlike(
    envelopes: dict[str, Envelope], kind: str
) -> None:
    envelope = envelopes[kind]
    assert envelope.unlike(KINDS[kind][1](2000, 2)).mean() <= 0.015
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
    envelopes: dict[str, Envelope], what: str
) -> None:
    kind, name, change = ABSURD[what]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert envelopes[kind].unlike(changed(kind, name, change)).mean() > 0.99


def whole(ids: Array) -> Named:
    return {"ids": ids, "mask": np.ones_like(ids)}


def test_texts_of_known_words_that_are_unlike_as_a_whole_are_told(
    envelopes: dict[str, Envelope],
) -> None:
    unlike = envelopes["text"].unlike
    rare = RNG.integers(WORDS // 2, WORDS, (200, LONGEST))
    assert unlike(whole(rare)).mean() > 0.95
    assert unlike(whole(np.full((1, LONGEST), 1))).all()
    words = texts(200, 5)["ids"]
    assert unlike({"ids": words, "mask": np.zeros_like(words)}).mean() > 0.9
    longer = np.pad(whole(texts(1, 0)["ids"])["ids"], ((0, 0), (0, 1)), constant_values=1)
    assert unlike(whole(longer)).all()


def test_padding_says_nothing(envelopes: dict[str, Envelope]) -> None:
    queries = texts(300, 6)
    wider = {name: np.pad(each, ((0, 0), (0, 40))) for name, each in queries.items()}
    envelope = envelopes["text"]
    np.testing.assert_array_equal(envelope.unlike(wider), envelope.unlike(queries))


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


@pytest.fixture(scope="module")
def of_digits() -> Envelope:
    return one_input(DIGITS[:1200], DIGITS[1200:1400], outputs_of(DIGITS[:1200]))


def test_an_envelope_comes_out_of_a_bundle_as_it_went_in(
    of_digits: Envelope, tmp_path: Path
) -> None:
    bundle = open_bundle(bundle_with(of_digits, tmp_path))
    found = bundle.envelope()
    assert found is not None
    assert encode_envelope(found) == encode_envelope(of_digits)
    record = bundle.manifest.envelope
    assert record is not None
    assert (record.false_alarms, record.held_out) == (of_digits.false_alarms, of_digits.held_out)
    content = (bundle.path / "envelope.msgpack").read_bytes()
    (bundle.path / "envelope.msgpack").write_bytes(content[:-1] + b"\0")
    with pytest.raises(BundleError, match=r"envelope\.msgpack"):
        open_bundle(bundle.path)


def test_the_file_of_one_input_that_earlier_versions_wrote_is_read(of_digits: Envelope) -> None:
    new = msgspec.msgpack.decode(encode_envelope(of_digits))
    (part,) = new.pop("parts")
    old = {name: part[name] for name in ("center", "spread", "components", "limits")}
    old |= {name: value for name, value in new.items() if name not in ("inputs", "longest")}
    old["shape"] = [1, 8, 8]
    found = decode_envelope(msgspec.msgpack.encode(old), of_digits.inputs)
    assert encode_envelope(found) == encode_envelope(of_digits)
    with pytest.raises(BundleError, match=r"is of inputs of shape \[1, 8, 8\]"):
        decode_envelope(msgspec.msgpack.encode(old), [floats((4,))])


def test_an_envelope_of_other_inputs_or_outputs_is_refused(
    of_digits: Envelope, envelopes: dict[str, Envelope], tmp_path: Path
) -> None:
    rows = RNG.normal(size=(50, 9)).astype(np.float32)
    for other, message in (
        (one_input(rows, rows, rows[:, :3]), r"envelope.*\[9\].*\[1, 8, 8\]"),
        (one_input(DIGITS[:50], DIGITS[:50], DIGITS[:50, 0, 0, :2]), r"shape \[2\].*\[3\]"),
        (envelopes["features"], "is of the inputs 'categories'"),
    ):
        with pytest.raises(BundleError, match=message):
            bundle_with(other, tmp_path)


@pytest.mark.parametrize("damage", ["cut", "nan", "short", "words"])
def test_bytes_that_are_no_envelope_are_refused(of_digits: Envelope, damage: str) -> None:
    content = encode_envelope(of_digits)
    (numbers,) = of_digits.parts
    assert isinstance(numbers, Numbers)
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "nan":
        center = numbers.center.tobytes()
        content = content.replace(center, np.full(len(center) // 4, np.nan, "<f4").tobytes())
    elif damage == "short":
        content = content.replace(b"\x01\x08\x08", b"\x01\x08\x09")
    else:
        content = b"words"
    with pytest.raises(BundleError):
        decode_envelope(content, of_digits.inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_it_comes_out_of_its_file_as_it_went_in(envelopes: dict[str, Envelope], kind: str) -> None:
    envelope = envelopes[kind]
    again = decode_envelope(encode_envelope(envelope), envelope.inputs)
    assert encode_envelope(again) == encode_envelope(envelope)
    queries = KINDS[kind][1](300, 8)
    np.testing.assert_array_equal(again.unlike(queries), envelope.unlike(queries))


def ids_in(envelope: Envelope) -> Ids:
    part = envelope.parts[0]
    assert isinstance(part, Ids)
    return part


def test_ids_that_cannot_be_are_refused(envelopes: dict[str, Envelope]) -> None:
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
            decode_envelope(encode_envelope(damaged), damaged.inputs)
    with pytest.raises(BundleError, match="1 inputs of 2"):
        decode_envelope(encode_envelope(replace(text, parts=text.parts[:1])), text.inputs)
    with pytest.raises(BundleError, match="axes"):
        decode_envelope(encode_envelope(replace(text, longest={})), text.inputs)


@fuzz(150)
@given(st.data())
def test_mutated_files_are_refused_or_judge_without_failing(data: st.DataObject) -> None:
    for inputs, content, queries in SMALL:
        try:
            envelope = decode_envelope(data.draw(mutated(st.just(content))), inputs)
        except BundleError:
            continue
        assert envelope.unlike(queries).shape == (3,)


SMALL = [
    (
        inputs,
        encode_envelope(fit_envelope(inputs, draw(40, 0), draw(10, 1), OUTPUTS)),
        draw(3, 0),
    )
    for inputs, draw in ((TEXT, texts), (FEATURES, features))
]
