"""The envelope knows inputs unlike those that a stand-in learned from, and impossible outputs."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnx_models import linear_model
from parity_models.codes import CodeSpec
from parity_models.errors import BundleError
from parity_models.models.bundle import NewModel, open_bundle, write_bundle
from parity_models.models.envelope import Envelope, decode_envelope, encode_envelope
from parity_models.tasks import find_task
from parity_models.training import Settings, train_backup, train_deployed, train_parity
from parity_models.training.envelope import fit_envelope

Array = NDArray[Any]
RNG = np.random.default_rng(0)
DIGITS = find_task("digits").load(None)
HIGH, LOW = DIGITS.train.inputs.max(), DIGITS.train.inputs.min()


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


KINDS: dict[str, Callable[[], tuple[Array, ...]]] = {
    "digits": lambda: (DIGITS.train.inputs, DIGITS.validation.inputs, DIGITS.test.inputs),
    "pixels": lambda: tuple(
        split.inputs.reshape(len(split), -1)
        for split in (DIGITS.train, DIGITS.validation, DIGITS.test)
    ),
    "images": lambda: (images(1500), images(300), images(1000)),
    "large images": lambda: tuple(images(n, (3, 96, 96)) for n in (200, 50, 300)),
    "table": lambda: (table(3000), table(500), table(2001)),
    "sounds": lambda: (sounds(1500), sounds(300), sounds(1001)),
}


@pytest.fixture(scope="module", params=KINDS)
def fitted(request: pytest.FixtureRequest) -> tuple[Envelope, Array, Array]:
    """An envelope, the inputs it was fitted to, and others like them."""
    train, validation, test = KINDS[request.param]()
    return fit_envelope(train, validation, outputs_of(train)), train, test


def outputs_of(rows: Array) -> Array:
    return rows.reshape(len(rows), -1)[:, :3].copy()


def test_few_honest_inputs_are_called_unlike(fitted: tuple[Envelope, Array, Array]) -> None:
    envelope, _, test = fitted
    assert envelope.unlike(test).mean() <= 0.015
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
        assert envelope.unlike(np.full((2, *test.shape[1:]), value * scale, np.float32)).all()
        rows = test[:50].copy()
        rows.reshape(50, -1)[:, 7] = value * scale
        assert envelope.unlike(rows).all()


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
    assert envelope.unlike(noise).mean() > 0.9


def test_outliers_among_training_inputs_do_not_widen_the_envelope() -> None:
    train = DIGITS.train.inputs.copy()
    train[:3] = 1e6
    envelope = fit_envelope(train, DIGITS.validation.inputs, outputs_of(train))
    assert envelope.unlike(np.full((1, 1, 8, 8), 100, np.float32)).all()
    assert envelope.unlike(DIGITS.test.inputs).mean() <= 0.015


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.uint8, np.bool_])
def test_all_number_types_are_taken(dtype: type[np.generic]) -> None:
    train = RNG.integers(0, 2, (300, 6)).astype(np.float32)
    envelope = fit_envelope(train, train, train)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = train.astype(dtype)
        assert envelope.unlike(rows).mean() < 0.05
        if dtype in (np.float64, np.int64):
            rows[:] = 1e300 if dtype is np.float64 else 2**62
            assert envelope.unlike(rows).all()
        assert envelope.unlike(rows[:0]).shape == (0,)


def test_outputs_that_cannot_be_right_are_known() -> None:
    outputs = RNG.normal(size=(400, 3)).astype(np.float32) * [1, 10, 1000]
    envelope = fit_envelope(DIGITS.train.inputs[:400], DIGITS.validation.inputs, outputs)
    assert not envelope.impossible(outputs).any()
    assert not envelope.impossible(1.2 * outputs).any()
    wrong = np.zeros((6, 3), np.float32)
    wrong[0, 0], wrong[1, 1], wrong[2, 2], wrong[3, 0] = np.nan, np.inf, -np.inf, 50
    wrong[4, 2] = -3e38
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert envelope.impossible(wrong).tolist() == [True] * 5 + [False]


def test_constant_inputs_and_outputs_have_an_envelope_too() -> None:
    train = np.ones((20, 4), np.float32)
    envelope = fit_envelope(train, train, train)
    assert not envelope.unlike(train).any()
    assert envelope.unlike(100 * train).all()
    assert not envelope.impossible(train).any()
    assert envelope.impossible(1e9 * train).all()


# In the bundle


def bundle_with(envelope: Envelope, folder: Path) -> Path:
    linear_model(folder / "deployed.onnx", (1, 8, 8), (3,))
    path = folder / "bundle"
    write_bundle(path, deployed=NewModel(folder / "deployed.onnx", "linear"), envelope=envelope)
    return path


def test_an_envelope_comes_out_of_a_bundle_as_it_went_in(tmp_path: Path) -> None:
    train, test = DIGITS.train.inputs, DIGITS.test.inputs
    envelope = fit_envelope(train, DIGITS.validation.inputs, outputs_of(train))
    bundle = open_bundle(bundle_with(envelope, tmp_path))
    found = bundle.envelope()
    assert isinstance(found, Envelope)
    assert encode_envelope(found) == encode_envelope(envelope)
    both = np.concatenate([test, RNG.uniform(LOW, HIGH, test.shape).astype(np.float32)])
    np.testing.assert_array_equal(found.unlike(both), envelope.unlike(both))
    record = bundle.manifest.envelope
    assert record is not None
    assert (record.false_alarms, record.held_out) == (envelope.false_alarms, envelope.held_out)


def test_an_envelope_of_other_shapes_is_refused(tmp_path: Path) -> None:
    rows = RNG.normal(size=(50, 9)).astype(np.float32)
    with pytest.raises(BundleError, match=r"envelope.*\[9\].*\[1, 8, 8\]"):
        bundle_with(fit_envelope(rows, rows, rows[:, :3]), tmp_path)


def test_a_damaged_envelope_is_refused(tmp_path: Path) -> None:
    train = DIGITS.train.inputs
    envelope = fit_envelope(train, DIGITS.validation.inputs, outputs_of(train))
    path = bundle_with(envelope, tmp_path)
    content = (path / "envelope.msgpack").read_bytes()
    (path / "envelope.msgpack").write_bytes(content[:-1] + b"\0")
    with pytest.raises(BundleError, match=r"envelope\.msgpack"):
        open_bundle(path)


@pytest.mark.parametrize("damage", ["cut", "nan", "short", "words"])
def test_bytes_that_are_no_envelope_are_refused(damage: str) -> None:
    train = DIGITS.train.inputs
    envelope = fit_envelope(train, DIGITS.validation.inputs, outputs_of(train))
    content = encode_envelope(envelope)
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "nan":
        center = envelope.numbers.center.tobytes()
        content = content.replace(center, np.full(len(center) // 4, np.nan, "<f4").tobytes())
    elif damage == "short":
        content = content.replace(b"\x01\x08\x08", b"\x01\x08\x09")
    else:
        content = b"words"
    with pytest.raises(BundleError):
        decode_envelope(content)


@pytest.mark.slow
def test_training_records_the_envelope(tmp_path: Path) -> None:
    task, once = find_task("digits"), Settings(epochs=1)
    train, test = DIGITS.train.inputs, DIGITS.test.inputs
    deployed = train_deployed(task, DIGITS, "mlp", tmp_path / "f", once).bundle
    assert deployed.envelope() is None
    coded = train_parity(
        deployed, CodeSpec("sum", "subtraction", 2), train, tmp_path / "coded", once
    ).bundle
    backed = train_backup(coded, "linear", train, tmp_path / "backed", once).bundle
    alone = train_backup(deployed, "linear", train, tmp_path / "alone", once).bundle
    for bundle in (coded, backed, alone):
        envelope = open_bundle(bundle.path).envelope()
        assert envelope is not None
        assert envelope.unlike(test).mean() <= 0.02
        assert envelope.unlike(RNG.uniform(LOW, HIGH, test.shape).astype(np.float32)).mean() > 0.97
