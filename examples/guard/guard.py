"""A guard before an LLM: the stand-in may say "allowed" early, and never anything else.

python examples/guard/guard.py prepare --data banking77 --packages packages --out guard
cd guard
parm protect --model model.onnx --inputs inputs.npz --answer-only allowed --minutes 6 --out bundle
cd ..
python examples/guard/guard.py measure guard

The first step groups the intents of Banking77 (Casanueva et al., 2020; CC-BY-4.0) into three
classes: an assistant may answer, a person must answer, or neither. It trains a classifier on
MiniLM-L3 for them; examples/real/minilm.py says what `--packages` holds. The last step serves the
guard in front of a mock LLM, with an instance that is slow now and then. It compares the guard
alone with a stand-in that may answer differently in 0.1 % and in 1 % of all cases.
"""

import asyncio
import json
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import httpx
import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "real"))

from banking77 import read
from classified import Texts, prepare

import parity_models as pm

CLASSES = ("allowed", "blocked", "person")
BLOCKED = ("fiat_currency", "country_support", "age_limit", "exchange_rate", "exchange_via_app")
PERSON = ("compromised", "lost_or_stolen", "not_recognised", "identity", "terminate", "passcode")
"""Parts of intents' names: investments are not for the assistant, and some need a person."""

WAYS = {
    "the guard alone": ("--policy", "none"),
    "0.1 % may differ": ("--policy", "adaptive", "--differ", "0.001"),
    "1 % may differ": ("--policy", "adaptive", "--differ", "0.01"),
}
RATE, REQUESTS, SEEDS, WARM_UP, INSTANCES = 10.0, 200, 3, 60, 2

Rows = list[list[int]]
FIRST_TOKEN = 0.2
"""Seconds until the mock LLM answers."""

PORT = 8123
URL = f"http://127.0.0.1:{PORT}"

SLOW = {
    "seed": 7,
    "slowdowns": {
        "mean_between": 8.0,
        "mean_length": 0.5,
        "delay": {"type": "uniform", "low": 0.1, "high": 0.3},
    },
}
"""Each instance is slow for half a second every eight, on average."""


def grouped(texts: Texts) -> Texts:
    """Return the texts with one of CLASSES in place of their intent."""

    def group(intent: str) -> str:
        if any(part in intent for part in PERSON):
            return "person"
        return "blocked" if any(part in intent for part in BLOCKED) else "allowed"

    return texts[0], [group(each) for each in texts[1]]


def make(data: Path, packages: Path, out: Path) -> None:
    """Train the guard; its file names its classes, so that options can."""
    train, test = (grouped(read(data / name)) for name in ("train.csv", "test.csv"))
    print(prepare(train, test, packages, out))
    model = onnx.load(out / "model.onnx")
    onnx.helper.set_model_props(model, {"classes": json.dumps(CLASSES)})
    onnx.save(model, out / "model.onnx")


@contextmanager
def served(bundle: Path, way: Sequence[str], faults: Path) -> Iterator[int]:
    """Serve the guard, and yield its process."""
    options = ("--instances", f"{INSTANCES}", "--faults", f"{faults}")
    command = ["parm", "serve", f"{bundle}", "--port", f"{PORT}", *way, *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None:
                with suppress(httpx.TransportError):
                    if httpx.get(f"{URL}/v2/health/ready").is_success:
                        break
                time.sleep(0.1)
            yield process.pid
        finally:
            process.terminate()


def cpu_seconds(process: int) -> float:
    """Return the processor time of a process and its descendants."""
    parents, spent = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(stat.parent.name)
        parents[pid], spent[pid] = int(fields[1]), (int(fields[11]) + int(fields[12])) / 100
    family = {process}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(spent.get(pid, 0.0) for pid in family)


async def mock_llm() -> str:
    await asyncio.sleep(FIRST_TOKEN)
    return "Here is how."


async def offer(
    inputs: dict[str, Rows], requests: int, seed: int = 0
) -> tuple[list[float], int, int]:
    """Send each query when it is due.

    Return the guard's latencies in seconds, and the numbers of queries that were allowed and that
    the stand-in answered.
    """
    rows, random = len(next(iter(inputs.values()))), Random(seed)
    seconds: list[float] = []
    allowed = stood_in = 0

    async def gateway(client: httpx.AsyncClient, row: int, due: float) -> None:
        nonlocal allowed, stood_in
        tensors = [
            {
                "name": name,
                "datatype": "INT64",
                "shape": [1, len(each[0])],
                "data": each[row],
            }
            for name, each in inputs.items()
        ]
        answer = (await client.post("/v2/models/model/infer", json={"inputs": tensors})).json()
        seconds.append(time.monotonic() - due)
        scores = answer["outputs"][0]["data"]
        stood_in += answer["parameters"]["source"] != "model"
        if CLASSES[int(np.argmax(scores))] == "allowed":
            allowed += 1
            await mock_llm()

    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=URL, limits=limits, timeout=60) as client:
        due, tasks = time.monotonic(), []
        for _ in range(requests):
            due += random.expovariate(RATE)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.create_task(gateway(client, random.randrange(rows), due)))
        await asyncio.gather(*tasks)
    return seconds, allowed, stood_in


def measure(folder: Path) -> None:
    with np.load(folder / "test.npz") as test:
        inputs = {name: each.tolist() for name, each in test.items()}
    faults = folder / "slow.json"
    faults.write_text(json.dumps(SLOW))
    print(pm.open_bundle(folder / "bundle").gates)
    print(f"{SEEDS} seeds of {REQUESTS} requests: median (least to most)")
    for name, way in WAYS.items():
        rows = []
        with served(folder / "bundle", way, faults) as process:
            asyncio.run(offer(inputs, WARM_UP))
            for seed in range(SEEDS):
                before = cpu_seconds(process)
                seconds, allowed, stood_in = asyncio.run(offer(inputs, REQUESTS, seed))
                cpu = (cpu_seconds(process) - before) / REQUESTS
                p50, p99 = np.quantile(seconds, (0.5, 0.99))
                shares = (100 * stood_in / REQUESTS, 100 * allowed / REQUESTS)
                rows.append((1e3 * p50, 1e3 * p99, 1e3 * cpu, *shares))
        print(name)
        units = ("p50 ms", "p99 ms", "CPU ms/request", "% stood in", "% allowed")
        for unit, values in zip(units, zip(*rows, strict=True), strict=True):
            low, middle, high = np.quantile(values, (0, 0.5, 1))
            print(f"  {unit:16} {middle:7.2f} ({low:.2f} to {high:.2f})", flush=True)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True)
    first = steps.add_parser("prepare")
    for name in ("data", "packages", "out"):
        first.add_argument(f"--{name}", type=Path, required=True)
    steps.add_parser("measure").add_argument("folder", type=Path)
    given = parser.parse_args()
    if given.step == "prepare":
        make(given.data, given.packages, given.out)
    else:
        measure(given.folder)
