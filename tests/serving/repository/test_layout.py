"""The folder of a repository, and the options of its models."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from commands import Here, assert_refused
from own_engine import DELAYED
from parity_models.errors import UserError
from parity_models.models.bundle import open_bundle
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.options import EngineChoice, ServeOptions
from parity_models.serving.remote.upstream import Upstream, fleet_of
from parity_models.serving.repository import asked_version, options_of, scan, versions_in
from repositories import write_version


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--deployed", "http://a/x"), "write {model} in its place"),
        (("--deployed", "http://a", "--backup", "http://a/x"), "names one model"),
        (("--deployed", "http://a?model=x"), "write {model} in its place"),
        (("--deployed", "http://a?version=2"), "leave out the version of"),
        (("--deployed", "http://a", "--instances", "3"), "leave --instances out"),
        (("--name", "x"), "--name is for a server of one bundle"),
        (("--dispatch", "round-robin"), "needs --policy"),
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


def upstreams_of(folder: Path, version: str = "1") -> Sequence[Upstream]:
    """Those of a bundle in a server in front of http://a, with stand-ins on http://b."""
    bundle = open_bundle(folder / version)
    engine = EngineChoice("remote", {"deployed": "http://a", "parity": "http://b"})
    options = options_of(folder, bundle, ServeOptions(engine=engine), version)
    return fleet_of(options.engine.settings, bundle).upstreams


def test_upstreams_are_asked_for_the_version_of_the_folder(tmp_path: Path) -> None:
    write_version(tmp_path, "one", "3")
    # The bundle has no parity model, whatever other models of the repository have.
    assert upstreams_of(tmp_path / "one", "3") == (
        Upstream("http://a", {"deployed": "one"}, version="3"),
    )


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
    assert upstreams_of(tmp_path / "one") == (upstream,)


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
        upstreams_of(tmp_path / "one")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("instances = 0", "instances must be 1 or more"),
        ("port = 1", "port is no option of a model"),
        ('policy = "none"\nport = 1', "port is no option of the policy none"),
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


def test_an_option_that_an_engine_and_a_policy_have_is_refused(tmp_path: Path) -> None:
    bundle = open_bundle(write_version(tmp_path, "one", "1"))
    settings = tmp_path / "one" / "serve.toml"
    how = ServeOptions(engine=EngineChoice(DELAYED))
    settings.write_text("hedge-delay = 5")
    options = options_of(settings.parent, bundle, how)
    assert options.engine.options == {"hedge_delay": 5.0}
    settings.write_text('policy = "hedging"\nhedge-delay = 5')
    with pytest.raises(
        UserError, match=r"hedge-delay is an option of the engine .* policy hedging"
    ):
        options_of(settings.parent, bundle, how)


def test_a_load_asks_for_a_version() -> None:
    assert asked_version({}) is None
    assert asked_version({"version": "2"}) == "2"
    config = '{"version_policy": {"specific": {"versions": [2]}}}'
    assert asked_version({"config": config}) == "2"
    for wrong in ("[", "[]", '{"version_policy": {"latest": {}}}', '{"parameters": {}}', 3):
        with pytest.raises(InvalidRequestError, match="config"):
            asked_version({"config": wrong})
    with pytest.raises(InvalidRequestError, match="'canary' is not supported"):
        asked_version({"canary": "5%"})
