"""Try an installation without extras: import, `parm`, serve a bundle. Run by its Python."""

import importlib.util
import json
import signal
import subprocess
import sys
import urllib.request
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path


def main(bundle: str) -> None:
    import parity_models

    assert parity_models.__version__ == version("parity-models")
    assert Path(sys.prefix) in Path(parity_models.__file__).parents, "another installation"
    assert importlib.util.find_spec("torch") is None, "torch is here, which serving must not need"
    assert (files("parity_models") / "py.typed").is_file()

    parm = str(Path(sys.executable).parent / "parm")
    told = subprocess.run([parm, "--help"], check=True, capture_output=True, text=True).stdout
    assert "serve" in told
    refused = subprocess.run([parm, "train", "--task", "digits"], capture_output=True, text=True)
    assert "parity-models[train]" in refused.stderr, refused.stderr

    command = [parm, "serve", bundle, "--instances", "2", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            url = server.stdout.readline().split(" at ")[1].split()[0]
            row = {"name": "input", "datatype": "FP32", "shape": [1, 3], "data": [1, 1, 1]}
            request = urllib.request.Request(
                f"{url}/v2/models/model/infer", json.dumps({"inputs": [row]}).encode()
            )
            with urllib.request.urlopen(request, timeout=30) as response:
                answer = json.load(response)
            assert answer["outputs"][0]["data"] == [6, 9], answer
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0, "the server did not end well"
    print(f"parity-models {version('parity-models')}: imports, helps, serves, without torch")


if __name__ == "__main__":
    main(sys.argv[1])
