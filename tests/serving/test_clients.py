"""The guides' clients, and their servers in other programs, run as written."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import parity_models
from onnx_models import graph_model
from parity_models.bundle.bundle import NewModel, write_bundle
from parity_models.errors import UserError
from parity_models.serving.errors import InvalidRequestError, UnavailableError
from parity_models.serving.server import _as_array
from served import ServerProcess

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "how-to"
SHAPE = (1, 8, 8)
WEIGHTS = np.random.default_rng(1).normal(size=(64, 10)).astype(np.float32)
ROWS = np.random.default_rng(2).normal(size=(100, *SHAPE)).astype(np.float32)
SCORES = ROWS.reshape(100, 64) @ WEIGHTS


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the tutorial's `own` is, with a model that needs no training."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "own").mkdir()
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
    ]
    image, scores = (TensorProto.FLOAT, ["n", *SHAPE]), (TensorProto.FLOAT, ["n", 10])
    file = folder / "own" / "model.onnx"
    file.write_bytes(graph_model(nodes, {"image": image}, {"scores": scores}, {"weights": WEIGHTS}))
    write_bundle(folder / "own" / "bundle", deployed=NewModel(file, "linear"))
    np.save(folder / "own" / "test.npy", ROWS)
    return folder


@pytest.fixture(scope="module")
def server(own: Path) -> Iterator[ServerProcess]:
    with ServerProcess(str(own / "own" / "bundle"), "--grpc-port", "0") as server:
        yield server


def blocks(page: str, language: str) -> list[str]:
    """The code of this language on a page; files that it shows are ``` { .python }."""
    text = (GUIDES / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("code", blocks("serve.md", "python"), ids=["0", "1", "2"])
def test_the_clients_of_the_guide_get_their_answers(
    server: ServerProcess, own: Path, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = code.replace("127.0.0.1:8000", server.url.removeprefix("http://"))
    monkeypatch.chdir(own)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(code.replace("127.0.0.1:8001", server.grpc_address), names)
    expected = SCORES[: len(names["scores"])]
    assert len(expected) in (2, 100)
    np.testing.assert_allclose(names["scores"], expected, rtol=1e-4, atol=1e-4)
    assert names.get("source", "model,model") == "model,model"


def test_curl_gets_its_answers(server: ServerProcess, own: Path) -> None:
    (script,) = blocks("serve.md", "bash")
    script = script.replace("http://127.0.0.1:8000", server.url)
    python = str(Path(sys.executable).parent)
    done = subprocess.run(
        ["bash", "-ec", script],
        cwd=own,
        env={**os.environ, "PATH": f"{python}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert '"ready":true' in done.stdout
    assert '"source":"model,model"' in done.stdout
    assert "parm_requests_total" in done.stdout


async def test_a_block_serves_and_answers_calls(own: Path) -> None:
    async with parity_models.serve(own / "own" / "bundle", instances=1, port=None) as serving:
        assert serving.deployment.frontend.ready
        for inputs in (ROWS[:4], {"image": ROWS[:4].astype(np.float64)}):
            predicted = await serving.predict(inputs, exact=True)
            np.testing.assert_allclose(predicted.output, SCORES[:4], rtol=1e-4, atol=1e-4)
            assert predicted.sources == ("model",) * 4
        wrong: tuple[tuple[Any, str], ...] = (
            (ROWS[0], "has shape"),
            ({"picture": ROWS[:1]}, "has no input 'picture'"),
            (np.array([["a"]]), "cannot become that"),
            ([[0.0], [0.0, 1.0]], "inhomogeneous"),
        )
        with pytest.raises(InvalidRequestError, match="timeout is not a number"):
            await serving.predict(ROWS[:1], timeout=np.nan)
        for inputs, reason in wrong:
            with pytest.raises(InvalidRequestError, match=reason):
                await serving.predict(inputs)
    with pytest.raises(UnavailableError):
        await serving.predict(ROWS[:1])


def test_integers_do_not_wrap_around() -> None:
    assert _as_array("x", [7, -7], np.dtype(np.int8)).tolist() == [7, -7]
    for values, dtype in (([300], np.int8), ([2**40], np.int32), ([2**63], np.int64)):
        with pytest.raises(InvalidRequestError, match=f"'x' has numbers beyond {np.dtype(dtype)}"):
            _as_array("x", values, np.dtype(dtype))


def test_a_program_without_an_event_loop_is_served_too(own: Path) -> None:
    with parity_models.serve(own / "own" / "bundle", instances=1, policy="none") as server:
        assert server.url == ""
        with ThreadPoolExecutor(4) as threads:
            for predicted in threads.map(server.predict, [ROWS[:4]] * 8):
                np.testing.assert_allclose(predicted.output, SCORES[:4], rtol=1e-4, atol=1e-4)
                assert predicted.sources == ("model",) * 4
        with pytest.raises(InvalidRequestError, match="has shape"):
            server.predict(ROWS[0])
    for other in (server, parity_models.serve(own / "own" / "bundle")):
        with pytest.raises(UnavailableError, match="only while its block does"):
            other.predict(ROWS)
    with pytest.raises(UserError, match="needs a parity model"):
        parity_models.serve(own / "own" / "bundle", policy="parity").__enter__()


def test_the_program_of_the_guide_runs(own: Path) -> None:
    (program,) = blocks("embed.md", "python")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=own, capture_output=True, text=True, timeout=120
    )
    assert str(SCORES[:2].argmax(axis=1)) in done.stdout, done.stderr
