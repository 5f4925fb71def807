"""A local file server that supports byte ranges and fails as real servers do."""

import hashlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PIECE = 2**14  # bytes


class Handler(BaseHTTPRequestHandler):
    """Applies the next fault of a path, or serves the file if there is none.

    Faults: `cut` (connection closed after some bytes), `status`, `longer` or `shorter` (wrong Content-Length),
    `other` (another content), `no_range` (ranges ignored), `no_etag`, `no_if_range` (If-Range ignored),
    `no_length` (no Content-Length), `none`.
    """

    server: "FileServer"

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].strip("/")
        faults = self.server.faults[name]
        fault, value = faults.pop(0) if faults else (None, None)
        self.server.requests.append((name, self.headers.get("Range")))
        path = self.server.folder / name
        if fault == "status" or not path.is_file():
            self.answer(value if fault == "status" else 404, b"", length=0, retry_after="0")
            return
        content = b"<html>log in</html>" if fault == "other" else path.read_bytes()
        self.send_file(content, fault, value)

    def send_file(self, content: bytes, fault: str | None, value: int | None) -> None:
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
        headers = {} if fault == "no_etag" else {"etag": tag}
        first = 0
        if asked and fault != "no_range" and (condition in (None, tag) or fault == "no_if_range"):
            first = int(asked.removeprefix("bytes=").partition("-")[0])
            if first >= len(content):
                self.answer(416, b"", length=0, content_range=f"bytes */{len(content)}")
                return
            headers["content_range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        body = content[first:]
        length = len(body) + {"longer": 1000, "shorter": -1000}.get(fault, 0)
        sent = body[:value] if fault == "cut" else body[:length]
        length = None if fault == "no_length" else length
        self.answer(206 if "content_range" in headers else 200, sent, length=length, **headers)

    def answer(self, status: int, body: bytes, *, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        for start in range(0, len(body), PIECE):
            self.wfile.write(body[start : start + PIECE])
            time.sleep(self.server.pause)
        self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        pass


class FileServer(ThreadingHTTPServer):
    """Serves `folder`; each request uses up one of the `faults` of its path; `requests` lists (path, Range)."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.address = folder, f"http://127.0.0.1:{self.server_port}"
        self.faults: dict[str, list[tuple[str, int | None]]] = defaultdict(list)
        self.requests: list[tuple[str, str | None]] = []
        self.pause = 0.0  # seconds after each piece

    def handle_error(self, request: object, client: object) -> None:
        """Ignore clients that close the connection."""


@contextmanager
def serve(folder: Path) -> Iterator[FileServer]:
    folder.mkdir(exist_ok=True)
    with FileServer(folder) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
