"""A bundle in an application of FastAPI: its protocol under /coded, and a route of your own.

BUNDLE=own/bundle uvicorn --app-dir examples/asgi fastapi_app:app
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from fastapi import FastAPI, Request

import parity_models


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    async with parity_models.serve(os.environ["BUNDLE"], instances=2, port=None) as serving:
        app.mount("/coded", serving.app())
        yield {"serving": serving}


app = FastAPI(lifespan=lifespan)


@app.post("/classify")
async def classify(request: Request, rows: list[Any]) -> dict[str, Any]:
    answers = await request.state.serving.predict(np.array(rows))
    return {"classes": answers.output.argmax(axis=1).tolist(), "sources": answers.sources}
