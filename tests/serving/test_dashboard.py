"""The dashboard is one that Grafana's own library reads without a remainder."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

FILE = Path(__file__).parents[2] / "examples" / "grafana" / "dashboard.json"


def unread(written: Any, read: Any, where: str = "dashboard") -> Iterator[str]:
    """What the library left out, or read as something else, by where it stands."""
    if isinstance(written, dict) and isinstance(read, dict):
        for key, value in written.items():
            yield from unread(value, read.get(key), f"{where}.{key}")
    elif isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        for number, pair in enumerate(zip(written, read, strict=True)):
            yield from unread(*pair, f"{where}[{number}]")
    elif written != read:
        yield where


def unread_of(dashboard: dict[str, Any]) -> list[str]:
    register_default_plugins()
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))
    return list(unread(dashboard, read))


def test_grafana_reads_all_of_it() -> None:
    assert unread_of(json.loads(FILE.read_text())) == []
