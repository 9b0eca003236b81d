"""The requests of a chaos run, drawn by their number from the seed: honest, absurd and nonsense."""

from dataclasses import dataclass
from random import Random

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.serving.protocol import HEADER_LENGTH
from parity_models_lab.chaos.known_model import INPUTS, MODEL, ROWS, KnownModel
from parity_models_lab.chaos.ledger import Kind

POISON = 12345.0
"""The first element of a query that kills whoever runs it."""
ABSURD = (5.0, 100.0, -1e6, 1e30, 3e38, float("nan"), float("inf"))
PATH = f"/v2/models/{MODEL}/infer"


@dataclass(frozen=True)
class Drawn:
    """A request: `rows` (n, INPUTS) to ask about; None: `raw` is sent as it is.

    `timeout` in seconds, None: the server's; `patience`: after so many seconds the client hangs up.
    """

    kind: Kind
    rows: NDArray[np.float32] | None
    raw: bytes = b""
    timeout: float | None = None
    patience: float | None = None
    json: bool = False
    exact: bool = False
    grpc: bool = False

    @property
    def queries(self) -> int:
        return 1 if self.rows is None else len(self.rows)


@dataclass(frozen=True)
class Mix:
    """What is asked for now. Shares of all requests; what is left is honest.

    `timeouts`: the range of an honest request's timeout in seconds, if all of them have one.
    `rows`: how many rows an honest request may have.
    """

    absurd: float = 0.0
    nonsense: float = 0.0
    poison: float = 0.0
    impatient: float = 0.0
    timeouts: tuple[float, float] | None = None
    rows: tuple[int, ...] = (1, 1, 1, 2, 4, 8)
    grpc: float = 0.1


def draw(number: int, seed: int, mix: Mix, model: KnownModel, deadline: float) -> Drawn:
    """Request `number` of the run: depends on these arguments alone."""
    rng = Random(f"{seed}/{number}")
    kind = _kind(rng, mix)
    if kind is Kind.NONSENSE:
        return Drawn(kind, None, nonsense(rng))
    count = rng.choice(mix.rows)
    rows = model.rows[[rng.randrange(ROWS) for _ in range(count)]]
    if kind is Kind.ABSURD:
        # One element, or all of them.
        columns = slice(None) if rng.random() < 0.5 else rng.randrange(INPUTS)
        rows[:, columns] = rng.choice(ABSURD)
    elif kind is Kind.POISON:
        rows = rows[:1]
        rows[0, 0] = POISON
    timeout = None
    if mix.timeouts is not None:
        timeout = rng.uniform(*mix.timeouts)
    elif rng.random() < 0.2:
        timeout = rng.uniform(0.1, deadline)
    return Drawn(
        kind,
        rows,
        timeout=timeout,
        patience=rng.uniform(0.001, 0.05) if kind is Kind.IMPATIENT else None,
        json=rng.random() < 0.05,
        exact=rng.random() < 0.05,
        grpc=rng.random() < mix.grpc,
    )


def _kind(rng: Random, mix: Mix) -> Kind:
    others = {
        Kind.ABSURD: mix.absurd,
        Kind.NONSENSE: mix.nonsense,
        Kind.POISON: mix.poison,
        Kind.IMPATIENT: mix.impatient,
    }
    shares = {**others, Kind.HONEST: 1.0 - sum(others.values())}
    (kind,) = rng.choices(list(shares), list(shares.values()))
    return kind


def http_request(drawn: Drawn, number: int, authority: str) -> bytes:
    """The whole HTTP request."""
    if drawn.rows is None:
        return drawn.raw.replace(b"AUTHORITY", authority.encode())
    tensor: dict[str, object] = {
        "name": "input",
        "datatype": "FP32",
        "shape": drawn.rows.shape,
    }
    parameters: dict[str, object] = {}
    if drawn.timeout is not None:
        parameters["timeout"] = max(1, round(drawn.timeout * 1e6))
    if drawn.exact:
        parameters["redundancy"] = "exact"
    message = {"id": str(number), "inputs": [tensor], "parameters": parameters}
    headers = [f"POST {PATH} HTTP/1.1", f"Host: {authority}"]
    if drawn.json and np.isfinite(drawn.rows).all():
        tensor["data"] = drawn.rows.ravel().tolist()
        body = msgspec.json.encode(message)
        headers.append("Content-Type: application/json")
    else:
        tensor["parameters"] = {"binary_data_size": drawn.rows.nbytes}
        parameters["binary_data_output"] = True
        head = msgspec.json.encode(message)
        body = head + drawn.rows.tobytes()
        headers.append(f"{HEADER_LENGTH}: {len(head)}")
    headers.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*headers, "", ""]).encode() + body


def nonsense(rng: Random) -> bytes:
    """A request that nobody can answer; AUTHORITY stands for the server's host and port."""
    return rng.choice(_NONSENSE)(rng)


def _post(body: bytes, path: str = PATH, headers: str = "") -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: AUTHORITY\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body


def _infer(**changes: object) -> bytes:
    tensor: dict[str, object] = {"name": "input", "datatype": "FP32", "shape": [1, INPUTS]}
    tensor |= {"data": [0.5] * INPUTS} | changes
    return _post(msgspec.json.encode({"inputs": [tensor]}))


_NONSENSE = (
    lambda rng: _infer(shape=[1, INPUTS + rng.randint(1, 9)]),
    lambda rng: _infer(shape=[rng.choice((0, -1, 2**40)), INPUTS]),
    lambda rng: _infer(data=[0.5] * rng.randrange(INPUTS)),
    lambda rng: _infer(data=[[0.5, "a"]]),
    lambda rng: _infer(datatype=rng.choice(("FP64", "BYTES", "", "float"))),
    lambda rng: _infer(name="other"),
    lambda rng: _infer(data=[1e39] * INPUTS),
    lambda rng: _post(rng.randbytes(rng.randrange(1, 400))),
    lambda rng: _post(b"[" * 10_000),
    lambda rng: _post(b'{"inputs": [{"name": "input", "datatype": "FP32", "shape": [1'),
    lambda rng: _post(b"", path="/v2/models/another/infer"),
    lambda rng: _post(b"{}", headers=f"{HEADER_LENGTH}: {rng.choice(('x', '-1', '99'))}\r\n"),
    lambda rng: b"BREW /pot HTTP/1.1\r\nHost: AUTHORITY\r\n\r\n",
    lambda rng: b"GET / HTTP/1.1\r\nHost: AUTHORITY\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    lambda rng: rng.randbytes(200) + b"\r\n\r\n",
)
