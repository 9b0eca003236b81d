"""A journal replays with the same actions, tells the story of a query, and is a workload."""

from pathlib import Path

import httpx
import numpy as np
import pytest

import parity_models as pm
from commands import Here
from linear_bundles import FEATURES, WEIGHTS, linear_bundle
from parity_models import Bundle, PolicyChoice, ServeOptions, Server
from parity_models.scheduling.core import Scheduler
from parity_models.scheduling.policies import StandIns
from parity_models.scheduling.work import SchedulerConfig
from parity_models.serving.protocol import write_request
from parity_models.simulation.emulation import Constant, FaultPlan, Pauses
from parity_models.simulation.journal import Journal, Recording

REQUESTS = 60

HEADER = '{"policy": "none", "options": {}, "dispatch": null, "config": {}}\n'
ARRIVAL = '["queries_arrived", 1.0, {"queries": [0], "kind": 0}, []]\n'


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return linear_bundle(tmp_path_factory.mktemp("bundle"), WEIGHTS, backup=WEIGHTS)


@pytest.fixture
async def journal(bundle: Bundle, tmp_path: Path) -> Path:
    """The journal of a real server, one of whose workers pauses. Some queries are unlike others."""
    path = tmp_path / "journal.jsonl"
    faults = FaultPlan(
        service_time=Constant(0.02), pauses=Pauses(0.1, Constant(0.05), workers=(0,))
    )
    options = ServeOptions(port=0, instances=2, journal=path, faults=faults, tenant_header="tenant")
    rows = np.random.default_rng(1).normal(size=(REQUESTS, 1, FEATURES)).astype(np.float32)
    rows[::7] = np.nan
    async with Server(bundle, options) as server, httpx.AsyncClient() as client:
        server.deployment.begin_faults()
        model = server.deployment.model
        for number, row in enumerate(rows):
            content, headers = write_request({model.signature.inputs[0].name: row})
            headers |= {"x-request-id": f"request-{number}", "tenant": f"secret-{number % 2}"}
            url = f"{server.url}/v2/models/{model.name}/infer"
            response = await client.post(url, content=content, headers=headers)
            assert response.status_code == 200, response.text
    return path


async def test_journal_replays_and_explains(journal: Path, bundle: Bundle, parm_here: Here) -> None:
    assert "secret" not in journal.read_text(), "tenants have numbers"
    recording = Recording(journal)
    assert {query % 7 for event in recording.events() for query in event.unlike} == {1}
    assert recording.replay(StandIns(None, backup=True)) is None
    told = parm_here("simulate", "--journal", journal, "--query", "request-7").stdout
    assert "0.0 ms  queries arrived" in told
    assert " ms  time passed; Run instance=" in told
    assert "Answer query=" in told
    found = pm.simulate(bundle, journal=journal, policies=["hedging"])
    assert found.recorded is not None
    assert found.recorded.answered == 1
    assert found.scenario.queries == REQUESTS
    assert [each.policy.name for each in found.policies][-2:] == ["adaptive", "hedging"]
    assert "with the same actions" in found.replayed
    done = parm_here("simulate", bundle.path, "--journal", journal)
    assert "as recorded" in done.stdout, done.stderr


async def test_replay_names_the_first_event_with_other_actions(journal: Path) -> None:
    lines = journal.read_text().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if '"Answer"' in line)
    lines[at] = lines[at].replace('"model"', '"backup"')
    journal.write_text("".join(lines))
    differing = Recording(journal).replay(StandIns(None, backup=True))
    assert differing is not None
    assert any(each.get("source") == "backup" for each in differing.actions)


def keep_journal(path: Path, *max_bytes: int) -> None:
    """Write the journal of a scheduler that answers 100 queries."""
    choice = PolicyChoice("hedging")
    policy, dispatch = choice.build(StandIns())
    scheduler = Scheduler(policy, SchedulerConfig(), dispatch)
    journal = Journal(path, choice, scheduler, lambda: "", *max_bytes)
    scheduler.instance_joined(0.0, "a", frozenset({"deployed"}), None)
    for query in range(100):
        assert scheduler.queries_arrived(query, range(query, query + 1), ((3,), "FP32"))
        assert scheduler.unit_finished(query + 0.5, scheduler.running()["a"] or 0)
    journal.close()


@pytest.mark.parametrize(("max_bytes", "replays"), [(25_000, True), (5_000, False)])
def test_bounded_journal_replays_if_whole(max_bytes: int, replays: bool, tmp_path: Path) -> None:
    keep_journal(tmp_path / "journal", max_bytes)
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) <= 2 * (max_bytes + 1000)
    assert len([*tmp_path.iterdir()]) == 2
    assert (Recording(tmp_path / "journal").replay(StandIns()) is None) == replays


def test_journal_on_a_full_disk_ends_and_loses_no_action(caplog: pytest.LogCaptureFixture) -> None:
    keep_journal(Path("/dev/full"))
    (said,) = (each.message for each in caplog.records)
    assert said == "the journal /dev/full ends here: No space left on device"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "cannot read the journal"),
        ("no JSON\n", "JSON is malformed"),
        (HEADER + '["exec", 1.0, {}, []]\n', "cannot read event 1"),
        (HEADER, "no queries"),
        (HEADER + ARRIVAL, "no unit that ended"),
        (HEADER.replace("none", "nothing") + ARRIVAL, "there is no policy 'nothing'"),
        (HEADER.replace("none", "os:system") + ARRIVAL, "only built-in policies replay"),
    ],
)
def test_damaged_journal_is_refused(
    content: str, said: str, bundle: Bundle, tmp_path: Path, parm_here: Here
) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(content)
    done = parm_here("simulate", bundle.path, "--journal", path)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def test_story_of_an_unknown_query_and_needless_options(tmp_path: Path, parm_here: Here) -> None:
    assert "cannot read" in parm_here("simulate", "--journal", tmp_path / "no", "--query", 1).stderr
    assert "--query needs --journal" in parm_here("simulate", "--query", "1").stderr
