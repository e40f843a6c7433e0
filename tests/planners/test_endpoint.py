import socket
import threading
from http.server import BaseHTTPRequestHandler

import pytest
from stub_endpoint import as_json, serving

from planners.endpoint import Endpoint, EndpointError


def endpoint(url: str, timeout: float = 20.0, retries: int = 0, limit: int = 10_000, key: str = "") -> Endpoint:
    return Endpoint(url, timeout, retries, pause=0.01, limit=limit, key=key)


def test_posts_json_and_returns_kind_and_body() -> None:
    with serving(as_json({"a": 1})) as stub:
        kind, body = endpoint(f"{stub.url}/make?x=1", key="secret").post({"b": 2})
    assert (kind, body) == ("application/json", b'{"a": 1}')
    assert stub.requests == [{"b": 2}] and stub.headers[0]["Authorization"] == "Bearer secret"


def test_a_failure_that_may_pass_is_repeated() -> None:
    with serving((500, "text/plain", b"busy"), (429, "text/plain", b""), as_json({})) as stub:
        assert endpoint(stub.url, retries=2).post({})[1] == b"{}"
    assert len(stub.requests) == 3


def test_repetitions_are_bounded() -> None:
    failing = serving((503, "text/plain", b"overloaded"))
    with failing as stub, pytest.raises(EndpointError, match=r"503.*overloaded.*after 3 tries"):
        endpoint(stub.url, retries=2).post({})
    assert len(stub.requests) == 3


@pytest.mark.parametrize("status", [302, 400, 401, 404])
def test_a_refusal_is_not_repeated(status: int) -> None:
    with serving((status, "text/plain", b"no")) as stub, pytest.raises(EndpointError, match=f"replied {status}"):
        endpoint(stub.url, retries=5).post({})
    assert len(stub.requests) == 1


def test_an_endpoint_that_drips_meets_the_deadline() -> None:
    gone = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "600")
        handler.end_headers()
        for _ in range(600):  # in all far longer than the deadline, and never silent as long as it
            try:
                handler.wfile.write(b"x")
            except OSError:
                gone.set()
                return
            stub.over.wait(0.05)

    with serving(drip) as stub:
        with pytest.raises(EndpointError, match=r"no reply within 0\.5 s"):
            endpoint(stub.url, timeout=0.5).post({})
        assert gone.wait(20), "the connection was left open"


def test_a_silent_endpoint_meets_the_deadline() -> None:
    def wait(handler: BaseHTTPRequestHandler) -> None:
        stub.over.wait(30)

    with serving(wait) as stub:
        with pytest.raises(EndpointError, match=r"no reply within 0\.2 s, after 2 tries"):
            endpoint(stub.url, timeout=0.2, retries=1).post({})
        assert len(stub.requests) == 2


def test_a_reply_that_is_too_long_is_not_read() -> None:
    with serving((200, "text/plain", b"x" * 200_000)) as stub:
        with pytest.raises(EndpointError, match="exceeds 10000 bytes"):
            endpoint(stub.url, retries=3).post({})
        assert len(stub.requests) == 1


def test_a_reply_that_breaks_off_is_no_reply() -> None:
    def half(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"only this")

    with serving(half) as stub, pytest.raises(EndpointError, match="no connection"):
        endpoint(stub.url).post({})


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(EndpointError, match="no connection"):
        endpoint(f"http://127.0.0.1:{port}").post({})


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://host/x", "host/path", ""])
def test_only_http_addresses(url: str) -> None:
    with pytest.raises(EndpointError, match="http"):
        endpoint(url)


def test_secrets_are_not_shown() -> None:
    subject = endpoint("https://user:word@host:8443/video?token=hidden", key="bearer")
    assert subject.name == "https://host:8443/video"
    assert "bearer" not in repr(subject)
