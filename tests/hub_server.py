"""A local server that plays the part of the Hugging Face hub that pushes and loads a model."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

TOKEN = "hf_test"


class Handler(BaseHTTPRequestHandler):
    """One repository of models per name, with one branch; a request without the token is refused."""

    server: "Hub"
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid credentials"}, status=401)
        elif self.path == "/api/repos/create":
            wanted = json.loads(body)
            if self.server.read_only:
                self.answer({"error": "Forbidden"}, status=403)
                return
            repo = f"{wanted['organization']}/{wanted['name']}"
            self.server.repos.setdefault(repo, {})
            self.server.private[repo] = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            self.answer({"url": f"{self.server.address}/{repo}"})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        elif "/commit/" in self.path:
            self.commit([json.loads(line) for line in body.splitlines()])
        else:
            self.answer({})

    def commit(self, lines: list[dict]) -> None:
        repo = self.path.removeprefix("/api/models/").partition("/commit/")[0]
        files = self.server.repos[repo]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                files.pop(value["path"])
            else:
                self.server.messages.append(value["summary"])
        commit = f"{self.server.address}/{repo}/commit/{self.server.commit}"
        self.answer({"success": True, "commitUrl": commit, "commitOid": self.server.commit})

    def do_GET(self) -> None:
        repo, _, rest = self.path.removeprefix("/api/models/").partition("/tree/")
        if rest:
            self.answer([self.describe(name, content) for name, content in self.server.repos.get(repo, {}).items()])
            return
        repo = "/".join(self.path.removeprefix("/api/models").strip("/").split("/")[:2])
        if repo not in self.server.repos:
            self.answer({"error": "Repository not found"}, status=404, code="RepoNotFound")
        elif self.path.startswith("/api/"):
            names = [{"rfilename": name} for name in self.server.repos[repo]]
            self.answer({"id": repo, "sha": self.server.commit, "siblings": names})
        else:
            self.send_content(self.server.repos[repo][unquote(self.path.split("/resolve/")[1].partition("/")[2])])

    do_HEAD = do_GET

    def describe(self, name: str, content: bytes) -> dict:
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def send_content(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.server.commit)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def answer(self, value: object, *, status: int = 200, code: str | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


class Hub(ThreadingHTTPServer):
    """`repos` maps owner/name to the content of each file; `read_only` refuses to create one."""

    daemon_threads = True
    commit = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []
        self.read_only = False


@contextmanager
def serve_hub() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()
