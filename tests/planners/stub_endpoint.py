"""A real HTTP server on a free port that gives the replies it was told to give, one after the other."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, str, bytes]  # status, content type, body
Script = list[Reply | Callable[[BaseHTTPRequestHandler], None]]


@dataclass
class Stub:
    """Where the server is and what it was asked."""

    url: str
    script: Script
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serving(*script: Reply | Callable[[BaseHTTPRequestHandler], None]) -> Iterator[Stub]:
    """Serve; the last reply is repeated."""
    stub = Stub("", list(script))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            stub.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            stub.headers.append(dict(self.headers))
            step = stub.script.pop(0) if len(stub.script) > 1 else stub.script[0]
            if callable(step):
                step(self)
                return
            status, kind, body = step
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield stub
    finally:
        stub.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def as_json(content: Any) -> Reply:
    return 200, "application/json; charset=utf-8", json.dumps(content).encode()
