"""The threads engine runs units in threads of this process, and leaves none behind."""

import threading
from pathlib import Path

import numpy as np
import pytest

import parity_models
from engine_conformance import BOTH, DEPLOYED, EngineConformance, Events, Fleet, row
from local_engines import FOREVER, parts
from onnx_models import moody_model
from parity_models.bundle.onnx_model import PinnedModel
from parity_models.errors import UserError
from parity_models.serving.engine import Engine, Placement
from parity_models.serving.local.thread_engine import ThreadEngine
from served import predictions, queries, until


class Threads(Fleet):
    def __init__(self, model: Path) -> None:
        self._models = dict.fromkeys(("deployed", "parity-0"), PinnedModel.of(model))

    def engine(self, unit_timeout: float = 60.0) -> ThreadEngine:
        return ThreadEngine(None, parts(self._models, unit_timeout=unit_timeout))

    def kill(self, engine: Engine, number: int) -> None:
        """A thread cannot be killed: the engine gives it up, as it does one that hangs."""
        engine.recycle(list(engine.running())[number], "hangs")


@pytest.fixture
def fleet(tmp_path: Path) -> Threads:
    moody_model(tmp_path / "m.onnx")
    return Threads(tmp_path / "m.onnx")


class TestThreadEngine(EngineConformance):
    """It passes what every engine must."""


def threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("parm-")]


async def test_a_unit_that_hangs_is_given_up_and_its_thread_ends(fleet: Threads) -> None:
    engine, events = fleet.engine(unit_timeout=0.3), Events()
    await engine.start([DEPLOYED, BOTH], events)
    first = (await events.arrival()).instance
    await events.arrival()
    engine.run(first, 1, "deployed", [row(0, FOREVER)])
    assert "had unit 1 for more than 0.3 s" in await events.departure(first)
    assert (await events.arrival()).roles == DEPLOYED
    await engine.stop()
    until(lambda: not threads(), "a thread is left")


@pytest.mark.slow
def test_a_bundle_is_served_by_name_without_a_process(bundle: Path) -> None:
    rows = queries(20)
    with parity_models.serve(bundle, engine="threads", instances=2) as server:
        np.testing.assert_allclose(
            server.predict(rows).output, predictions(rows), rtol=1e-3, atol=1e-5
        )
    with pytest.raises(UserError, match="a server starts once"):
        server.__enter__()
    with pytest.raises(UserError, match="placements are not for the engine threads"):
        parity_models.serve(bundle, engine="threads", placements=(Placement(),))
