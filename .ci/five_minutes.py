"""Type the README's quickstart in a fresh environment, and time it: to the live page.

python .ci/five_minutes.py [--wheel FILE] [--model FILE --inputs FILE]

The commands are those of the README, except that the wheel in dist/ takes the place of the clone.
The model is that of examples/own_model.py, made before the clock runs. Ends with 1 if it takes
longer than five minutes.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]
AT_MOST = 300.0
"""Seconds from the first command to the page."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--inputs", type=Path)
    given = parser.parse_args()
    wheel = given.wheel or max((ROOT / "dist").glob("*.whl"), default=None)
    if wheel is None:
        sys.exit("there is no wheel in dist/; make it with make dist, or name one with --wheel")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        put_model(folder, given.model, given.inputs)
        subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
        total = type_them(folder, wheel.resolve())
    print(
        f"{total:6.1f} s in all, at most {AT_MOST:.0f}: {'met' if total <= AT_MOST else 'not met'}"
    )
    sys.exit(total > AT_MOST)


def commands() -> list[str]:
    """The commands of the README's quickstart."""
    text = (ROOT / "README.md").read_text()
    section = text.partition("## Quickstart\n")[2].partition("\n## ")[0]
    typed = "".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL))
    return [line.partition("  #")[0].strip() for line in typed.splitlines() if line.strip()]


def put_model(folder: Path, model: Path | None, inputs: Path | None) -> None:
    """Put model.onnx and inputs.npy into the folder."""
    if model is None or inputs is None:
        script = ROOT / "examples" / "own_model.py"
        subprocess.run([sys.executable, script, folder], check=True, stdout=subprocess.DEVNULL)
        return
    for file in model.parent.glob(f"{model.name}*"):  # large weights are beside it
        shutil.copy(file, folder / file.name.replace(model.name, "model.onnx"))
    shutil.copy(inputs, folder / "inputs.npy")


def type_them(folder: Path, wheel: Path) -> float:
    """Run the commands there, print what each took, and return the sum, in seconds."""
    install, *steps, serve = commands()
    install = install.replace("'.[", f"'{wheel}[").replace("-c ", f"-c {ROOT}/")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PATH"] = f"{folder / 'env' / 'bin'}:{environment['PATH']}"
    total = 0.0
    for command in (install, *steps):
        began = time.perf_counter()
        subprocess.run(
            command, shell=True, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL
        )
        total += say(command, began)
    began = time.perf_counter()
    with subprocess.Popen(
        f"exec {serve} --port 0",
        shell=True,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        server.stdout.readline()
        page = server.stdout.readline().split()[-1]
        with urllib.request.urlopen(page, timeout=30) as answer:
            assert b"<html" in answer.read(1000).lower()
        with urllib.request.urlopen(f"{page}events", timeout=30) as events:
            assert events.readline(), "the page hears of nothing"
        total += say(serve, began)
        server.send_signal(signal.SIGTERM)
    return total


def say(command: str, began: float) -> float:
    took = time.perf_counter() - began
    print(f"{took:6.1f} s  {command}", flush=True)
    return took


if __name__ == "__main__":
    main()
