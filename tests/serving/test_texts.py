"""Texts: a scikit-learn pipeline over strings is served to every client, and put in front of."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

import parity_models as pm
from commands import Here, assert_refused, succeeded
from fleet_servers import Parm
from parity_models.bundle.bundle import Bundle, NewModel, write_bundle
from parity_models.bundle.servable import make_bundle
from parity_models.codes import CodeSpec
from parity_models.errors import BundleError, ModelError
from parity_models.serving.errors import InvalidRequestError
from parity_models.tensors.texts import MAX_TEXT
from served import INFER, ServerProcess
from string_models import exported, predict, texts, write_string_bundle
from triton_requests import triton_inputs

TEXTS = texts(5, seed=7)
STRANGE = np.array([["größer 😀"], [""], ["a\0b"], [MAX_TEXT // 2 * "ö"]], object)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_string_bundle(tmp_path_factory.mktemp("strings"))


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[ServerProcess]:
    with ServerProcess(str(bundle.path), "--instances", "2", "--grpc-port", "0") as process:
        yield process


def message(data: object, rows: int) -> dict[str, Any]:
    tensor = {"name": "text", "shape": [rows, 1], "datatype": "BYTES", "data": data}
    return {"inputs": [tensor]}


def assert_right(label: list[Any], probabilities: Any, rows: Any = TEXTS) -> None:
    expected = predict(rows)
    assert [x.decode() if isinstance(x, bytes) else x for x in label] == [*expected["label"]]
    found = np.reshape(probabilities, expected["probabilities"].shape)
    np.testing.assert_allclose(found, expected["probabilities"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [TEXTS, STRANGE])
def test_tritonclient_sends_texts_and_gets_labels(triton: Any, rows: Any) -> None:
    answer = triton.infer("model", triton_inputs(triton, {"text": rows}))
    assert_right(answer.as_numpy("label").tolist(), answer.as_numpy("probabilities"), rows)


@pytest.mark.slow
@pytest.mark.parametrize("nested", [False, True])
def test_json_holds_strings(server: ServerProcess, nested: bool) -> None:
    data = TEXTS.tolist() if nested else TEXTS.ravel().tolist()
    answer = httpx.post(f"{server.url}{INFER}", json=message(data, len(TEXTS)))
    assert answer.status_code == 200, answer.text
    label, probabilities = answer.json()["outputs"]
    assert (label["datatype"], probabilities["datatype"]) == ("BYTES", "FP32")
    assert_right(label["data"], probabilities["data"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "why"),
    [
        (["a"], "not only strings; it must be flat, with 2 elements, or nested as [2, 1]"),
        ([["a", "b"]], "must be flat, with 2 elements"),
        (["a", 1], "has a int, not a text"),
        (["a", "b", "c"], "must be flat, with 2 elements"),
        (["a", 2**20 * "b"], f"has a text of {2**20} bytes; a text has {MAX_TEXT} at most"),
        (["a", (MAX_TEXT // 2 + 1) * "ä"], f"a text has {MAX_TEXT} at most"),
    ],
)
def test_strings_that_do_not_fit_are_refused(server: ServerProcess, data: Any, why: str) -> None:
    answer = httpx.post(f"{server.url}{INFER}", json=message(data, 2))
    assert (answer.status_code, why in answer.json()["error"]) == (400, True), answer.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\xff\xfe", "has a text that is not UTF-8: invalid start byte at its byte 0"),
        (2**20 * b"a", f"has a text of {2**20} bytes"),
    ],
)
def test_bytes_that_are_no_texts_are_refused(triton: Any, content: bytes, why: str) -> None:
    with pytest.raises(InferenceServerException, match=re.escape(why)):
        triton.infer("model", triton_inputs(triton, {"text": np.array([[content]], object)}))


@pytest.mark.slow
def test_a_load_sends_texts(server: ServerProcess, tmp_path: Path, parm_here: Here) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS[:, 0]))
    for form in ((), ("--binary",)):
        succeeded(
            parm_here(
                *("load", server.url, "--inputs", tmp_path / "texts.txt", *form),
                *("--queries", "20", "--rate", "100"),
            )
        )


@pytest.mark.slow
@pytest.mark.parametrize("over_grpc", [False, True])
def test_servers_of_texts_have_servers_in_front(bundle: Bundle, over_grpc: bool) -> None:
    with Parm(bundle.path) as model:
        deployed = model.grpc_url if over_grpc else model.url
        with ServerProcess(str(bundle.path), "--deployed", deployed, "--policy", "none") as front:
            answer = httpx.post(f"{front.url}{INFER}", json=message(TEXTS.tolist(), len(TEXTS)))
            label, probabilities = answer.json()["outputs"]
            assert_right(label["data"], probabilities["data"])


def test_only_numeric_output_is_imitated(bundle: Bundle, tmp_path: Path, parm_here: Here) -> None:
    assert bundle.manifest.imitated == "probabilities"
    (gate,) = bundle.gates.values()
    assert gate.levels[-1].coverage > 0.3
    np.save(tmp_path / "texts.npy", texts(100).astype(str))
    trained = parm_here(
        *("parity", "--model", bundle.path, "--inputs", tmp_path / "texts.npy"),
        *("--out", tmp_path / "out"),
    )
    assert_refused(trained, "holds texts, and the networks that are trained here take numbers")


async def test_from_python(bundle: Bundle) -> None:
    async with pm.serve(bundle, instances=1, port=0) as server:
        found = await server.predict({"text": TEXTS})
        assert_right([*found.outputs["label"]], found.outputs["probabilities"])
        with pytest.raises(InvalidRequestError, match="has a text without UTF-8"):
            await server.predict({"text": [["a\ud800"]]})
        with pytest.raises(InvalidRequestError, match="has a int, not a text"):
            await server.predict({"text": np.array([[1]], object)})


async def test_a_stand_in_alone_gives_the_output_that_it_imitates(bundle: Bundle) -> None:
    rows = texts(60, seed=9)
    probabilities = predict(rows)["probabilities"]
    async with pm.serve(bundle, stand_in_only=True, agreement=0, port=0) as server:
        tensor = message(rows.tolist(), 60)["inputs"]
        asked = {"inputs": tensor, "outputs": [{"name": "probabilities"}]}
        async with httpx.AsyncClient(base_url=server.url) as client:
            answer = await client.post(INFER, json=asked)
            (output,) = answer.json()["outputs"]
            found = np.reshape(output["data"], probabilities.shape)
            assert (found.argmax(axis=1) == probabilities.argmax(axis=1)).mean() > 0.6
            refused = await client.post(INFER, json={"inputs": tensor})
            assert refused.headers["x-parm-reason"] == "exact"


def test_no_code_takes_texts(tmp_path: Path) -> None:
    model = NewModel(exported(), "own")
    code = CodeSpec("stack", "separate", 2)
    with pytest.raises(BundleError, match="encoders compute with numbers; models of texts have"):
        write_bundle(tmp_path / "bundle", deployed=model, parity=[model], code=code)


def test_what_cannot_be_served_is_refused(tmp_path: Path) -> None:
    for content, why in (
        (exported(zipmap=True), "export it with options={'zipmap': False}"),
        (exported(locale="xx_YY.UTF-8"), "needs the locale xx_YY.UTF-8, which this machine lacks"),
    ):
        (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(ModelError, match=re.escape(why)):
            make_bundle(tmp_path / "model.onnx", out=tmp_path / "bundle")
