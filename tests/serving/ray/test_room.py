"""Which of several engines that start at once have room."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

import pytest

from parity_models.errors import ServingError
from parity_models.serving.ray.room import Room
from served import until


class Cluster:
    """Free CPUs, and engines that are asked for in threads of their own."""

    def __init__(self, free: float, threads: ThreadPoolExecutor) -> None:
        self.free = free
        self.looks = 0
        self.room = Room(self._look)
        self._threads = threads

    def start(self, cpus: float) -> "Start":
        return Start(self, cpus, self._threads)

    def looked(self) -> None:
        """Returns once it was looked at again."""
        at = self.looks
        until(lambda: self.looks > at, "nobody looks at what is free")

    def _look(self) -> float:
        self.looks += 1
        return self.free


class Start:
    """An engine that has its promise until it is there."""

    def __init__(self, cluster: Cluster, cpus: float, threads: ThreadPoolExecutor) -> None:
        self.promised, self.there, self.ended = Event(), Event(), Event()
        self._cluster, self._cpus = cluster, cpus
        self.done: Future[None] = threads.submit(self._run)

    def _run(self) -> None:
        with self._cluster.room.promised(self._cpus, self.ended):
            self.promised.set()
            self.there.wait(60)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with ThreadPoolExecutor() as threads:
        yield Cluster(3, threads)


def test_what_fits_beside_each_other_starts_at_once(cluster: Cluster) -> None:
    starts = [cluster.start(1.5), cluster.start(1.5)]
    for start in starts:
        assert start.promised.wait(60)
    for start in starts:
        start.there.set()
        start.done.result(60)


def test_what_does_not_fit_is_refused(cluster: Cluster) -> None:
    with pytest.raises(ServingError, match="reserve 4 CPUs and the cluster has 3 free"):
        cluster.start(4).done.result(60)


def test_what_fits_only_until_others_are_there_waits_and_is_refused(cluster: Cluster) -> None:
    first = cluster.start(2)
    assert first.promised.wait(60)
    second = cluster.start(2)
    cluster.looked()
    assert not second.promised.is_set()
    cluster.free = 1  # the first one's instances are placed, and still start
    with pytest.raises(ServingError, match="reserve 2 CPUs and the cluster has 1 free"):
        second.done.result(60)
    first.there.set()
    first.done.result(60)


def test_what_others_were_promised_and_do_not_take_is_the_next_one_s(cluster: Cluster) -> None:
    first = cluster.start(2)
    assert first.promised.wait(60)
    second = cluster.start(2)
    cluster.looked()
    assert not second.promised.is_set()
    first.there.set()
    assert second.promised.wait(60)
    second.there.set()
    second.done.result(60)


def test_an_end_does_not_wait_for_others(cluster: Cluster) -> None:
    first = cluster.start(2)
    assert first.promised.wait(60)
    second = cluster.start(2)
    cluster.looked()
    second.ended.set()
    with pytest.raises(ServingError, match="was ended"):
        second.done.result(60)
    first.there.set()
    first.done.result(60)
