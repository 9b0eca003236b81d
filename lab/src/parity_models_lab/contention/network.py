"""A network of namespaces: machines behind shaped links around a switch, and a frontend.

    frontend ────── switch ──┬── shaped ── machine 0
                             ├── shaped ── machine 1
                             └── ...

All of it, the switch too, is in namespaces of its own; nothing outside can reach it, and it is
gone when they are. Addresses are of the block for benchmarks (RFC 2544).
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from parity_models_lab.contention.namespaces import (
    abandoned,
    check_privileges,
    configure,
    inside,
    own_prefix,
    remove,
)
from parity_models_lab.contention.transfers import Network

FRONTEND_ADDRESS = "198.18.0.1"
CONNECT_TIMEOUT = 2.0

_UP = 2
"""The factor by which machines send faster than they receive. So bytes wait at the receiver's end,
as where many senders meet: the paper's links have 1 to 2 Gbit/s."""

_BURST = 70_000
"""Bytes that a link lets through at once after a rest: the largest parcel that TCP hands over,
with headers. Were it less, the kernel would cut parcels up, at ten times the computing time."""


@dataclass(frozen=True)
class Star:
    """Names of the namespaces around the switch."""

    frontend: str
    machines: tuple[str, ...]

    def connect(self, source: int, target: int) -> tuple[socket.socket, socket.socket]:
        """Return both ends of a new TCP connection between machines. Raises OSError if it fails."""
        with inside(self.machines[target]):
            listener = socket.create_server((machine_address(target), 0))
        with listener:
            listener.settimeout(CONNECT_TIMEOUT)
            with inside(self.machines[source]):
                sender = socket.socket()
            try:
                sender.settimeout(CONNECT_TIMEOUT)
                sender.connect(listener.getsockname())
                receiver, _ = listener.accept()
            except BaseException:
                sender.close()
                raise
        return sender, receiver


def machine_address(machine: int) -> str:
    """Return the address of a machine of the star."""
    return f"198.18.{1 + machine // 250}.{1 + machine % 250}"


@contextmanager
def star(network: Network, machines: int) -> Iterator[Star]:
    """Make such a network while the context lasts. Raises ContentionError if it cannot be made.

    What earlier ones have left because their process was killed is removed first.
    """
    check_privileges()
    remove(abandoned())
    prefix = own_prefix()
    made = Star(f"{prefix}frontend", tuple(f"{prefix}{i}" for i in range(machines)))
    switch = f"{prefix}switch"
    everyone = (switch, made.frontend, *made.machines)
    try:
        configure("ip", [f"netns add {name}" for name in everyone])
        _connect_all(network, switch, made)
        yield made
    finally:
        remove(everyone)


def _connect_all(network: Network, switch: str, made: Star) -> None:
    ends = [(made.frontend, FRONTEND_ADDRESS, "port-f")]
    ends += [(name, machine_address(i), f"port-{i}") for i, name in enumerate(made.machines)]
    configure(
        "ip",
        [
            "link add name bridge0 type bridge",
            "link set dev bridge0 up",
            *(
                f"link add name {port} type veth peer name eth0 netns {name}\n"
                f"link set dev {port} addrgenmode none\n"
                f"link set dev {port} master bridge0 up"
                for name, _, port in ends
            ),
        ],
        switch,
    )
    for name, address, _ in ends:
        configure(
            "ip",
            [
                "link set dev lo up",
                "link set dev eth0 addrgenmode none",
                f"address add {address}/16 dev eth0",
                "link set dev eth0 up",
                # Kernels differ in their default; this one fills queues, as most traffic does.
                f"route replace 198.18.0.0/16 dev eth0 src {address} congctl cubic",
            ],
            name,
        )
    down = f"root tbf rate {network.rate:.0f}bit burst {_BURST}b limit {network.queue}b"
    configure("tc", [f"qdisc add dev {port} {down}" for _, _, port in ends[1:]], switch)
    up = f"root tbf rate {_UP * network.rate:.0f}bit burst {_BURST}b limit {network.queue}b"
    for name in made.machines:
        configure("tc", [f"qdisc add dev eth0 {up}"], name)
