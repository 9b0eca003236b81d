"""Every policy and dispatch rule of `parm serve` gets its answers from where it should, and so does
a user's own policy, code or engine.

On Ray, Ray is the engine; simulated instances have none.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import served
from commands import Here, assert_refused
from own_coders import DECODER, ENCODER
from own_policy import POLICY
from parity_models import CodeSpec, PolicyChoice, ServeOptions, Server, UserError, open_bundle
from parity_models.serving.options import EngineChoice
from served import ServerProcess, predictions, queries, write_linear_bundle

pytestmark = pytest.mark.slow

SUPPORT = Path(__file__).parent.parent / "support"

ROWS = 8
"""More than there are instances: each of them runs an original at first."""


def slow(*workers: int, seconds: float = 60.0) -> str:
    """A fault plan in which every unit on these workers takes so much longer."""
    delay = {"type": "constant", "seconds": seconds}
    spell = {"mean_between": 0, "mean_length": 1000, "delay": delay, "workers": workers}
    return json.dumps({"slowdowns": spell})


UNGATED = ("--agreement", "0")


@contextmanager
def serving(bundle: Path, *arguments: str) -> Iterator[tuple[ServerProcess, httpx.Client]]:
    with (
        ServerProcess(str(bundle), "--deadline", "90", "--instances", "3", *arguments) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        yield server, client


def infer(client: httpx.Client, seed: int, rows: int = ROWS, **parameters: Any) -> list[str]:
    """Ask, and check that every answer is the one its source gives; returns the sources."""
    answer = served.infer(client, queries(rows, seed), **parameters)
    return served.sources_of(answer.raise_for_status())


def infer_until(server: ServerProcess, client: httpx.Client, *wanted: str) -> None:
    """Ask until a request's answers come from just these sources, and check the metrics.

    Faults take a moment to reach the workers, and adaptive parity one to learn what late is.
    """
    counts: Counter[str] = Counter()
    for seed in range(100):
        sources = infer(client, seed)
        counts.update(sources)
        if set(sources) == set(wanted):
            break
    else:
        pytest.fail(f"no request was answered from {wanted}, but {counts}")
    for source in wanted:
        counted = server.metric(f'parm_query_latency_seconds_count{{source="{source}"}}')
        assert counted == counts[source]


# A worker that takes a minute would let the client give up, if an answer needed it.


@pytest.mark.parametrize(
    ("policy", "seconds", "rule"),
    [
        ("none", 0.1, "latency-aware"),
        ("equal-resources", 0.1, "single-queue"),
        ("replication@copies=2", 60.0, "latency-aware"),
        ("hedging@hedge-delay=50", 60.0, "single-queue"),
    ],
)
def test_the_model_answers_everything(backed: Path, policy: str, seconds: float, rule: str) -> None:
    options = ("--policy", policy, "--dispatch", rule, "--faults", slow(0, seconds=seconds))
    with serving(backed, *options) as (server, client):
        for seed in range(3):
            assert infer(client, seed) == ["model"] * ROWS
        assert server.metric("parm_query_latency_seconds_count") == 3 * ROWS


def test_the_backup_answers_where_all_of_the_model_s_workers_are_slow(backed: Path) -> None:
    arguments = ("--policy", "approximate-backup", *UNGATED, "--faults", slow(0, 1))
    with serving(backed, *arguments) as (server, client):
        infer_until(server, client, "backup")
        assert server.metric('parm_instances_up{role="backup"}') == 1


def test_a_cheap_backup_answers_first_within_the_budget(tmp_path: Path) -> None:
    backed = write_linear_bundle(tmp_path, coded=False, backed=True)
    times = {"deployed": 0.02, "backup": 0.001}
    plan = {
        "service_times": {role: {"type": "constant", "seconds": s} for role, s in times.items()},
        "coverages": {"backup": 0.5},
        "doubts": [0.01],
    }
    options = ("--policy", "adaptive", "--differ", "10%", "--faults", json.dumps(plan))
    with serving(backed, *options) as (server, client):
        sources = Counter(source for seed in range(30) for source in infer(client, seed))
        assert sources["backup"] > 0
        tasks = 'parm_redundant_tasks_total{fate="answered",kind="backup"}'
        assert server.metric(tasks) == sources["backup"]
        assert server.metric("parm_differ_budget") == 0.1
        estimate = server.metric("parm_differ_estimate")
        assert estimate == pytest.approx(0.01 * sources["backup"] / sources.total())
        assert infer(client, 9, redundancy="exact") == ["model"] * ROWS


@pytest.mark.parametrize("pool", ["shared", "dedicated"])
def test_a_parity_model_answers_for_a_slow_worker(backed: Path, pool: str) -> None:
    arguments = ("--policy", f"parity@pool={pool}", *UNGATED, "--faults", slow(0))
    with serving(backed, *arguments) as (server, client):
        infer_until(server, client, "model", "reconstruction")


def test_an_own_policy_is_served(backed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SUPPORT)  # where their modules are found
    flags = ("--policy", f"{POLICY}@again-after=1", "--dispatch", "latency-aware")
    with serving(backed, *flags, "--faults", slow(0)) as (server, client):
        assert set(infer(client, 0, rows=2)) == {"model"}
        assert server.metric("parm_query_latency_seconds_count") == 2


def test_an_own_code_reconstructs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SUPPORT)
    code = CodeSpec(ENCODER, DECODER, 2, 1, {"gain": 2.0}, {"divisor": 2.0})
    own = write_linear_bundle(tmp_path, code=code)
    allowed = ("--allow-code", ENCODER, "--allow-code", DECODER)
    arguments = ("--policy", "parity", *UNGATED, *allowed, "--faults", slow(0))
    with serving(own, *arguments) as (server, client):
        infer_until(server, client, "model", "reconstruction")


# A user's own engine


GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "extend-serving.md"


ENGINE, FACELESS = "engine_of_the_guide:Threads", "engine_of_the_guide:Faceless"
FACELESS_TOO = """

class Faceless(Threads):
    name, refuses = "faceless", {"ui": "its servers have no page"}
"""


@pytest.fixture
def guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine of the guide can be imported, and one of its kind that refuses an option."""
    section = GUIDE.read_text().partition("\n## An engine\n")[2]
    (code,) = re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    (tmp_path / "engine_of_the_guide.py").write_text(code + FACELESS_TOO)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("guide")
async def test_the_engine_of_the_guide_serves(bundle: Path) -> None:
    engine = EngineChoice(ENGINE, {"called": "mine"})
    options = ServeOptions(engine=engine, port=0, policy=PolicyChoice("replication"))
    async with Server(open_bundle(bundle), options) as server:
        rows = queries(20)
        answers = await server.deployment.frontend.infer(rows)
        np.testing.assert_allclose(answers.outputs, predictions(rows), rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("guide")
def test_it_is_checked_as_it_says(bundle: Path, parm_here: Here) -> None:
    with pytest.raises(UserError, match="called must be a text; got 7"):
        EngineChoice(ENGINE, {"called": 7})
    with pytest.raises(UserError, match="cannot be the engine: it must be a subclass of"):
        EngineChoice("own_policy:Again")
    for flags, reason in [
        (("--engine", f"{ENGINE}@address=auto"), "address is not an option of the engine"),
        (("--engine", "lokal"), "there is no engine 'lokal'; "),
        (("--called", "mine"), "No such option '--called'"),
        (("--engine", ENGINE, "--faults", "{}"), "faults are not for the engine"),
    ]:
        assert_refused(parm_here("serve", bundle, *flags), reason)


@pytest.mark.usefixtures("guide")
def test_an_engine_says_what_has_no_effect_with_it(bundle: Path, parm_here: Here) -> None:
    said = f"leave --ui out with the engine {FACELESS}: its servers have no page"
    assert_refused(parm_here("serve", bundle, "--engine", FACELESS, "--ui"), said)
