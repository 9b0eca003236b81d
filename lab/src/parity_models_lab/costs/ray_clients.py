"""Clients that ask applications in turns: one, for the latency, and then many, for the rate."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is asked, in so many `rounds`, in each of which all applications have their turn.

    A single client sends `calls` requests in a round, and `clients` as many as they can in
    `seconds`.
    """

    clients: int = 16
    rounds: int = 10
    calls: int = 100
    seconds: float = 2.0


class Client(Protocol):
    """One that waits for each answer before it asks again."""

    def infer(self, row: NDArray[Any]) -> object:
        """Ask for the prediction for one row, and wait for it."""

    def close(self) -> None:
        """End the connection."""


class Clients:
    """So many clients of one application, each on a thread and a connection of its own."""

    def __init__(self, connect: Callable[[], Client], row: NDArray[Any], clients: int) -> None:
        self._connect = connect
        self._row = row
        self._count = clients

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._threads = stack.enter_context(ThreadPoolExecutor(self._count))
            self._clients = [
                stack.enter_context(closing(self._connect())) for _ in range(self._count)
            ]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def one_by_one(self, calls: int) -> list[float]:
        """Seconds of each of so many requests of a single client."""
        times = []
        for _ in range(calls):
            start = perf_counter()
            self._clients[0].infer(self._row)
            times.append(perf_counter() - start)
        return times

    def all_at_once(self, seconds: float) -> int:
        """How many requests all clients together have answered in this time."""
        end = perf_counter() + seconds
        return sum(self._threads.map(partial(self._until, end), self._clients))

    def _until(self, end: float, client: Client) -> int:
        answered = 0
        while True:
            client.infer(self._row)
            if perf_counter() > end:
                return answered
            answered += 1


def latencies(ways: Sequence[Clients], effort: Effort, progress: "tqdm[Any]") -> list[list[float]]:
    """p50 and p99 in milliseconds of a single client of each, in turns round by round."""
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(effort.rounds):
        for way, taken in zip(ways, times, strict=True):
            taken += way.one_by_one(effort.calls)
        progress.update()
    return [(np.quantile(taken, [0.5, 0.99]) * 1e3).tolist() for taken in times]


def rates(ways: Sequence[Clients], effort: Effort, progress: "tqdm[Any]") -> list[float]:
    """Requests a second of all clients of each, in turns round by round.

    There are more rounds where, on a machine that is busy, none of a client's requests is answered
    within one.
    """
    for way in ways:
        way.all_at_once(effort.seconds)
    answered = [0 for _ in ways]
    rounds = 0
    while rounds < effort.rounds or not all(answered):
        for number, way in enumerate(ways):
            answered[number] += way.all_at_once(effort.seconds)
        rounds += 1
        progress.update()
    return [count / (rounds * effort.seconds) for count in answered]
