"""A Ray Serve deployment before another: a stand-in answers where the other is late or down.

    serve run front:app bundle=/srv/bundle   # parm protect --pairs log.jsonl --out /srv/bundle
    curl localhost:8000 --json '{"text": "where is my card?"}'

Bind your own deployment in place of `Classifier`. The stand-in learns from a log of its labels.
"""

import asyncio

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request

import parity_models as pm


@serve.deployment
class Classifier:
    """Takes the place of your model."""

    async def __call__(self, text: str) -> str:
        await asyncio.sleep(0.05)
        return "card_arrival" if "card" in text else "other"


@serve.deployment(max_ongoing_requests=100)
class Front:
    """Answers with the label of a text, from the classifier or its stand-in."""

    def __init__(self, classifier: DeploymentHandle, bundle: str, differ: float = 0.001) -> None:
        self._classifier = classifier
        self._late = pm.Late(bundle, differ=differ)

    async def __call__(self, request: Request) -> dict[str, str | float]:
        text = (await request.json())["text"]
        answer = await self._late(lambda: self._ask(text), text=text)
        return {
            "label": answer.value,
            "source": answer.source,
            "agreement": answer.agreement,
        }

    async def _ask(self, text: str) -> str:
        response = self._classifier.remote(text)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()  # else the classifier still runs it, though nothing waits for it
            raise


def app(args: dict[str, str]) -> Application:
    """Return the application that `serve run` starts."""
    return Front.bind(Classifier.bind(), args["bundle"])
