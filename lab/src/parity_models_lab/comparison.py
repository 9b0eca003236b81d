"""Several ways to serve a bundle under the same load and the same faults, one after the other."""

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from parity_models.load import LoadSpec, offer_load_from_own_process
from parity_models.load.result import LoadResult
from parity_models.load.served import served
from parity_models.serving.server import ServeOptions


async def compare(
    bundle: Path,
    servers: Mapping[str, ServeOptions],
    load: LoadSpec,
    starting: Callable[[str], None],
) -> dict[str, LoadResult]:
    """Offer `load` to each of `servers`, whose faults begin when the counted load does.

    `load.url` is set to each server's; `starting` is told which is next. Server and load have
    a process each. Raises ServingError if a server does not start, LoadError as `offer_load`.
    """
    results = {}
    for name, options in servers.items():
        starting(name)
        async with served(bundle, options) as server:
            here = msgspec.structs.replace(load, url=server.url)
            results[name] = await offer_load_from_own_process(here, server.begin_faults)
    return results
