"""One client's connection over HTTP/1.1 (RFC 9112): its requests are answered one after another, in
their order.

Nothing that a client does, or leaves undone, is waited for without a limit: the server looks at
every connection now and then, and `check` ends those that are late.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from ipaddress import ip_address
from typing import Protocol, cast

from parity_models.serving.http.answer import CONTINUE, Unread, write_answer
from parity_models.serving.http.patience import Patience, Waits
from parity_models.serving.http.reader import HttpReader, Incoming
from parity_models.serving.limits import Limits
from parity_models.serving.rest.messages import Response
from parity_models.serving.rest.service import Rest

_log = logging.getLogger(__name__)

_PAUSE = 4
"""Requests that wait when no more of a connection is read for the time being."""

_SILENCE = 0.1
"""Seconds after which a connection that is one too many is told so, if it has asked nothing."""

_LINGER = 5.0
"""Seconds for which what a refused client still sends is dropped, so that it reads the answer."""

_PARTING = 0.5
"""Seconds that an idle client has to close its side of a connection that ends."""

_ROUND_TRIPS = (0.001, 0.005, 0.02)
"""Seconds after which it is looked whether a client that sends no more has gone altogether: within
a machine room, and further away. Later, it is looked at every tick."""


class ServerSide(Protocol):
    """What a connection needs of its server."""

    rest: Rest
    limits: Limits
    closing: bool
    """Is every answer to be the last of its connection?"""

    @property
    def date(self) -> bytes:
        """The header with the current date."""

    received: Callable[[float], None]
    sent: Callable[[float], None]
    """Told how many bytes come from clients, and how many go to them."""

    def lost(self, connection: "HttpConnection") -> None:
        """The connection is over."""

    def ended(self, reason: str) -> None:
        """A limit has ended a connection."""


class HttpConnection(asyncio.Protocol):
    """A connection of `server`; where `refused` says why, it gets that as its one answer (only
    the question whether the server is alive is answered all the same)."""

    def __init__(self, server: ServerSide, refused: Response | None = None) -> None:
        self._server = server
        self._rest = server.rest
        self._refused = refused
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._reader = HttpReader(self, server.rest, refused)
        self._patience = Patience(server.limits, refused is not None)
        self._unread = Unread(server.rest.budget, server.limits.write_timeout)
        self.waiting: deque[Incoming] = deque()
        """The requests that wait for the answers to those before them."""
        self._busy: Incoming | None = None
        self._task: asyncio.Task[None] | None = None
        self.ended = False
        """Is what comes from the client no longer looked at?"""
        self._half_closed = False
        """Does the client send no more, and get answers yet?"""
        self._lingers = False
        self._dropped = 0
        self._reading = True
        self._writable = True
        self._may_write = asyncio.Event()

    # From the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._local = _is_local(transport.get_extra_info("peername"))
        self._patience.wait(Waits.HEAD)
        if self._refused is not None:
            self._loop.call_later(_SILENCE, self._refuse_silent, self._refused)

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True
        self._patience.end()
        self._unread.gone()
        if self._task is not None:
            self._task.cancel()
        self._reader.close()
        if self._busy is not None:
            self.waiting.append(self._busy)
        for incoming in self.waiting:
            incoming.release()
        self.waiting.clear()
        self._busy = None
        self._server.lost(self)

    def data_received(self, data: bytes) -> None:
        self._server.received(len(data))
        if self.ended:
            self._drop(len(data))
        else:
            self._reader.feed(data)
            self._wait()

    def eof_received(self) -> bool:
        """The client sends no more. Does it get answers yet, or is the transport to close? TLS here
        knows no connection that is closed on one side."""
        if not self._transport.can_write_eof():
            return False
        last = self.waiting[-1] if self.waiting else self._busy
        if last is None or self._half_closed:
            return last is not None
        self._half_closed = self.ended = True
        last.keeps = False
        self._reader.abandon()
        # It may have closed the connection just as well. Then its system resets it as soon as
        # something comes, such as this, which clients drop that did not ask for it (RFC 9110,
        # section 15.2.1), and HTTP/1.0 does not know.
        if self._reader.knows_continue:
            self._transport.write(CONTINUE)
        for seconds in _ROUND_TRIPS:
            self._loop.call_later(seconds, self._look_for_reset)
        self._wait()
        return True

    def pause_writing(self) -> None:
        self._writable = False
        self._may_write.clear()
        self._unread.grew(self._transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._writable = True
        self._may_write.set()
        self._unread.gone()
        self._answer_next()
        self._wait()

    # From the server

    @property
    def idle(self) -> bool:
        """Has it no request that came whole or in part?"""
        return not (self._reader.begun or self._busy or self.waiting)

    def close(self) -> None:
        """End it, once what is written is sent."""
        self.ended = True
        self._patience.close(self._server.limits.write_timeout)
        self._transport.close()

    def half_close(self) -> None:
        """End it, and take what its client is just sending, which would else be answered with a
        reset."""
        self.ended = True
        self._patience.close(_PARTING)
        if not self._transport.can_write_eof():
            self._transport.close()
        elif not self._transport.is_closing():
            self._transport.write_eof()

    def abort(self) -> None:
        """End it at once."""
        self.ended = True
        self._transport.abort()

    def check(self, now: float) -> None:
        """End the connection if what it waits for is late, at the time `now` (monotonic)."""
        if self._half_closed:
            self._look_for_reset()
        if self._unread.due(now) and not self._unread.shrank(
            now, self._transport.get_write_buffer_size()
        ):
            self._server.ended("write timeout")
            self.abort()
        if now >= self._patience.due:
            self._late()
            self._wait()

    def _look_for_reset(self) -> None:
        """Has a client that sends no more gone altogether? The loop, which has nothing to read
        there, would only notice when it writes."""
        if not self._transport.is_closing():
            here: socket.socket = self._transport.get_extra_info("socket")
            if here.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.abort()

    def _late(self) -> None:
        waits = self._patience.waits
        if self._refused is not None and waits is Waits.HEAD:
            self._reader.refuse(self._refused)
        elif waits is Waits.BODY or (waits is Waits.HEAD and self._reader.begun):
            self._server.ended("body timeout" if waits is Waits.BODY else "head timeout")
            self._reader.fail(self._patience.late())
        elif waits is Waits.CLOSE:
            self.abort()
        else:
            self._server.ended("idle timeout")
            self.half_close()

    def _refuse_silent(self, refused: Response) -> None:
        """It has asked nothing yet; there is room for few that are refused, and others wait."""
        if self.idle and not self.ended:
            self._reader.refuse(refused, whole=True)

    # From the reader: Receiver

    def take(self, incoming: Incoming, *, whole: bool = True) -> None:
        """Answer a request now, or when its turn has come."""
        self._patience.wait(Waits.ANSWER)  # the next request's time is counted from its start
        if not incoming.keeps:
            self.ended = True
            self._lingers = not whole
        self.waiting.append(incoming)
        self._answer_next()

    def proceed(self) -> None:
        """Tell a client that waits for it to send its body, when those before it are answered."""
        incoming = self._reader.incoming
        if incoming is not None and incoming.expects and self._busy is None:
            incoming.expects = False
            self._transport.write(CONTINUE)

    # Answers

    def _answer_next(self) -> None:
        """Let what waits be answered, as far as the client reads."""
        while self.waiting and self._busy is None and self._writable:
            self._busy = incoming = self.waiting.popleft()
            if incoming.answer is not None:
                self._write(incoming, incoming.answer)
            else:
                self._task = self._loop.create_task(self._answer(incoming))
        self.proceed()
        read = len(self.waiting) < _PAUSE or self.ended
        if read != self._reading and not self._transport.is_closing():
            self._reading = read
            if read:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    async def _answer(self, incoming: Incoming) -> None:
        incoming.request.local = self._local
        response = await self._rest.answer(incoming.request)
        if response.pieces is not None:
            await self._write_pieces(incoming, response, response.pieces)
            return
        self._task = None
        try:
            self._write(incoming, response)
            self._answer_next()
            self._wait()
        except Exception:
            _log.exception("an answer could not be written")
            self.abort()

    def _write(self, incoming: Incoming, response: Response) -> None:
        """Write the answer to the request that is busy; it is over with that."""
        self._busy = None
        incoming.release()
        if self._transport.is_closing():
            return
        more = self.waiting or self._reader.incoming is not None
        last = not incoming.keeps or (self._server.closing and not more)
        date = self._server.date
        self._server.sent(write_answer(self._transport, incoming.request, response, date, last))
        if last:
            self._end()

    async def _write_pieces(
        self, incoming: Incoming, response: Response, pieces: AsyncGenerator[bytes, None]
    ) -> None:
        """Write an answer whose end is the connection's: each piece when the client has read what
        came before, so that little is kept for one that does not."""
        self.ended = True
        self._wait()
        date, sent = self._server.date, self._server.sent
        sent(write_answer(self._transport, incoming.request, response, date, True))
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    if not self._writable:
                        await self._may_write.wait()
                    self._transport.write(piece)
                    sent(len(piece))
        except Exception:
            _log.exception("an answer could not be written")
        self._task = None
        self._busy = None
        incoming.release()
        self.close()

    def _end(self) -> None:
        """Close after the last answer; first drop what the client is sending, for a client that
        is sending would lose an answer that comes with the end of its connection."""
        self.ended = True
        if self._lingers:
            self._patience.close(_LINGER)
            if self._transport.can_write_eof():
                self._transport.write_eof()
        else:
            self.close()

    def _drop(self, size: int) -> None:
        """Count what comes after the last request, up to more than honest clients send."""
        self._dropped += size
        if self._dropped > 2 * self._server.limits.max_body:
            self.abort()

    def _wait(self) -> None:
        """Count the time of what the connection waits for now, from when it began to."""
        if not self._reading or self.ended:
            waits = Waits.ANSWER
        elif self._reader.incoming is not None:
            waits = Waits.BODY
        elif self._reader.begun:
            waits = Waits.HEAD
        else:
            waits = Waits.REQUEST if self._busy is None else Waits.ANSWER
        self._patience.wait(waits)


def _is_local(peer: object) -> bool:
    """Is this peer, as sockets name them, this machine by a loopback address?"""
    try:
        address = ip_address(peer[0]) if isinstance(peer, tuple) else None
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address is not None and (mapped or address).is_loopback
