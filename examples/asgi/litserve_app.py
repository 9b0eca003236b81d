"""A bundle beside an API of LitServe, in its server: the protocol is under /coded.

BUNDLE=own/bundle python examples/asgi/litserve_app.py
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import litserve
from fastapi import FastAPI

import parity_models


class Shout(litserve.LitAPI):
    """What you serve already."""

    def setup(self, device: str) -> None:
        self.end = "!"

    def decode_request(self, request: dict[str, str]) -> str:
        return request["text"]

    def predict(self, text: str) -> str:
        return text.upper() + self.end

    def encode_response(self, output: str) -> dict[str, str]:
        return {"text": output}


def beside(server: litserve.LitServer, bundle: str) -> None:
    """Have the server's application hold the bundle as well, from its start to its end."""
    router = server.app.router
    own = router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        async with own(app) as state, parity_models.serve(bundle, port=None) as serving:
            app.mount("/coded", serving.app())
            yield state

    router.lifespan_context = lifespan


if __name__ == "__main__":
    server = litserve.LitServer(Shout(), accelerator="cpu")
    beside(server, os.environ["BUNDLE"])
    # One process for HTTP: each would have workers of its own.
    server.run(
        host="127.0.0.1",
        port=int(os.environ.get("PORT", "8000")),
        num_api_servers=1,
        generate_client_file=False,
    )
