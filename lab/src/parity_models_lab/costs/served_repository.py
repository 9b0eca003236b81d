"""A server of a repository in a process of its own, as by `parm serve --repository`."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parity_models.load.child import commands, tell
from parity_models.load.served import ServeSpec, main
from parity_models.models.bundle import Bundle
from parity_models.serving.garbage import freeze_modules
from parity_models.serving.repository.repository import RepositoryServer


@contextmanager
def copies_of(bundle: Bundle, names: list[str]) -> Iterator[Path]:
    """A repository of models by these names, each of which is the bundle, while the context lasts.

    `names` are those of folders.
    """
    with tempfile.TemporaryDirectory(prefix="parm-bench-") as folder:
        for name in names:
            Path(folder, name).mkdir()
            Path(folder, name, "1").symlink_to(bundle.path.resolve(), target_is_directory=True)
        yield Path(folder)


async def serve(spec: ServeSpec) -> None:
    """Serve the repository that the spec names as its bundle until standard input ends."""
    async with RepositoryServer(Path(spec.bundle), spec.options, spec.allow_code) as server:
        freeze_modules()
        tell(server.url)
        async for _ in await commands():
            pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], serve))
