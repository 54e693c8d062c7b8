"""Requests and replies between the trainer and the engine process, over a socket pair.

A message is its length (8 bytes) and a pickle. The trainer asks, the engine answers: neither blocks on a peer
that does not read, because a reply is sent only to somebody who waits for it, and every wait has an end.
"""

from __future__ import annotations

import pickle
import select
import socket
import time
from typing import Any

_HEADER = 8
_CHUNK = 1 << 20


class PeerDead(Exception):
    """The other end is closed: its process has ended."""


class PeerSilent(Exception):
    """The other end did not read or answer in time."""


class Channel:
    """One end. Not for several threads."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    @property
    def readable(self) -> bool:
        """Whether a message, or the news that the peer is gone, is waiting."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def send(self, message: object, timeout_s: float | None = None) -> None:
        """Raises PeerDead or PeerSilent."""
        body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.sendall(len(body).to_bytes(_HEADER, "little") + body)
        except TimeoutError as error:
            raise PeerSilent from error
        except OSError as error:
            raise PeerDead from error

    def receive(self, timeout_s: float | None = None) -> Any:
        """Raises PeerDead or PeerSilent."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        size = int.from_bytes(self._exactly(_HEADER, deadline), "little")
        return pickle.loads(self._exactly(size, deadline))

    def close(self) -> None:
        self._socket.close()

    def _exactly(self, size: int, deadline: float | None) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise PeerSilent
                self._socket.settimeout(left)
            else:
                self._socket.settimeout(None)
            try:
                part = self._socket.recv(min(size - len(parts), _CHUNK))
            except TimeoutError as error:
                raise PeerSilent from error
            except OSError as error:
                raise PeerDead from error
            if not part:
                raise PeerDead
            parts += part
        return bytes(parts)
