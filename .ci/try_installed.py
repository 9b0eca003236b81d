"""Try an installation, run by its Python: import, `parm`, serve a bundle; and what extras bring.

python .ci/try_installed.py BUNDLE without|with
"""

import importlib.util
import json
import platform
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

PARM = str(Path(sys.executable).parent / "parm")


def main(bundle: str, extras: str) -> None:
    import parity_models

    assert parity_models.__version__ == version("parity-models")
    assert Path(sys.prefix) in Path(parity_models.__file__).parents, "another installation"
    assert (files("parity_models") / "py.typed").is_file()
    assert "serve" in run("--help")
    if extras == "without":
        assert importlib.util.find_spec("torch") is None, "torch is here; serving must not need it"
        train = ("--model", "m", "--inputs", "x", "--out", "o")
        refused = subprocess.run([PARM, "parity", *train], capture_output=True, text=True)
        assert "pip install '.[train]'" in refused.stderr, refused.stderr
        grpc = [PARM, "serve", bundle, "--port", "0", "--grpc-port", "0"]
        refused = subprocess.run(grpc, capture_output=True, text=True)
        assert "pip install '.[grpc]'" in refused.stderr, refused.stderr
    with served(bundle) as url:
        row = {"name": "input", "datatype": "FP32", "shape": [1, 3], "data": [1, 1, 1]}
        request = urllib.request.Request(
            f"{url}/v2/models/model/infer", json.dumps({"inputs": [row]}).encode()
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.load(response)
        assert answer["outputs"][0]["data"] == [6, 9], answer
        if extras == "with":
            try_extras(bundle, url)
    print(
        f"parity-models {version('parity-models')}, Python {platform.python_version()}: imports, "
        f"helps, serves, {extras} extras",
        flush=True,
    )


def try_extras(bundle: str, url: str) -> None:
    """Train a stand-in and measure what is served (extra train)."""
    import numpy as np

    queries = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
    np.save("queries.npy", queries)
    load = run("load", url, "--inputs", "queries.npy", "--rate", "100", "--duration", "2")
    assert "answered" in load, load
    model = str(Path(bundle) / "deployed.onnx")
    train = ("--model", model, "--inputs", "queries.npy", "--k", "2", "--seconds", "3")
    run("parity", *train, "--metric", "r2", "--out", "trained")
    with served("trained"):
        pass


def run(*arguments: str) -> str:
    """What `parm` with these arguments says."""
    done = subprocess.run([PARM, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def served(bundle: str) -> Iterator[str]:
    """`parm serve` with two instances; gives its URL, and has it end well."""
    command = [PARM, "serve", bundle, "--instances", "2", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().split(" at ")[1].split()[0]
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0, "the server did not end well"


if __name__ == "__main__":
    main(*sys.argv[1:])
