"""A guard before an LLM, as a LiteLLM guardrail: a stand-in answers where the classifier is late.

LiteLLM's configuration, which it reads next to this file:

    guardrails:
      - guardrail_name: guard
        litellm_params:
          guardrail: litellm_guard.StandInGuard
          mode: pre_call  # or during_call, which races the guard against the generation
          default_on: true
          bundle: bundle  # parm protect --pairs log.jsonl --answer-only allowed --out bundle
          url: http://classifier:8080/predict

The classifier answers `{"inputs": text}` with `[{"label": ..., "score": ...}, ...]`, as Text
Embeddings Inference does. The stand-in learns from a log of texts and labels.
"""

from typing import Any

import httpx
from litellm.exceptions import GuardrailRaisedException
from litellm.integrations.custom_guardrail import CustomGuardrail

import parity_models as pm

ALLOWED = "allowed"


class StandInGuard(CustomGuardrail):
    """Blocks a prompt unless the classifier, or its stand-in, allows the last user message."""

    def __init__(self, bundle: Any, url: str, differ: float = 0.001, **options: Any) -> None:
        super().__init__(**options)
        client = httpx.AsyncClient(timeout=10)
        late = pm.Late(bundle, differ=differ)
        self.counts = late.counts

        @late.answers(lambda text: text)
        async def label(text: str) -> str:
            response = await client.post(url, json={"inputs": text})
            scores = response.raise_for_status().json()
            return str(max(scores, key=lambda each: each["score"])["label"])

        self._label = label

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str
    ) -> None:
        await self._check(data)

    async def async_moderation_hook(
        self, data: dict[str, Any], user_api_key_dict: Any, call_type: str
    ) -> None:
        await self._check(data)

    async def _check(self, data: dict[str, Any]) -> None:
        said = [each["content"] for each in data.get("messages", ()) if each["role"] == "user"]
        verdict = await self._label(said[-1]) if said and isinstance(said[-1], str) else "unread"
        if verdict != ALLOWED:
            raise GuardrailRaisedException(self.guardrail_name, f"the guard says: {verdict}")
