"""The command `late`: Late and libraries that hedge, behind three balancers.

Texts, model, servers and slowness are those of `real`, but for its outages.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Any

import httpx
from hedge.transport import HedgedHttpxTransport
from httpx_hedged import HedgedTransport

from parity_models import Late
from parity_models.roles import Source
from parity_models.serving.client import Client
from parity_models_lab import real
from parity_models_lab.real import Ask, Balancer, Contestant, Fleet, Texts, fewest_in_flight
from parity_models_lab.results import Row, report

LIBRARIES: Mapping[str, Any] = {
    "hedge-python": HedgedHttpxTransport,
    "httpx-hedged": HedgedTransport,
}
BASELINE, CHOOSES = "no help", "Late, chooses servers"


def round_robin() -> Balancer:
    """Choose the next server."""
    turns = count()
    return lambda in_flight: next(turns) % len(in_flight)


BALANCERS: Mapping[str, Callable[[], Balancer]] = {
    "round robin": round_robin,
    "the better of two": lambda: fewest_in_flight(2),
    "fewest in flight": fewest_in_flight,
}


def late(options: real.Comparison) -> None:
    """Compare parity_models.Late with libraries that hedge, behind three balancers.

    All is real, as in `real`, but seeds with an outage are left out. Times in ms. Runs are kept in
    the folder for intermediate results until the code changes.
    """
    texts, out = real.prepare(options), options.out
    chosen = [each for each in options.all_seeds if not real.has_outage(each)]
    runs = asyncio.run(real.compare(options.work, texts, chosen, _contestants))
    results = {name: real.pooled([*found.values()]) for name, found in runs.items()}
    rows: list[Row] = []
    panels: dict[str, dict[str, Any]] = {each: {} for each in BALANCERS}
    for name, found in results.items():
        balancer, _, library = name.partition(": ")
        is_late = results[f"{balancer}: {BASELINE}"].latencies > real.LATE
        rows.append({"balancer": balancer, **real.row_of(library, found, is_late, texts)})
        if library != CHOOSES:
            panels[balancer][real.without_delay(library)] = found
    title = f"Calls to four servers, {len(chosen)} seeds"
    report(title, rows, out / "late.json", seeds=chosen, spells=real.spells_in(chosen))
    real.plot_tails(out / "late.png", panels, real.ABOUT)


async def _contestants(stack: AsyncExitStack, work: Path, texts: Texts) -> dict[str, Contestant]:
    pids, _, clients = await real.tritons(stack, work)
    asks = await asks_of(stack, clients, texts, work / "protected")
    return {name: Contestant(ask, fleet, pids) for name, (ask, fleet) in asks.items()}


async def asks_of(
    stack: AsyncExitStack, clients: Sequence[Client], texts: Texts, bundle: Path
) -> dict[str, tuple[Ask, Fleet]]:
    """Return what asks the servers in each way behind each balancer."""
    contestants = dict[str, tuple[Ask, Fleet]]()
    for name, balancer in BALANCERS.items():
        fleet = Fleet(clients, texts, balancer=balancer())
        asks: dict[str, Ask] = {BASELINE: fleet.plain, **real.hedging_after(fleet)}
        for library, transport in LIBRARIES.items():
            client = httpx.AsyncClient(transport=transport(_Transport(fleet)), timeout=None)
            asks[library] = _through(await stack.enter_async_context(client))
        late = stack.enter_context(Late(bundle, differ=real.DIFFER))
        asks["Late"] = real.raced(fleet, texts, late)
        contestants |= {f"{name}: {library}": (ask, fleet) for library, ask in asks.items()}
    servers = list(map(str, range(real.INSTANCES)))
    chooser = stack.enter_context(Late(bundle, servers=servers, differ=real.DIFFER))
    contestants[f"{name}: {CHOOSES}"] = real.raced(fleet, texts, chooser), fleet
    return contestants


class _Transport(httpx.AsyncBaseTransport):
    """Answers a request that names a text by its class, from a fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        said, _ = await self._fleet.plain(int(request.headers["text"]))
        return httpx.Response(200, text=str(said))


def _through(client: httpx.AsyncClient) -> Ask:
    async def ask(text: int) -> tuple[int, str]:
        answer = await client.get("http://fleet/", headers={"text": str(text)})
        return int(answer.text), Source.MODEL

    return ask
