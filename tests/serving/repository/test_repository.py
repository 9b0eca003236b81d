"""Versions are loaded, replaced, unloaded and tried again, in whatever order that is asked for."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from commands import Here, assert_refused
from own_engine import LATE, Late, nobody_there, not_ready
from parity_models.errors import UserError
from parity_models.models.bundle import open_bundle
from parity_models.serving.errors import InvalidRequestError, UnavailableError
from parity_models.serving.options import EngineChoice, ServeOptions
from parity_models.serving.remote.remote_engine import Upstream, upstreams_of
from parity_models.serving.repository import (
    Repository,
    asked_version,
    options_of,
    scan,
    versions_in,
)
from repositories import INPUTS, WEIGHTS, write_version

PATIENCE = 60.0


@asynccontextmanager
async def late(folder: Path) -> AsyncIterator[Repository]:
    """A repository of a model with two versions that nobody can run yet."""
    for version in ("1", "2"):
        write_version(folder, "one", version)
    engine = EngineChoice(LATE)
    repository = Repository(folder, ServeOptions(engine=engine))
    Late.trouble, Late.tries = nobody_there, 0
    try:
        await repository.start()
        yield repository
    finally:
        Late.trouble = None
        await repository.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


async def tried_again() -> None:
    """Wait for two more tries, the first of which may have begun."""
    tries = Late.tries
    await until(lambda: Late.tries >= tries + 2)


@pytest.mark.parametrize("version", ["1", "2", "3"])
async def test_a_load_that_fails_ends_no_retry(tmp_path: Path, version: str) -> None:
    async with late(tmp_path / "models") as repository:
        for _ in range(2):
            with pytest.raises(InvalidRequestError):
                await repository.load("one", {"version": version})
        Late.trouble = None
        await until(lambda: repository.versions("one") == ["2"])


async def test_what_is_unloaded_is_not_tried_again(tmp_path: Path) -> None:
    async with late(tmp_path / "models") as repository:
        with pytest.raises(InvalidRequestError):
            await repository.load("one", {})
        await repository.unload("one")
        Late.trouble = None
        tries = Late.tries
        await asyncio.sleep(0.5)
        assert Late.tries == tries


@pytest.mark.slow
async def test_why_it_waits_is_told_once_and_when_it_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with late(tmp_path / "models") as repository:

        def logged() -> int:
            return len([each for each in caplog.messages if "cannot be loaded" in each])

        await tried_again()
        assert logged() == 1
        Late.trouble = not_ready
        await tried_again()
        assert logged() == 2
        with pytest.raises(InvalidRequestError):
            await repository.load("one", {})
        assert logged() == 3  # somebody asked


@pytest.mark.slow
async def test_an_error_that_nobody_expects_is_told_and_ends_no_retry(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with late(tmp_path / "models") as repository:
        Late.trouble = lambda: RuntimeError("a mistake")
        await tried_again()
        await tried_again()
        assert len([each for each in caplog.messages if "trying again" in each]) == 1
        Late.trouble = None
        await until(lambda: repository.versions("one") == ["2"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
async def test_no_request_is_lost_while_versions_replace_each_other(
    tmp_path: Path, seed: int
) -> None:
    random_ = random.Random(seed)
    times = {"1": 1, "2": 2, "3": 3}
    for version in times:
        write_version(tmp_path / "models", "one", version, times=times[version])
    (tmp_path / "models" / "one" / "3" / "deployed.onnx").write_bytes(b"broken")
    Late.trouble = None
    repository = Repository(tmp_path / "models", ServeOptions(engine=EngineChoice(LATE)))
    await repository.start()
    assert repository.versions("one") == ["2"], "the newest that is not broken"
    rows = np.random.default_rng(seed).normal(size=(1, INPUTS)).astype(np.float32)

    async def ask() -> None:
        found = repository.find("one", None)
        result = await found.frontend.infer(rows, None, tenant=None, exact=False)
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


async def test_why_a_model_is_gone_is_not_why_another_version_failed(tmp_path: Path) -> None:
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
        (("--deployed", "http://a", "--instances", "7"), "leave --instances out"),
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


def test_settings_of_a_model_say_how_it_is_served(tmp_path: Path) -> None:
    bundle = open_bundle(write_version(tmp_path, "one", "1"))
    settings = tmp_path / "one" / "serve.toml"
    settings.write_text('instances = 3\ndeadline = 0.5\npolicy = "hedging"\nhedge-delay = 50\n')
    options = options_of(settings.parent, bundle, ServeOptions(max_queue=7))
    assert (options.instances, options.deadline, options.max_queue) == (3, 0.5, 7)
    assert options.policy is not None
    assert options.policy.options == {"hedge_delay": 0.05}
    assert options.name == "one"


def asked(folder: Path, version: str = "1") -> Sequence[Upstream]:
    """Those of a bundle in a server in front of http://a, with stand-ins on http://b."""
    bundle = open_bundle(folder / version)
    engine = EngineChoice("remote", {"deployed": "http://a", "parity": "http://b"})
    options = options_of(folder, bundle, ServeOptions(engine=engine), version)
    return upstreams_of(options.engine.settings, bundle)


def test_upstreams_are_asked_for_the_version_of_the_folder(tmp_path: Path) -> None:
    write_version(tmp_path, "one", "3")
    # The bundle has no parity model, whatever other models of the repository have.
    assert asked(tmp_path / "one", "3") == (Upstream("http://a", {"deployed": "one"}, version="3"),)


@pytest.mark.parametrize(
    ("settings", "upstream"),
    [
        (
            'deployed = "http://a?model=two"',
            Upstream("http://a", {"deployed": "two"}, version="1"),
        ),
        (
            'deployed = "http://a/{model}-{version}"',
            Upstream("http://a", {"deployed": "one-1"}),
        ),
        (
            'deployed = "http://c/two?concurrency=3"',
            Upstream("http://c", {"deployed": "two"}, 3, version="1"),
        ),
    ],
)
def test_a_model_says_where_and_what_it_is_upstream(
    tmp_path: Path, settings: str, upstream: Upstream
) -> None:
    write_version(tmp_path, "one", "1")
    (tmp_path / "one" / "serve.toml").write_text(settings)
    assert asked(tmp_path / "one") == (upstream,)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ("instances = 2", "leave instances out with the engine remote"),
        ('parity = "http://b"', "has no parity model"),
        ('deployed = "http://a?concurrency=0"', "must be from 1"),
    ],
)
def test_what_a_model_cannot_say_of_upstreams_is_named(
    tmp_path: Path, settings: str, reason: str
) -> None:
    write_version(tmp_path, "one", "1")
    (tmp_path / "one" / "serve.toml").write_text(settings)
    with pytest.raises(UserError, match=reason):
        asked(tmp_path / "one")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("instances = 0", "instances must be from 1"),
        ("port = 1", "port is not an option of a model"),
        ('policy = "none"\nport = 1', "port is not an option of the policy none"),
        ("policy = 1", "policy is a name"),
        ("instances", "is not TOML"),
    ],
)
def test_settings_that_cannot_be_are_named(tmp_path: Path, text: str, reason: str) -> None:
    bundle = open_bundle(write_version(tmp_path, "one", "1"))
    (tmp_path / "one" / "serve.toml").write_text(text)
    with pytest.raises(UserError, match=reason) as caught:
        options_of(tmp_path / "one", bundle, ServeOptions())
    assert "serve.toml" in str(caught.value)


def test_a_load_asks_for_a_version() -> None:
    assert asked_version({}) is None
    assert asked_version({"version": "2"}) == "2"
    config = '{"version_policy": {"specific": {"versions": [2]}}}'
    assert asked_version({"config": config}) == "2"
    endless = '{"version_policy": {"specific": {"versions": [1e400]}}}'
    for wrong in (
        endless,
        "[",
        "[]",
        '{"version_policy": {"latest": {}}}',
        '{"parameters": {}}',
        3,
    ):
        with pytest.raises(InvalidRequestError, match="config") as refused:
            asked_version({"config": wrong})
        assert "Error" not in str(refused.value)
    with pytest.raises(InvalidRequestError, match="'canary' is not supported"):
        asked_version({"canary": "5%"})
