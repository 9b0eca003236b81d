"""The page over HTTP: its files, and the events.

Only requests from this machine, to one of its own names, are answered, whatever token they show: a
foreign page whose name is made to lead here (DNS rebinding) is refused.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from importlib.resources import files
from urllib.parse import parse_qs, urlsplit

import msgspec

from parity_models.serving.page.feed import Feed
from parity_models.serving.rest.messages import (
    Handler,
    Headers,
    Request,
    Response,
    error_response,
    json_response,
)

_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".svg": b"image/svg+xml",
}

_OURS: Headers = (
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
)

_EVENTS: Headers = ((b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"))

_HERE = frozenset({"localhost", "127.0.0.1", "::1"})


class About(msgspec.Struct, frozen=True):
    """The page's title, and whether it shows the models of a repository, one at a time."""

    title: str
    repository: bool


class Page:
    """The routes of a page.

    Args:
        title: The page's title.
        feed: Returns the feed that the parameters of an address name; None if it is not there now.
        repository: Whether that is the feed of a repository's model.

    """

    def __init__(
        self, title: str, feed: Callable[[Mapping[str, str]], Feed | None], *, repository: bool
    ) -> None:
        self._about_it = About(title, repository)
        self._feed = feed
        self._files = _read_files()

    @property
    def open_paths(self) -> Collection[str]:
        """The paths of the page's own files, which say nothing about a server. They need no token:
        a browser must load them before it can show one."""
        return ("/ui", "/ui/", *(f"/ui/{name}" for name in self._files))

    def routes(self) -> dict[str, tuple[str, Handler]]:
        """Return method and handler by path, for Rest."""
        routes: dict[str, tuple[str, Handler]] = {
            "/ui": ("GET", self._moved),
            "/ui/": ("GET", partial(self._file, "index.html")),
            "/ui/about": ("GET", self._about),
            "/ui/events": ("GET", self._events),
        }
        for name in self._files:
            routes[f"/ui/{name}"] = ("GET", partial(self._file, name))
        return {path: (method, _for_here(handler)) for path, (method, handler) in routes.items()}

    async def _moved(self, request: Request) -> Response:
        return Response(308, b"", ((b"location", b"/ui/"),))

    async def _file(self, name: str, request: Request) -> Response:
        content, media_type = self._files[name]
        return Response(200, content, ((b"content-type", media_type), *_OURS))

    async def _about(self, request: Request) -> Response:
        return json_response(self._about_it, headers=_OURS)

    async def _events(self, request: Request) -> Response:
        asked = parse_qs(urlsplit(request.target).query)
        feed = self._feed({name: values[0] for name, values in asked.items()})
        if feed is None:
            return error_response("this model or version is not running; try again soon", 503)
        if feed.full:
            return error_response("too many watch already; close another page", 503)
        pieces = None if request.method == "HEAD" else feed.follow()
        return Response(200, b"", _EVENTS, pieces)


def _for_here(handler: Handler) -> Handler:
    """Wrap a handler: answer only requests from this machine under one of its own names."""

    async def handle(request: Request) -> Response:
        try:
            host = urlsplit(f"//{request.headers.get('host', '')}").hostname
        except ValueError:
            host = None
        if not request.is_local or host not in _HERE:
            text = "the live page is for this machine: open it as http://127.0.0.1:PORT/ui/"
            return error_response(text, 403)
        return await handler(request)

    return handle


def _read_files() -> dict[str, tuple[bytes, bytes]]:
    """Return the page's files and their media types, by name."""
    folder = files(__package__) / "static"
    found = {}
    for file in folder.iterdir():
        media_type = _TYPES.get("." + file.name.rpartition(".")[2])
        if media_type is not None:
            found[file.name] = (file.read_bytes(), media_type)
    return found
