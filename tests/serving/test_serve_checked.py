"""A server runs the bundle that it opened and checked, whatever happens to the folder."""

import asyncio
import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from linear_bundles import linear_bundle
from onnx_models import linear_model
from parity_models import PolicyChoice, ServeOptions, Server, __version__
from parity_models.bundle.bundle import MANIFEST, Bundle, open_bundle
from parity_models.errors import ModelError
from parity_models.roles import DEPLOYED
from parity_models.serving.deployment import golden_of
from parity_models.simulation.emulation import FaultPlan, Lie
from served import SUM

pytestmark = pytest.mark.slow

PARITY = ServeOptions(policy=PolicyChoice("parity"), port=0, share_groups=True)


def write(folder: Path, weight: float) -> Bundle:
    """A bundle of a model whose outputs are the sum of its inputs, times `weight`."""
    weights = np.full((4, 2), weight, np.float32)
    return linear_bundle(folder, weights, [weights], SUM)


def overwrite(folder: Path) -> None:
    linear_model(folder / "other.onnx", (4,), (2,), np.full((4, 2), -7, np.float32))
    for file in (folder / "bundle").glob("*.onnx"):
        file.write_bytes((folder / "other.onnx").read_bytes())


def delete(folder: Path) -> None:
    shutil.rmtree(folder / "bundle")
    (folder / "bundle").mkdir()


@pytest.mark.parametrize("change", [partial(write, weight=-7), overwrite, delete])
async def test_a_changed_bundle_is_refused(tmp_path: Path, change: Callable[[Path], Any]) -> None:
    write(tmp_path, 1)
    server = Server(open_bundle(tmp_path / "bundle"), PARITY)
    change(tmp_path)
    with pytest.raises(ModelError, match=r"deployed.onnx was changed|cannot read .*deployed.onnx"):
        await server.start()


async def test_the_bundle_s_digest_is_in_metadata_and_metrics(tmp_path: Path) -> None:
    bundle = write(tmp_path, 1)
    digest = json.loads((bundle.path / MANIFEST).read_text())["digest"]
    assert open_bundle(bundle.path).digest == bundle.digest == digest
    async with Server(bundle, PARITY) as server, httpx.AsyncClient(base_url=server.url) as client:
        for path in ("/v2", "/v2/models/model"):
            assert (await client.get(path)).json()["bundle_digest"] == digest
        (line,) = re.findall("parm_build_info.+", (await client.get("/metrics")).text)[2:]
        assert line == f'parm_build_info{{bundle_digest="{digest}",version="{__version__}"}} 1.0'


def test_unrecognisable_model_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle = write(tmp_path, np.inf)
    models = {"deployed": bundle.pinned(bundle.manifest.deployed)}
    assert not golden_of(bundle, models, [frozenset({"deployed"})])
    assert "the role deployed has no output to compare" in caplog.text


@pytest.mark.parametrize("policy", ["none", "adaptive"])
async def test_a_worker_that_runs_another_model_is_replaced(tmp_path: Path, policy: str) -> None:
    bundle = write(tmp_path, 1)
    lie = tmp_path / "lie.onnx"
    options = ServeOptions(
        policy=PolicyChoice(policy), instances=2, port=0, faults=FaultPlan(lies=(Lie(0, str(lie)),))
    )
    async with Server(bundle, options) as server:
        server.deployment.begin_faults()
        linear_model(lie, (4,), (2,), np.full((4, 2), -7, np.float32))
        # One query for each instance at a time: alone, it would go to the fastest, time and again.
        rows = np.ones((server.deployment.frontend.instances_up()[DEPLOYED], 4), np.float32)
        async with asyncio.timeout(120):
            for _ in range(500):
                await server.deployment.frontend.infer(rows)
                if server.deployment.frontend.quarantined:
                    break
            lie.unlink()
            assert list(server.deployment.frontend.quarantined) == ["0"]
            async with httpx.AsyncClient(base_url=server.url) as client:
                about = (await client.get("/v2/models/model")).json()
            assert about["quarantined_instances"] == ["0"]
            while not any(each.startswith("0.") for each in server.deployment.engine.running()):
                await asyncio.sleep(0.01)
            for _ in range(300):
                answers = await server.deployment.frontend.infer(rows)
                np.testing.assert_allclose(answers.outputs, 4, rtol=1e-5)
        assert list(server.deployment.frontend.quarantined) == ["0"]
