"""Learned encoders and decoders: what a network makes of a group, in torch and when served."""

from pathlib import Path
from typing import Literal

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnx_models import linear_model
from parity_models.codes import Code, CodeSpec, Networks
from parity_models.errors import BundleError, CodeError, TrainingError, UndecodableError
from parity_models.models.bundle import Bundle, NewModel, open_bundle, write_bundle
from parity_models.training import TrainingOptions
from parity_models.training.problems import CodedNetworks
from parity_models_lab.deployed import train_deployed
from parity_models_lab.tasks import Dataset, find_task
from served import ServerProcess
from trainings import evaluate, train_parity

pytestmark = pytest.mark.slow

DIGITS = find_task("digits")


def summing(queries: NDArray[np.float32]) -> NDArray[np.float32]:
    total: NDArray[np.float32] = queries.sum(axis=1, keepdims=True)
    return total


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_a_network_encodes_batches_of_any_rank(batch: tuple[int, ...]) -> None:
    code = Code(CodeSpec("mlp", "subtraction", 3), (2, 5), (4,), Networks(encoder=summing))
    assert code.network_shapes == {"encoder": ((3, 2, 5), (1, 2, 5))}
    queries = list(np.random.default_rng(0).normal(size=(3, *batch, 2, 5)).astype(np.float32))
    np.testing.assert_allclose(
        code.encode([{"input": each} for each in queries])[0]["input"],
        sum(queries),
        rtol=1e-5,
        atol=1e-6,
    )


@given(st.integers(2, 5), st.integers(1, 3), st.data())
def test_a_learned_decoder_decodes_what_subtraction_does(
    k: int, r: int, data: st.DataObject
) -> None:
    r = min(k, r)
    seen = []

    def network(evidence: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(evidence)
        return np.ones((len(evidence), k, 3), np.float32)

    code = Code(CodeSpec("sum", "mlp", k, r), (2,), (3,), Networks(decoder=network))
    plain = Code(CodeSpec("sum", "subtraction", k, r), (2,), (3,))
    assert code.network_shapes == {"decoder": ((k + r, 4), (k, 3))}
    available = tuple(data.draw(st.lists(st.booleans(), min_size=k, max_size=k)))
    parities = tuple(data.draw(st.lists(st.booleans(), min_size=r, max_size=r)))
    values = np.random.default_rng(0).normal(size=(k + r, 7, 3)).astype(np.float32)
    predictions = [v if here else None for v, here in zip(values, available, strict=False)]
    outputs = [v if here else None for v, here in zip(values[k:], parities, strict=True)]
    assert code.decodable(available, parities) == plain.decodable(available, parities)
    try:
        expected = plain.decode(predictions, outputs)
    except UndecodableError:
        with pytest.raises(UndecodableError, match="mlp decoder"):
            code.decode(predictions, outputs)
        return
    decoded = code.decode(predictions, outputs)
    assert decoded.keys() == expected.keys()
    for slot, value in expected.items():
        np.testing.assert_array_equal(decoded[slot], value + 1)
        np.testing.assert_array_equal(seen[0][:, slot, :-1], value)
        assert not seen[0][:, slot, -1].any()


def test_a_code_without_its_network_knows_masks_and_shapes_only() -> None:
    code = Code(CodeSpec("mlp", "mlp", 2), (8,), (3,))
    assert code.decodable((True, False), (True,)) == (False, True)
    with pytest.raises(CodeError, match="mlp encoder is learned"):
        code.encode([{"input": np.zeros(8, np.float32)}] * 2)
    with pytest.raises(CodeError, match="mlp decoder is learned"):
        code.decode([None, np.zeros(3, np.float32)], [np.zeros(3, np.float32)])


@pytest.mark.parametrize("encoder", ["mlp", "convolution"])
def test_untrained_coders_are_the_sum_and_subtraction(encoder: str) -> None:
    code = Code(CodeSpec(encoder, "mlp", 3, 2), (1, 6, 6), (4,))
    learned = CodedNetworks(torch.nn.ModuleList(), code).code
    plain = Code(CodeSpec("sum", "subtraction", 3, 2), (1, 6, 6), (4,))
    queries, outputs = torch.randn(3, 5, 1, 6, 6), torch.randn(5, 5, 4)
    batches = [{"input": each} for each in queries]
    torch.testing.assert_close(learned.encode(batches), plain.encode(batches))
    for available in ([None, outputs[0], None], [outputs[0], outputs[1], None]):
        found = learned.decode(available, list(outputs[3:]))
        torch.testing.assert_close(found, plain.decode(available, list(outputs[3:])))


def test_a_perceptron_over_very_large_queries_is_refused() -> None:
    code = Code(CodeSpec("mlp", "separate", 2), (3, 512, 512), (4,))
    with pytest.raises(TrainingError, match="use the convolution"):
        CodedNetworks(torch.nn.ModuleList(), code)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return DIGITS.load(None)


@pytest.fixture(scope="module")
def deployed(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("deployed") / "mlp"
    return train_deployed(DIGITS, digits, "mlp", out, TrainingOptions(epochs=8))


@pytest.fixture(scope="module")
def trained(deployed: Bundle, digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return train_parity(
        deployed,
        CodeSpec("mlp", "mlp", 2, 2),
        digits.train.inputs,
        tmp_path_factory.mktemp("trained") / "bundle",
        TrainingOptions(epochs=8),
        network="mlp",
        validation=digits.validation,
    )


def test_learned_coders_reconstruct_one_and_two(trained: Bundle, digits: Dataset) -> None:
    measured = evaluate(open_bundle(trained.path), digits.test.inputs, digits.test.labels)
    one, two = measured.degraded_by_unavailable
    assert one > 0.75
    assert two > 0.5


@pytest.mark.parametrize("encoder", ["mlp", "convolution"])
def test_the_bundle_encodes_as_training_does(
    encoder: str, deployed: Bundle, digits: Dataset, tmp_path: Path
) -> None:
    bundle = train_parity(
        deployed,
        CodeSpec(encoder, "separate", 2),
        digits.train.inputs,
        tmp_path / "bundle",
        TrainingOptions(epochs=1),
        network="mlp",
        validation=digits.validation,
    )
    assert set(bundle.manifest.coders) == {"encoder"}
    code = bundle.code()
    assert code is not None
    first, second = digits.test.inputs[:4], digits.test.inputs[4:8]
    (parity,) = code.encode([{"input": first}, {"input": second}])
    assert parity["input"].shape == (4, *code.parity_shape)
    assert not np.allclose(parity["input"], first + second)
    (alone,) = code.encode([{"input": first[0]}, {"input": second[0]}])
    np.testing.assert_allclose(alone["input"], parity["input"][0], rtol=1e-4, atol=1e-5)


def test_learned_coders_serve_without_a_failure(trained: Bundle, digits: Dataset) -> None:
    rows = digits.test.inputs[:6]
    coded = ("--policy", "parity@max-group-wait=1")
    with ServerProcess(str(trained.path), "--instances", "2", *coded) as server:
        for _ in range(5):
            answer = httpx.post(
                f"{server.url}/v2/models/model/infer",
                json={
                    "inputs": [
                        {
                            "name": "input",
                            "datatype": "FP32",
                            "shape": list(rows.shape),
                            "data": rows.ravel().tolist(),
                        }
                    ]
                },
            )
            assert answer.status_code == 200
        assert server.metric("parm_encode_seconds_count") > 0


def linear(folder: Path, taken: tuple[int, ...], given: tuple[int, ...]) -> NewModel:
    path = folder / f"{taken}{given}.onnx"
    linear_model(path, taken, given)
    return NewModel(path, "linear")


def test_bundles_whose_coders_do_not_fit_the_code_are_refused(tmp_path: Path) -> None:
    model = linear(tmp_path, (6,), (3,))
    encoder = linear(tmp_path, (2, 6), (1, 6))
    cases: list[tuple[CodeSpec, dict[Literal["encoder", "decoder"], NewModel], str]] = [
        (CodeSpec("mlp", "subtraction", 2), {}, r"needs \['encoder'\]"),
        (CodeSpec("sum", "subtraction", 2), {"encoder": encoder}, r"needs \[\]"),
        (CodeSpec("mlp", "subtraction", 2), {"encoder": model}, r"encoder.onnx has input"),
        (CodeSpec("mlp", "mlp", 2), {"encoder": encoder, "decoder": model}, r"decoder.onnx has"),
    ]
    for spec, coders, reason in cases:
        with pytest.raises(BundleError, match=reason):
            write_bundle(
                tmp_path / "bundle", deployed=model, parity=[model], coders=coders, code=spec
            )
