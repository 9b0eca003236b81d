"""Versions are loaded, replaced and unloaded, in whatever order that is asked for."""

import asyncio
import random
from pathlib import Path

import numpy as np
import pytest

from commands import Here, assert_refused
from parity_models.serving.errors import InvalidRequestError, UnavailableError
from parity_models.serving.options import EngineChoice, ServeOptions
from parity_models.serving.repository import Repository, asked_version, scan, versions_in
from repositories import INPUTS, WEIGHTS, write_version


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
async def test_no_request_is_lost_while_versions_change(tmp_path: Path, seed: int) -> None:
    random_ = random.Random(seed)
    times = {"1": 1, "2": 2, "3": 3}
    for version in times:
        write_version(tmp_path / "models", "one", version, times=times[version])
    (tmp_path / "models" / "one" / "3" / "deployed.onnx").write_bytes(b"broken")
    repository = Repository(tmp_path / "models", ServeOptions(engine=EngineChoice("threads")))
    await repository.start()
    assert repository.find("one", None).model.version == "2", "the newest that is not broken"
    rows = np.random.default_rng(seed).normal(size=(1, INPUTS)).astype(np.float32)

    async def ask() -> None:
        found = repository.find("one", None)
        result = await found.predictor.infer(rows, None, tenant=None, exact=False)
        expected = times[found.model.version] * rows @ WEIGHTS
        np.testing.assert_allclose(result.outputs, expected, rtol=1e-5)

    async def load(version: str) -> None:
        if version == "3":
            with pytest.raises(InvalidRequestError, match="cannot be loaded"):
                await repository.load("one", {"version": version})
        else:
            await repository.load("one", {"version": version})

    async with asyncio.TaskGroup() as tasks:
        for _ in range(60):
            if random_.random() < 0.2:
                tasks.create_task(load(random_.choice("123")))
            else:
                tasks.create_task(ask())
            await asyncio.sleep(random_.choice((0, 0, 0.002, 0.02)))
    await repository.unload("one")
    assert {each.state for each in repository.index()} == {"UNAVAILABLE"}
    with pytest.raises(UnavailableError, match="is not served"):
        repository.find("one", None)
    await repository.stop()


async def test_an_unload_ends_loads_that_were_asked_for_before(tmp_path: Path) -> None:
    for version in "123":
        write_version(tmp_path, "one", version)
    repository = Repository(tmp_path, ServeOptions(engine=EngineChoice("threads")))
    await repository.start()
    loads = [asyncio.create_task(repository.load("one", {"version": each})) for each in "12"]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await repository.unload("one")
    assert {each.state for each in repository.index()} == {"UNAVAILABLE"}
    first, second = await asyncio.gather(*loads, return_exceptions=True)
    assert first is None
    assert "'one' was unloaded in the meantime" in str(second)
    await repository.load("one", {"version": "2"})
    await repository.stop()


async def test_the_reason_for_an_unload_outlives_another_version_s_failure(tmp_path: Path) -> None:
    write_version(tmp_path, "one", "1")
    repository = Repository(tmp_path, ServeOptions(instances=1))
    try:
        await repository.start()
        (tmp_path / "one" / "2").mkdir()
        with pytest.raises(InvalidRequestError, match=r"no manifest\.json"):
            await repository.load("one", {})
        await repository.unload("one")
        with pytest.raises(UnavailableError, match="'one' is not served: unloaded"):
            repository.find("one", None)
        await repository.load("one", {"version": "1"})
        await repository.drain()
        with pytest.raises(UnavailableError, match="'one' is not served: the server is stopping"):
            repository.find("one", None)
    finally:
        await repository.stop()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--deployed", "http://a"), "--deployed is for a server of one bundle"),
        (("--name", "x"), "--name is for a server of one bundle"),
        (("--dispatch", "latency-aware"), "needs --policy"),
    ],
)
def test_options_of_one_bundle_are_refused(
    parm_here: Here, tmp_path: Path, options: tuple[str, ...], reason: str
) -> None:
    assert_refused(parm_here("serve", "--repository", tmp_path, *options), reason)


def test_a_folder_that_is_not_there_is_named(parm_here: Here, tmp_path: Path) -> None:
    outcome = parm_here("serve", "--repository", tmp_path / "nowhere")
    assert_refused(outcome, "nowhere cannot be read: No such file or directory")


def test_versions_are_folders_named_by_whole_numbers(tmp_path: Path) -> None:
    for name in ("a/10", "a/9", "a/01", "a/0", "a/x", ".b/1", "c"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a" / "11").write_text("")
    assert {name: versions_in(tmp_path / name) for name in scan(tmp_path)} == {
        "a": ["9", "10"],
        "c": [],
    }


def test_a_load_asks_for_a_version() -> None:
    assert asked_version({}) is None
    assert asked_version({"version": "2"}) == "2"
    with pytest.raises(InvalidRequestError, match="a string, not 2"):
        asked_version({"version": 2})
    with pytest.raises(InvalidRequestError, match="'canary' is not supported"):
        asked_version({"canary": "5%"})
    policy = '{"version_policy": {"specific": {"versions": [2]}}}'
    assert asked_version({"config": policy}) == "2"
    other = (policy.replace("2", "2, 1"), policy.replace("{", '{"name": "x", ', 1))
    for config in ("{}", *other, "[", 3):
        with pytest.raises(InvalidRequestError, match=r"one version.* cannot be read"):
            asked_version({"config": config})
