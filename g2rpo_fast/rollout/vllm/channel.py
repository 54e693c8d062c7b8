"""Requests and replies between the trainer and the engine process, over a socket pair.

A message is its length (8 bytes) and a pickle. The trainer asks, the engine answers: a reply is sent only to
somebody who waits for it. Whoever waits may look after the peer meanwhile, and give up by raising.
"""

from __future__ import annotations

import pickle
import select
import socket
from collections.abc import Callable
from typing import Any, TypeVar

_HEADER = 8
_CHUNK = 1 << 20

Waiting = Callable[[], None]
"""Called every `WAIT_S` while the peer neither reads nor writes; raises to give up."""
WAIT_S = 1.0
T = TypeVar("T")


class PeerDead(Exception):
    """The other end is closed: its process has ended."""


class Channel:
    """One end. Not for several threads."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    @property
    def readable(self) -> bool:
        """Whether a message, or the news that the peer is gone, is waiting."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def send(self, message: object, waiting: Waiting | None = None) -> None:
        """Raises PeerDead, and what `waiting` raises."""
        body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        left = memoryview(len(body).to_bytes(_HEADER, "little") + body)
        while left:
            left = left[self._patiently(lambda rest=left: self._socket.send(rest[:_CHUNK]), waiting) :]

    def receive(self, waiting: Waiting | None = None) -> Any:
        """Raises PeerDead, and what `waiting` raises."""
        size = int.from_bytes(self._exactly(_HEADER, waiting), "little")
        return pickle.loads(self._exactly(size, waiting))

    def close(self) -> None:
        self._socket.close()

    def _exactly(self, size: int, waiting: Waiting | None) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            left = min(size - len(parts), _CHUNK)
            part = self._patiently(lambda left=left: self._socket.recv(left), waiting)
            if not part:
                raise PeerDead
            parts += part
        return bytes(parts)

    def _patiently(self, action: Callable[[], T], waiting: Waiting | None) -> T:
        """The action's result, however long it takes the peer."""
        self._socket.settimeout(None if waiting is None else WAIT_S)
        while True:
            try:
                return action()
            except TimeoutError:
                assert waiting is not None
                waiting()
            except OSError as error:
                raise PeerDead from error
