"""A user's own engine, and its options, serve as built-in ones do.

On Ray, Ray is the engine; simulated instances have none.
"""

import re
from pathlib import Path

import numpy as np
import pytest

from commands import Here, assert_refused
from parity_models.bundle.bundle import open_bundle
from parity_models.errors import UserError
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.options import EngineChoice
from parity_models.serving.server import ServeOptions, Server
from served import predictions, queries

pytestmark = pytest.mark.slow

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "extend-serving.md"


ENGINE, FACELESS = "engine_of_the_guide:Threads", "engine_of_the_guide:Faceless"
FACELESS_TOO = """

class Faceless(Threads):
    name, refuses = "faceless", {"ui": "its servers have no page"}
"""


@pytest.fixture(autouse=True)
def guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine of the guide can be imported, and one of its kind that refuses an option."""
    section = GUIDE.read_text().partition("\n## An engine\n")[2]
    (code,) = re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    (tmp_path / "engine_of_the_guide.py").write_text(code + FACELESS_TOO)
    monkeypatch.syspath_prepend(str(tmp_path))


async def test_the_engine_of_the_guide_serves(bundle: Path) -> None:
    engine = EngineChoice(ENGINE, {"called": "mine"})
    options = ServeOptions(engine=engine, port=0, policy=PolicyChoice("replication"))
    async with Server(open_bundle(bundle), options) as server:
        rows = queries(20)
        answers = await server.deployment.frontend.infer(rows)
        np.testing.assert_allclose(answers.outputs, predictions(rows), rtol=1e-3, atol=1e-5)


def test_it_is_checked_as_it_says(bundle: Path, parm_here: Here) -> None:
    with pytest.raises(UserError, match="called must be a text; got 7"):
        EngineChoice(ENGINE, {"called": 7})
    with pytest.raises(
        UserError, match=r"instances is not an option of the engine .*; it has called"
    ):
        EngineChoice(ENGINE, {"instances": 2})
    with pytest.raises(UserError, match="cannot be the engine: it must be a subclass of"):
        EngineChoice("own_policy:Again")
    with pytest.raises(UserError, match=r"there is no engine 'lokal'; .*; did you mean local"):
        EngineChoice("lokal")
    for flags, reason in [
        (("--engine", f"{ENGINE}@address=auto"), "address is not an option of the engine"),
        (("--engine", "lokal"), "; did you mean local?"),
        (("--called", "mine"), "No such option '--called'"),
        (("--engine", ENGINE, "--faults", "{}"), "faults are not for the engine"),
    ]:
        assert_refused(parm_here("serve", bundle, *flags), reason)


def test_an_engine_says_what_has_no_effect_with_it(bundle: Path, parm_here: Here) -> None:
    said = f"leave --ui out with the engine {FACELESS}: its servers have no page"
    assert_refused(parm_here("serve", bundle, "--engine", FACELESS, "--ui"), said)
