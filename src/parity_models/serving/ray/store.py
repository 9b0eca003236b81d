"""A bundle's files on their way to the nodes: an actor that has put them into the object store.

The actor outlives who made it, so that replicas that start later find the files, too. It lives
on the head node, with which the cluster ends as well, and ends when nobody has asked for anything
for a while.
"""

import asyncio
import hashlib
import time
from dataclasses import dataclass
from typing import Any, Self

import ray

from parity_models.models.bundle import Bundle
from parity_models.models.bundle_files import MANIFEST
from parity_models.models.manifest import (
    Manifest,
    StoredFile,
    decode_manifest,
    digest_of,
    encode_manifest,
)
from parity_models.models.pinned_model import check_sha256

NAMESPACE = "parity-models"

KEEP = 120.0
"""Seconds for which an actor that nobody asks anything stays."""

_HEAD = "node:__internal_head__"


@dataclass(frozen=True)
class BundleFiles:
    """A bundle that is in a store, by the digest of its manifest there; `allowed` is what Bundle's
    is."""

    digest: str
    allowed: frozenset[str] = frozenset()

    @classmethod
    def of(cls, bundle: Bundle) -> Self:
        """The manifest is stored as the newest format has it, so its digest there is another than
        that of a bundle which an older version wrote."""
        return cls(digest_of(encode_manifest(bundle.manifest)), bundle.allowed)

    async def manifest(self) -> Manifest:
        """The manifest. Raises ModelError if it is another bundle's, ValueError if the store is
        gone."""
        content = await self._get(MANIFEST)
        check_sha256(MANIFEST, self.digest, digest_of(content))
        return decode_manifest(content)

    async def content(self, stored: StoredFile) -> bytes:
        """A file's content. Raises ModelError if it is not what the manifest says, ValueError if
        the store is gone."""
        content = await self._get(stored.file)
        check_sha256(stored.file, stored.sha256, hashlib.sha256(content).hexdigest())
        return content

    async def touch(self) -> None:
        """Keep the store for a while longer."""
        await _store(self.digest).touch.remote()

    async def _get(self, name: str) -> bytes:
        (reference,) = await _store(self.digest).get.remote(name)
        content: bytes = await reference
        return content


def put_bundle(bundle: Bundle) -> BundleFiles:
    """Put the files of a bundle that replicas need where they can get them.

    Raises BundleError if one is not what was checked when the bundle was opened.
    """
    files, manifest = BundleFiles.of(bundle), bundle.manifest
    models = (manifest.deployed, *manifest.parity, *manifest.coders.values(), *manifest.backups)
    envelopes = () if manifest.envelope is None else (manifest.envelope,)
    store: Any = (
        ray.remote(_Store)
        .options(
            name=files.digest,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            resources={_HEAD: 0.001},
        )
        .remote()
    )
    ray.get(store.put.remote(MANIFEST, encode_manifest(manifest)))
    for stored in (*models, *envelopes):
        ray.get(store.put.remote(stored.file, bundle.content(stored)))
    return files


def _store(digest: str) -> Any:
    return ray.get_actor(digest, NAMESPACE)


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
