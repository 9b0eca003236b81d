"""The example's guard in the real LiteLLM: it blocks, and its stand-in answers where it is late."""

import importlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from late_targets import MODEL, ROWS
from parity_models.bundle.backup import GatedBackup
from parity_models.bundle.bundle import Bundle

pytestmark = pytest.mark.servers

ROOT = Path(__file__).parent.parent.parent
LITELLM = ROOT / ".servers" / "litellm"


class Classifier(BaseHTTPRequestHandler):
    """Allows what does not say "card"."""

    def do_POST(self) -> None:
        text = json.loads(self.rfile.read(int(self.headers["content-length"])))["inputs"]
        allowed = float("card" not in text)
        body = json.dumps(
            [{"label": "allowed", "score": allowed}, {"label": "blocked", "score": 1 - allowed}]
        ).encode()
        self.send_response(200)
        self.send_header("content-length", f"{len(body)}")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def classifier() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Classifier)
    Thread(target=server.serve_forever).start()
    yield server
    server.shutdown()
    server.server_close()


class Backup(GatedBackup):
    """Takes any text for the same row, and says that it is allowed."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, budgeted=True)
        self.labels = ["blocked"] * MODEL.shape[1]
        self.labels[int(MODEL.argmax())] = "allowed"

    def read(self, inputs: Any) -> Any:
        return super().read(ROWS)


async def test_a_prompt_is_blocked_and_a_stand_in_allows_one_when_the_guard_is_down(
    bundle: Bundle, classifier: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LITELLM.exists(), f"there is no LiteLLM at {LITELLM}; make servers installs it"
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # nothing is downloaded
    for folder in (LITELLM, ROOT / "examples" / "guard"):
        monkeypatch.syspath_prepend(folder)
    litellm = importlib.import_module("litellm")
    litellm_guard = importlib.import_module("litellm_guard")

    url = f"http://127.0.0.1:{classifier.server_port}/predict"
    guard = litellm_guard.StandInGuard(
        Backup(bundle), url, 0.1, guardrail_name="guard", event_hook="pre_call", default_on=True
    )
    monkeypatch.setattr(litellm, "callbacks", [guard])

    async def ask(text: str) -> Any:
        completion = await litellm.acompletion(
            model="gpt-4o",
            messages=[{"role": "user", "content": text}],
            mock_response="Here is how.",
            guardrails=["guard"],
        )
        return completion.choices[0].message.content

    assert await ask("What is the weather?") == "Here is how."
    with pytest.raises(litellm.exceptions.GuardrailRaisedException, match="blocked"):
        await ask("Where is my card?")
    classifier.shutdown()
    classifier.server_close()
    assert await ask("What is the weather?") == "Here is how."
    assert guard.counts["backup"] == 1
    message = {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}
    with pytest.raises(litellm.exceptions.GuardrailRaisedException, match="unread"):
        await guard.async_moderation_hook(message, None, "acompletion")
