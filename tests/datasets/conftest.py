import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lightning_modules.datasets.download import MIRROR_VARIABLE

REALDATA = Path(__file__).parents[2].parent / "shared" / "realdata"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def realdata() -> Path:
    if not (REALDATA / "mnist").is_dir():
        pytest.skip(f"the real MNIST files are not in {REALDATA}")
    return REALDATA


@dataclass
class Site:
    """A web site on this machine: per path a list of answers, the last one repeated."""

    address: str
    answers: dict[str, list["Answer"]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    body: bytes = b""
    status: int = 200
    missing: int = 0  # bytes promised in Content-Length and never sent


@pytest.fixture
def site():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            queue = served.answers.get(self.path, [Answer(status=404)])
            answer = queue.pop(0) if len(queue) > 1 else queue[0]
            served.requests.append(self.path)
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(answer.body) + answer.missing))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served = Site(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        server.shutdown()
        thread.join()
