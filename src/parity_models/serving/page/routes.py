"""The page over HTTP: its files, what there is to watch, and the events.

Only requests from this machine, to one of its own names, are answered, whatever token they show: a
foreign page whose name is made to lead here (DNS rebinding) is refused. Nothing here changes the
server, except the demo's `controls`; those need a token, which other origins cannot read.
"""

import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from importlib.resources import files
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

import msgspec

from parity_models.errors import UserError
from parity_models.serving.page.feed import Feed
from parity_models.serving.rest.messages import (
    Handler,
    Headers,
    Request,
    Response,
    error_response,
    json_response,
)

TOKEN = "x-parm-token"
"""The header that a control request has to have."""

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


class Side(msgspec.Struct, frozen=True):
    """One server that is watched; `events` is where."""

    name: str
    events: str


class Controls(msgspec.Struct, frozen=True):
    """What the demo's page can set: one of `policies` for each side, up to `max_rate` queries/s."""

    policies: tuple[str, ...]
    max_rate: float
    rate: float
    token: str


class About(msgspec.Struct, frozen=True):
    """What the page shows: `sides`, or one of the models of a `repository` at a time."""

    title: str
    sides: tuple[Side, ...]
    controls: Controls | None
    repository: bool = False


class Shown(Protocol):
    """What there is to watch."""

    @property
    def sides(self) -> tuple[Side, ...]:
        """The servers that the page shows for good."""

    def feed(self, asked: Mapping[str, str]) -> Feed | None:
        """Return the feed that the parameters of an address name; None if it is not there now."""


class Sides:
    """Servers that are watched side by side: `feeds` by name; None: not there for now."""

    def __init__(self, feeds: Mapping[str, Callable[[], Feed | None]]) -> None:
        self._feeds: Sequence[Callable[[], Feed | None]] = list(feeds.values())
        self.sides = tuple(Side(name, f"events?side={n}") for n, name in enumerate(feeds))

    def feed(self, asked: Mapping[str, str]) -> Feed | None:
        """That of a side, by its number; the first by default."""
        number = asked.get("side", "0")
        if number not in map(str, range(len(self._feeds))):
            return None
        return self._feeds[int(number)]()


class Page:
    """The routes of a page of what is `shown`.

    `control` carries out a request of the demo's page, whose body it gets, or raises UserError;
    `controls` says what may be asked, without the token, which is drawn here.
    """

    def __init__(
        self,
        title: str,
        shown: Shown,
        control: Callable[[bytes], Awaitable[None]] | None = None,
        controls: Callable[[str], Controls] | None = None,
    ) -> None:
        self._title = title
        self._shown = shown
        self._control = control
        self._controls = controls
        self._token = secrets.token_urlsafe(32)
        self._files = _read_files()

    @property
    def open_paths(self) -> Collection[str]:
        """The paths of the page's own files, which say nothing about a server. They need no token:
        a browser must load them before it can show one."""
        return ("/ui", "/ui/", *(f"/ui/{name}" for name in self._files))

    def routes(self) -> dict[str, tuple[str, Handler]]:
        """Method and handler by path, for Rest."""
        routes: dict[str, tuple[str, Handler]] = {
            "/ui": ("GET", self._moved),
            "/ui/about": ("GET", self._about),
            "/ui/events": ("GET", self._events),
        }
        for name in self._files:
            routes[f"/ui/{name}"] = ("GET", partial(self._file, name))
        routes["/ui/"] = ("GET", partial(self._file, "index.html"))
        if self._control is not None:
            routes["/ui/control"] = ("POST", self._do)
        return {path: (method, _for_here(handler)) for path, (method, handler) in routes.items()}

    async def _moved(self, request: Request) -> Response:
        return Response(308, b"", ((b"location", b"/ui/"),))

    async def _file(self, name: str, request: Request) -> Response:
        content, media_type = self._files[name]
        return Response(200, content, ((b"content-type", media_type), *_OURS))

    async def _about(self, request: Request) -> Response:
        controls = None if self._controls is None else self._controls(self._token)
        shown = self._shown
        about = About(self._title, shown.sides, controls, not shown.sides)
        return json_response(about, headers=_OURS)

    async def _events(self, request: Request) -> Response:
        asked = parse_qs(urlsplit(request.target).query)
        feed = self._shown.feed({name: values[0] for name, values in asked.items()})
        if feed is None:
            return error_response("what is asked for is not there now; ask again soon", 503)
        if feed.full:
            return error_response("too many watch already; close another page", 503)
        pieces = None if request.method == "HEAD" else feed.follow()
        return Response(200, b"", _EVENTS, pieces)

    async def _do(self, request: Request) -> Response:
        assert self._control is not None
        if not secrets.compare_digest(
            request.headers.get(TOKEN, "").encode(), self._token.encode()
        ):
            return error_response(f"the header {TOKEN} is not the page's; load the page anew", 403)
        try:
            await self._control(bytes(request.body))
        except UserError as error:
            return error_response(str(error), 400)
        return json_response({})


def _for_here(handler: Handler) -> Handler:
    """The handler, for requests from this machine under one of its own names."""

    async def handle(request: Request) -> Response:
        try:
            host = urlsplit(f"//{request.headers.get('host', '')}").hostname
        except ValueError:
            host = None
        if not request.local or host not in _HERE:
            text = "the live page is for this machine: open it as http://127.0.0.1:PORT/ui/"
            return error_response(text, 403)
        return await handler(request)

    return handle


def _read_files() -> dict[str, tuple[bytes, bytes]]:
    """The page's files and their media types, by name."""
    folder = files(__package__) / "static"
    found = {}
    for file in folder.iterdir():
        media_type = _TYPES.get("." + file.name.rpartition(".")[2])
        if media_type is not None:
            found[file.name] = (file.read_bytes(), media_type)
    return found
