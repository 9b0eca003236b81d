"""How long processes computed is told of all that came from this one, ended or not."""

import subprocess
import sys
import time

from parity_models.load.computing import Computed

SPIN = """
import subprocess, sys, time
def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
"""

SERVER = (
    SPIN
    + f"""
worker = subprocess.Popen([sys.executable, "-c", {SPIN + "spin(0.6); print(1); input()"!r}],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE)
worker.stdout.readline()
spin(0.3)
print("done", flush=True)
input()
worker.communicate(b"\\n")
"""
)


def test_a_server_that_has_ended_has_no_workers() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as server:
        pass
    assert Computed.until_now(server.pid).workers == 0


def test_workers_are_told_apart_from_who_serves_and_asks_though_that_one_has_ended() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        before = Computed.until_now(server.pid)
        subprocess.run([sys.executable, "-c", SPIN + "spin(0.5)"], check=True)
        assert server.stdout.readline() == "done\n"
        time.sleep(0.05)
        took = Computed.until_now(server.pid).since(before)
        server.communicate("\n")
    # What starting Python takes comes to each.
    assert 0.6 <= took.workers < 1.2
    assert 0.8 <= took.serving < 2
