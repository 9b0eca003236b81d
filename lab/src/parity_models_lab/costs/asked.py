"""What servers are asked whose costs are measured: one row, over and over."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import CodeSpec
from parity_models.load.served import Served
from parity_models.load.wire import ModelMetadata, RequestWriter
from parity_models.models.bundle import Bundle, NewModel, write_bundle
from parity_models.models.inference_time import measure_models
from parity_models_lab.costs.bare_client import BareClient
from parity_models_lab.costs.throughput import MeasuredServer
from parity_models_lab.processes import descendants

INPUT_SHAPE, OUTPUT_SHAPE = (784,), (10,)
"""The generated model's inputs: a query is 3 kB of float32, as the published MLP takes."""


@dataclass(frozen=True)
class Asked:
    """A `row` (*input shape) of random values for the one input of `model`."""

    model: ModelMetadata
    row: NDArray[Any]

    @classmethod
    def of(cls, bundle: Bundle) -> "Asked":
        """What is asked of a server of this bundle."""
        deployed = bundle.manifest.deployed
        row = np.random.default_rng(0).random(deployed.input.shape).astype(deployed.input.dtype)
        model = ModelMetadata.of(bundle.manifest.name, deployed.input, deployed.output)
        return cls(model, row)

    def of_name(self, name: str) -> "Asked":
        """The same of a model of this name."""
        return replace(self, model=replace(self.model, name=name))

    def client(self, url: str) -> BareClient:
        """A client of the server at `url`."""
        return BareClient(url, self.model)

    def request(self, url: str) -> bytes:
        """A whole request to the server at `url`, head and body."""
        body, head = RequestWriter(self.model).rows(self.row[np.newaxis])
        headers = {"Host": urlsplit(url).netloc, **head, "Content-Length": str(len(body))}
        lines = [f"POST {self.model.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + body

    def measured(self, server: Served, url: str = "") -> MeasuredServer:
        """A server of ours as one to measure, by its URL or another one of its own."""
        pids = frozenset((server.pid, *descendants(server.pid)))
        return MeasuredServer(url or server.url, self.request(url or server.url), pids)


@contextmanager
def generated_bundle(bundle: Bundle | None) -> Iterator[Bundle]:
    """`bundle`; without one, a generated MLP and a parity model of random weights, while the
    context lasts."""
    if bundle is not None:
        yield bundle
        return
    # Imported here: torch is not needed to measure a bundle.
    from parity_models.models.export import export_onnx
    from parity_models.models.networks import build_network

    deployed, parity = (
        NewModel(export_onnx(build_network("mlp", INPUT_SHAPE, OUTPUT_SHAPE), INPUT_SHAPE), "mlp")
        for _ in range(2)
    )
    code = CodeSpec("sum", "subtraction", k=2)
    with tempfile.TemporaryDirectory(prefix="parm-bench-") as folder:
        yield write_bundle(
            Path(folder, "bundle"),
            deployed=deployed,
            parity=[parity],
            code=code,
            inference_times=measure_models(deployed, [parity], []),
        )
