"""The page over HTTP: its files, and the present frame, made once for all browsers.

Only requests from this machine, to one of its own names, are answered, whatever their token: a
foreign page whose name resolves to this machine (DNS rebinding) is refused.
"""

from collections.abc import Collection
from functools import partial
from importlib.resources import files
from urllib.parse import parse_qsl, urlsplit

from parity_models.serving.models import Models
from parity_models.serving.rest import (
    FRAME,
    JSON,
    Handler,
    Headers,
    Request,
    Response,
    error_response,
    json_response,
)

_TYPES = {
    "html": b"text/html; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "svg": b"image/svg+xml",
}

_SAFE: Headers = (
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
)

_STATE: Headers = (*JSON, (b"cache-control", b"no-store"))

_HERE = frozenset({"localhost", "127.0.0.1", "::1"})
_FORWARDED = frozenset({"forwarded", "x-forwarded-for", "via"})
"""Headers of proxies, whose clients are elsewhere."""


class Page:
    """The routes of the page of a server of these models, each of which is watched."""

    def __init__(self, models: Models) -> None:
        self._models = models
        index = Response(308, b"", ((b"location", b"/ui/"),))
        about = {"title": models.title, "repository": models.only is None}
        self._answers = {"/ui": index, "/ui/about": json_response(about, headers=_SAFE)}
        for file in (files(__package__) / "static").iterdir():
            media_type = _TYPES.get(file.name.rpartition(".")[2])
            if media_type is not None:
                path = "/ui/" + file.name.replace("index.html", "")
                headers = ((b"content-type", media_type), *_SAFE)
                self._answers[path] = Response(200, file.read_bytes(), headers)
        self.open_paths: Collection[str] = self._answers.keys() - {"/ui/about"}
        """The paths of the page's own files, which say nothing about a server. They need no token:
        a browser must load them before it can show one."""

    def routes(self) -> dict[str, tuple[str, Handler]]:
        """Return method and handler by path, for Rest."""
        paths = (*self._answers, FRAME)
        return {path: ("GET", partial(self._handle, path)) for path in paths}

    async def _handle(self, path: str, request: Request) -> Response:
        try:
            host = urlsplit(f"//{request.headers.get('host', '')}").hostname
        except ValueError:
            host = None
        forwarded = not _FORWARDED.isdisjoint(request.headers)
        if not request.is_local or forwarded or host not in _HERE:
            text = "the live page is for this machine: open it as http://127.0.0.1:PORT/ui/"
            return error_response(text, 403)
        if path in self._answers:
            return self._answers[path]
        asked = dict(parse_qsl(urlsplit(request.target).query))
        version = self._models.only or self._models.find(
            asked.get("model", ""), asked.get("version")
        )
        return Response(200, version.frame(), _STATE)
