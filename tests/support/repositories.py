"""Folders of bundles whose versions can be told apart by what they predict, and their servers."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from onnx_models import linear_model
from parity_models.bundle.bundle import NewModel, write_bundle
from served import ServerProcess, infer_message

INPUTS, OUTPUTS = 8, 4
WEIGHTS = np.random.default_rng(3).normal(size=(INPUTS, OUTPUTS)).astype(np.float32)


def write_version(repository: Path, name: str, version: str, times: float = 1.0) -> Path:
    """A version that predicts `times` what the others do: the same class, unless it is negative."""
    onnx = repository.parent / f"{name}-{version}.onnx"
    linear_model(onnx, (INPUTS,), (OUTPUTS,), np.float32(times) * WEIGHTS)
    folder = repository / name / version
    folder.parent.mkdir(parents=True, exist_ok=True)
    return write_bundle(folder, deployed=NewModel(onnx, "linear"), name="another").path


TOKEN = "of-an-administrator"
ADMINISTRATOR = {"authorization": f"Bearer {TOKEN}"}
ROWS = np.random.default_rng(1).normal(size=(3, INPUTS)).astype(np.float32)


class Repository:
    """A folder and the server of it."""

    def __init__(self, folder: Path, server: ServerProcess) -> None:
        self.folder = folder
        self.server = server
        self.http: Any = triton_http.InferenceServerClient(server.url.removeprefix("http://"))
        self.grpc: Any = triton_grpc.InferenceServerClient(server.grpc_address)

    def state(self, name: str, version: str) -> tuple[str, str]:
        """State and reason in the index."""
        for each in self.http.get_model_repository_index():
            if (each["name"], each["version"]) == (name, version):
                return each["state"], each.get("reason", "")
        raise AssertionError(f"{name} {version} is not in the index")

    def load(self, name: str) -> None:
        """As load_model, from any thread."""
        url = f"{self.server.url}/v2/repository/models/{name}/load"
        assert httpx.post(url, json={}, headers=ADMINISTRATOR, timeout=30).status_code == 200

    def infer(self, name: str, version: str = "") -> tuple[str, float]:
        """The version that answers, and how many times the weights it has."""
        found = ask(self.server.url, name, version)
        return found["model_version"], times_of(found["outputs"][0]["data"])


def administered(folder: Path) -> tuple[str, ...]:
    """Options of a server with an administrator, whose token is in a file in `folder`."""
    file = folder / "administrators"
    file.write_text(f"{TOKEN}\n")
    return "--admin-tokens", str(file)


def ask(url: str, name: str, version: str = "", client: Any = httpx) -> dict[str, Any]:
    path = f"/v2/models/{name}/versions/{version}" if version else f"/v2/models/{name}"
    response = client.post(f"{url}{path}/infer", json=infer_message(ROWS), timeout=20)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def times_of(data: list[float]) -> float:
    """Return the factor of the weights that made all predictions; fails for mixed ones."""
    ratios = np.array(data).reshape(len(ROWS), -1) / (ROWS @ WEIGHTS)
    np.testing.assert_allclose(ratios, ratios[0, 0], rtol=1e-3)
    return round(float(ratios[0, 0]), 3)
