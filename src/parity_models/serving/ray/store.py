"""A bundle's files on their way to the nodes: an actor that has put them into the object store.

The actor outlives who made it, so that replicas that start later find the files, too. It lives
on the head node, with which the cluster ends as well, and ends when nobody has asked for anything
for a while.
"""

import asyncio
import hashlib
import time
from dataclasses import dataclass
from typing import Any

import ray

from parity_models.models.bundle import MANIFEST, Bundle

NAMESPACE = "parity-models"

KEEP = 120.0
"""Seconds for which an actor that nobody asks anything stays."""

_HEAD = "node:__internal_head__"


@dataclass(frozen=True)
class BundleFiles:
    """A bundle that is in a store: its fingerprint, which is the store's name."""

    fingerprint: str

    async def get(self, name: str) -> bytes:
        """A file's content. Raises ValueError if the store is gone."""
        (reference,) = await _store(self.fingerprint).get.remote(name)
        content: bytes = await reference
        return content

    async def touch(self) -> None:
        """Keep the store for a while longer."""
        await _store(self.fingerprint).touch.remote()


def put_bundle(bundle: Bundle) -> BundleFiles:
    """Put the files of a bundle that replicas need where they can get them."""
    manifest = bundle.path / MANIFEST
    models = (bundle.manifest.deployed, *bundle.manifest.parity, *bundle.manifest.coders.values())
    backups = () if bundle.manifest.backup is None else (bundle.manifest.backup,)
    envelopes = () if bundle.manifest.envelope is None else (bundle.manifest.envelope,)
    names = [MANIFEST, *(stored.file for stored in (*models, *backups, *envelopes))]
    fingerprint = hashlib.sha256(manifest.read_bytes()).hexdigest()[:16]
    store: Any = (
        ray.remote(_Store)
        .options(
            name=fingerprint,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            resources={_HEAD: 0.001},
        )
        .remote()
    )
    for name in names:
        ray.get(store.put.remote(name, (bundle.path / name).read_bytes()))
    return BundleFiles(fingerprint)


def _store(fingerprint: str) -> Any:
    return ray.get_actor(fingerprint, NAMESPACE)


class _Store:
    """The actor. What it puts into the object store stays there for as long as it lives."""

    def __init__(self) -> None:
        self._references: dict[str, ray.ObjectRef[bytes]] = {}
        self._touched = time.monotonic()
        self._end = asyncio.create_task(self._end_when_forgotten())

    async def put(self, name: str, content: bytes) -> None:
        if name not in self._references:
            self._references[name] = ray.put(content)
        await self.touch()

    async def get(self, name: str) -> list["ray.ObjectRef[bytes]"]:
        await self.touch()
        return [self._references[name]]

    async def touch(self) -> None:
        self._touched = time.monotonic()

    async def _end_when_forgotten(self) -> None:
        while time.monotonic() - self._touched < KEEP:
            await asyncio.sleep(1)
        ray.kill(ray.get_runtime_context().current_actor)
