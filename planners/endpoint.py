"""One POST of JSON to an endpoint, with a deadline, a size limit and a bounded number of repetitions."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

RETRIED = (408, 429, 500, 502, 503, 504)  # replies that a repetition may mend
PIECE = 1 << 16


class EndpointError(RuntimeError):
    """An endpoint did not answer, or not with what its contract says; the message names the URL and the remedy."""


@dataclass(frozen=True)
class Endpoint:
    """Where to post and how patiently.

    Args:
        url: ``http://`` or ``https://`` address. Proxies of the environment are not used, redirections not followed.
        timeout: Seconds for one exchange, from the connection to the last byte.
        retries: Repetitions after a failure that may pass: no connection, no reply in time, codes in `RETRIED`.
        pause: Seconds before the first repetition, doubled before each further one.
        limit: Bytes of a reply at most.
        key: Sent as bearer token if not empty, and shown nowhere.
    """

    url: str
    timeout: float
    retries: int
    pause: float
    limit: int
    key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EndpointError(f"'{self.url}' is no address to post to; it begins with http:// or https://")

    @property
    def name(self) -> str:
        """The address without user, password and query, which may be secret."""
        parts = urlsplit(self.url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"

    def post(self, payload: Mapping[str, Any]) -> tuple[str, bytes]:
        """Post JSON.

        Returns:
            Content type in lower case without parameters, and the body.

        Raises:
            EndpointError: No usable reply, after all repetitions.
        """
        body = json.dumps(payload).encode()
        for attempt in range(self.retries + 1):
            try:
                return self._exchange(body)
            except _PassingError as error:
                if attempt == self.retries:
                    raise EndpointError(f"{self.name}: {error}, after {attempt + 1} tries") from error
                time.sleep(self.pause * 2**attempt)
        raise EndpointError(f"{self.name}: retries is {self.retries}; it must not be negative")

    def _exchange(self, body: bytes) -> tuple[str, bytes]:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(str(parts.hostname), parts.port, timeout=self.timeout)
        headers = {"Content-Type": "application/json", "Accept": "*/*"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        overdue, started = threading.Event(), time.monotonic()
        timer = None
        try:
            connection.connect()
            # The timeout of a socket is one of silence; an endpoint that drips would never meet it.
            left = max(self.timeout - (time.monotonic() - started), 0.0)
            timer = threading.Timer(left, _cut, (connection.sock, overdue))
            timer.daemon = True
            timer.start()
            connection.request("POST", target, body, headers)
            return self._reply(connection.getresponse(), overdue)
        except TimeoutError as error:
            raise _PassingError(f"no reply within {self.timeout} s") from error
        except (OSError, http.client.HTTPException) as error:
            late = overdue.is_set()
            raise _PassingError(f"no reply within {self.timeout} s" if late else f"no connection ({error})") from error
        finally:
            if timer is not None:
                timer.cancel()
            connection.close()

    def _reply(self, response: http.client.HTTPResponse, overdue: threading.Event) -> tuple[str, bytes]:
        content = bytearray()
        while piece := response.read1(PIECE):
            content += piece
            if len(content) > self.limit:
                raise EndpointError(f"{self.name}: the reply exceeds {self.limit} bytes; raise the limit if it may")
        if overdue.is_set():
            raise TimeoutError
        announced = response.getheader("Content-Length", "")
        if announced.isdigit() and len(content) < int(announced):
            raise http.client.IncompleteRead(bytes(content))
        if response.status != http.client.OK:
            said = bytes(content[:200]).decode(errors="replace")
            message = f"replied {response.status} {response.reason}: {said}"
            if response.status in RETRIED:
                raise _PassingError(message)
            raise EndpointError(f"{self.name}: {message}")
        return response.getheader("Content-Type", "").split(";")[0].strip().lower(), bytes(content)


class _PassingError(Exception):
    """A failure that a repetition may mend."""


def _cut(connection: socket.socket, overdue: threading.Event) -> None:
    overdue.set()
    with suppress(OSError):
        # Past the TLS layer, whose own shutdown is not made for being called while another thread reads.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
