"""A server may open as many files as its connections and workers need, or says that it may not."""

import logging
import resource

import pytest

from parity_models.serving.descriptors import OF_A_WORKER, SPARE, allow_descriptors

NEEDED = 1000 + 2 * OF_A_WORKER + SPARE


class Limit:
    """The limit of open files of a process that is not this one."""

    def __init__(self, soft: int, hard: int) -> None:
        self.limits = (soft, hard)

    def get(self, which: int) -> tuple[int, int]:
        assert which == resource.RLIMIT_NOFILE
        return self.limits

    def set(self, which: int, limits: tuple[int, int]) -> None:
        assert which == resource.RLIMIT_NOFILE
        self.limits = limits


@pytest.mark.parametrize(
    ("soft", "hard", "then"),
    [
        (256, 4096, NEEDED),
        (256, resource.RLIM_INFINITY, NEEDED),
        (256, NEEDED, NEEDED),
        (2000, 4096, 2000),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, resource.RLIM_INFINITY),
    ],
)
def test_the_limit_is_raised_to_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, then: int
) -> None:
    limit = Limit(soft, hard)
    monkeypatch.setattr(resource, "getrlimit", limit.get)
    monkeypatch.setattr(resource, "setrlimit", limit.set)
    assert allow_descriptors(connections=1000, workers=2)
    assert limit.limits == (then, hard)


def test_a_limit_that_is_too_low_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limit = Limit(256, 512)
    monkeypatch.setattr(resource, "getrlimit", limit.get)
    monkeypatch.setattr(resource, "setrlimit", limit.set)
    with caplog.at_level(logging.WARNING):
        assert not allow_descriptors(connections=1000, workers=2)
    assert limit.limits == (512, 512)
    assert (
        f"may open 512 files, and 1000 connections and 2 workers may need {NEEDED}" in caplog.text
    )
    assert "--max-connections" in caplog.text
