"""What an engine and its workers say to each other over ZeroMQ, and where.

A message is a msgpack header, one of the structs below, and raw tensors in frames of their own:
a frame for each row of a Unit, one frame for the outputs of a Finished. Nothing is pickled.
Sockets lie in a directory that only this user can enter, unless a worker is placed elsewhere:

- reports (the engine pulls): hello, heartbeats and results of all workers
- units (the worker's computing thread pulls), and leases and faults, which hold for all units
  after them
- control (the worker's other thread pulls): what must not wait for a unit to end

A worker works for one engine at a time: the one whose lease it has, as the instance that the
lease names. What is meant for another instance came too late, and is ignored.
"""

import msgspec
import numpy as np
import zmq
from numpy.typing import NDArray

from parity_models.faults import FaultPlan
from parity_models.models.tensor import TensorSpec
from parity_models.serving.local.placement import Link

HEARTBEAT = 0.2
"""Seconds between two heartbeats of a worker."""


class AssignedModel(msgspec.Struct, frozen=True):
    """A model for a worker: a file descriptor that it inherits, and the hash of the content.

    `name` is for people.
    """

    descriptor: int
    sha256: str
    name: str


class Assignment(msgspec.Struct, frozen=True):
    """The worker's command line, as JSON: who it is and what it serves, by work.

    `parent` is the engine's process: when that is gone, so is the worker. `units` and `control`
    are where to listen; a TCP port may be left open, as *. `device`: see Placement.
    """

    instance: str
    parent: int
    models: dict[str, AssignedModel]
    directory: str
    reports: str
    units: str
    control: str
    device: str | None


class Lease(msgspec.Struct, frozen=True, tag=True):
    """From now on the worker is this instance, of the engine that pulls `reports`."""

    instance: str
    reports: str


class Unit(msgspec.Struct, frozen=True, tag=True):
    instance: str
    unit: int
    work: str


class Cancel(msgspec.Struct, frozen=True, tag=True):
    instance: str
    unit: int


class InjectFaults(msgspec.Struct, frozen=True, tag=True):
    """Faults of worker number `worker`, beginning at `start` of CLOCK_MONOTONIC."""

    plan: FaultPlan
    worker: int
    start: float


class Release(msgspec.Struct, frozen=True, tag=True):
    """The lease is over; another engine may have the worker."""

    instance: str


class Exit(msgspec.Struct, frozen=True, tag=True):
    instance: str


class ModelTensors(msgspec.Struct, frozen=True):
    """What a model takes and gives."""

    input: TensorSpec
    output: TensorSpec


class Hello(msgspec.Struct, frozen=True, tag=True):
    """The worker is warm, and listens at `units` and `control`; `models` are by work."""

    instance: str
    models: dict[str, ModelTensors]
    units: str
    control: str


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """The worker is alive; `leaving`: it asks to be released once its unit is done."""

    instance: str
    leaving: bool = False


class Finished(msgspec.Struct, frozen=True, tag=True):
    instance: str
    unit: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    instance: str
    unit: int
    detail: str


Report = Hello | Heartbeat | Finished | Failed

encode = msgspec.msgpack.Encoder().encode
decode_work = msgspec.msgpack.Decoder(Lease | Unit | InjectFaults).decode
decode_control = msgspec.msgpack.Decoder(Cancel | Release | Exit).decode
decode_report = msgspec.msgpack.Decoder(Report).decode


def rows_of(frame: zmq.Frame, spec: TensorSpec) -> NDArray[np.generic]:
    """The rows (n, *shape) in a frame, not copied if need not be. ValueError if they do not fit."""
    rows = np.frombuffer(frame.buffer, spec.dtype).reshape(-1, *spec.shape)
    # ZeroMQ hands out small messages where they lie in its receive buffer, at any address.
    return rows if rows.flags.aligned else rows.copy()


def reports_endpoint(directory: str, link: Link | None) -> str:
    return f"ipc://{directory}/reports" if link is None else f"tcp://{link.engine}:*"


def units_endpoint(directory: str, instance: str, link: Link | None) -> str:
    return _worker_endpoint(f"{directory}/{instance}.units", link)


def control_endpoint(directory: str, instance: str, link: Link | None) -> str:
    return _worker_endpoint(f"{directory}/{instance}.control", link)


def _worker_endpoint(path: str, link: Link | None) -> str:
    return f"ipc://{path}" if link is None else f"tcp://{link.worker}:*"


def bind(socket: zmq.Socket[bytes], endpoint: str) -> str:
    """Bind it; returns the endpoint with the port that it got, where that was open."""
    socket.bind(endpoint)
    bound = socket.get(zmq.LAST_ENDPOINT)
    assert isinstance(bound, bytes)
    return bound.rstrip(b"\0").decode()
