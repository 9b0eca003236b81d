"""parm-lab costs: what a request costs with everything on, beside servers without it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from itertools import zip_longest

from parity_models.errors import UserError
from parity_models.load.served import served
from parity_models.models.bundle import Bundle
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.plan import default_batch, default_policy
from parity_models.serving.server import ServeOptions
from parity_models_lab.costs.asked import Asked, generated_bundle
from parity_models_lab.costs.http_layers import OURS, HttpLayersReport, measure_http_layers
from parity_models_lab.costs.overhead import targets_of
from parity_models_lab.costs.throughput import (
    CLIENTS,
    ROUNDS,
    SECONDS,
    Throughput,
    measure_throughput,
)
from parity_models_lab.reliability.chaos_result import Claim
from parity_models_lab.reliability.table_result import TableResult

INSTANCES = 2
"""Of the deployed model; the policy has one more."""
BATCHES = (1, 4)
"""The largest batches of the servers that are measured."""
MOST_CPU_US = 270.0
"""Processor time that a request may cost, ..."""
CPU_BEFORE_US = 363.0
"""... on a machine where one cost so much before the limits and checks that `parm-lab` is about.
Beside a server of that version on another machine, the same share may be had."""
AS_MANY = 1.4
"""Times the requests/s of a server of before, with many clients."""
_FEW, _MANY = CLIENTS
_COLUMNS = ("server", "clients", "requests/s", "p50 ms", "CPU µs/request")


async def run_costs(
    bundle: Bundle | None = None,
    against: Sequence[str] = (),
    *,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
) -> TableResult:
    """Measure the default policy of `bundle`, or of a generated one, on the local engine: each
    server for so many `seconds` a round.

    `against`: URLs of servers of the same model that run already, as of a version before: one that
    runs batches of one, then, if that is to be compared, one of batches of up to four. Raises
    UserError for URLs that are none of HTTP, for more of them, or for HTTP layers that are not
    installed, LoadError for servers that do not answer.
    """
    if len(against) > len(BATCHES):
        raise UserError(f"--against takes {len(BATCHES)} URLs at most, got {len(against)}")
    with generated_bundle(bundle) as bundle:
        policy = default_policy(bundle)
        measured = await _measure(bundle, policy, against, rounds, seconds)
        layers = await measure_http_layers(
            bundle, policy, instances=INSTANCES, rounds=rounds, seconds=seconds
        )
    return TableResult(
        "What a request costs",
        f"{policy} on {INSTANCES} instances and one more, one row of {layers.tensor_bytes:,} bytes "
        "a request, closed-loop clients on bare sockets, medians of rounds that take turns. Below "
        "the servers: HTTP layers before one process, in a run of their own.",
        _COLUMNS,
        (*_rows(measured), *_layers(layers)),
        claims=tuple(_claims(measured, BATCHES.index(default_batch(bundle)))),
        date=datetime.now(UTC).isoformat(timespec="minutes"),
    )


async def _measure(
    bundle: Bundle, policy: str, against: Sequence[str], rounds: int, seconds: float
) -> dict[str, Mapping[int, Throughput]]:
    """What each server carried for each number of clients, the servers by name: ours by their
    largest batch, then those of `against`."""
    asked = Asked.of(bundle)
    names: dict[str, str] = {}
    targets = []
    async with AsyncExitStack() as stack:
        for batch in BATCHES:
            choice = PolicyChoice(policy)
            options = ServeOptions(policy=choice, instances=INSTANCES, port=0, max_batch=batch)
            server = await stack.enter_async_context(served(bundle.path, options))
            default = ", the default" if batch == default_batch(bundle) else ""
            names[server.url] = f"parm serve --max-batch {batch}{default}"
            targets.append(asked.measured(server))
        for other in targets_of(against, asked):
            names[other.url] = other.url
            targets.append(other)
        # Nothing else is due on this event loop, so the measurement may block it.
        throughput = measure_throughput(targets, rounds=rounds, seconds=seconds)
    return {
        name: {each.clients: each for each in throughput if each.url == url}
        for url, name in names.items()
    }


def _rows(measured: Mapping[str, Mapping[int, Throughput]]) -> Iterator[tuple[str, ...]]:
    for clients in CLIENTS:
        for name, by_clients in measured.items():
            yield _row(name, by_clients[clients])


def _layers(report: HttpLayersReport) -> Iterator[tuple[str, ...]]:
    for layer, each in zip(report.layers, report.throughput, strict=True):
        version = "" if layer == OURS else f" {report.versions[layer]}"
        yield _row(f"layer: {layer}{version}", each)


def _row(name: str, each: Throughput) -> tuple[str, ...]:
    cpu = "not to be seen" if each.cpu_us is None else f"{each.cpu_us:.0f}"
    rate, p50 = f"{each.requests_per_second:,.0f}", f"{each.p50_ms:.3f}"
    return name, str(each.clients), rate, p50, cpu


def _claims(measured: Mapping[str, Mapping[int, Throughput]], default: int) -> Iterator[Claim]:
    """What must hold of each server of ours, beside the one of `against` in the same place, and of
    the `default` one (its place) beside the first of those, too, which ran batches of one."""
    names = list(measured)
    ours, others = names[: len(BATCHES)], names[len(BATCHES) :]
    pairs = list(zip_longest(ours, others))
    if default and others:
        pairs.append((ours[default], others[0]))
    for place, (name, other) in enumerate(pairs):
        few, many = (measured[name][clients] for clients in CLIENTS)
        cpu = many.cpu_us
        if place < len(ours):
            yield Claim(
                f"`{name}`, {_MANY} clients: at most {MOST_CPU_US:g} µs of processor time a "
                "request, of all processes",
                "not to be seen" if cpu is None else f"{cpu:.0f} µs",
                cpu is not None and cpu <= MOST_CPU_US,
            )
        if other is None:
            continue
        few_there, many_there = (measured[other][clients] for clients in CLIENTS)
        ratio = many.requests_per_second / many_there.requests_per_second
        yield Claim(
            f"`{name}`, {_MANY} clients: at least {AS_MANY:g}x the requests/s of {other}",
            f"{ratio:.2f}x",
            ratio >= AS_MANY,
        )
        if cpu is not None and many_there.cpu_us is not None:
            share = MOST_CPU_US / CPU_BEFORE_US
            yield Claim(
                f"`{name}`, {_MANY} clients: at most {share:.2f}x the processor time a request of "
                f"{other}",
                f"{cpu / many_there.cpu_us:.2f}x",
                cpu <= share * many_there.cpu_us,
            )
        yield Claim(
            f"`{name}`, {_FEW} client: p50 no higher than that of {other}",
            f"{few.p50_ms:.3f} and {few_there.p50_ms:.3f} ms",
            few.p50_ms <= few_there.p50_ms,
        )
