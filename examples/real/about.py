"""What the programs here have in common: the file about.json beside a prepared model."""

import json
from pathlib import Path


def write_about(
    folder: Path,
    name: str,
    title: str,
    about: str,
    networks: dict[str, float] | None = None,
    pairs: dict[str, float] | None = None,
) -> None:
    """Say what the model in `folder` is, for `parm-lab reproduce real`, and its stand-ins.

    `networks` are trained as backups, `pairs` as parity models, each for so many seconds."""
    trained: list[dict[str, str | float]] = [
        {"network": each, "seconds": time} for each, time in (networks or {}).items()
    ]
    trained += [{"network": each, "seconds": time, "k": 2} for each, time in (pairs or {}).items()]
    said = {"name": name, "title": title, "about": about, "networks": trained}
    (folder / "about.json").write_text(json.dumps(said, indent=2), encoding="utf-8")
