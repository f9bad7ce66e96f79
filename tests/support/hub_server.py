"""A stand-in for the Hugging Face hub on this machine: repositories of models in memory, over its HTTP interface."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest import mock

from huggingface_hub import constants

TOKEN = "hf_test"  # what may write


class HubServer(ThreadingHTTPServer):
    """Serve what was pushed.

    Attributes:
        files: repository -> path -> content, of the newest commit.
        private: Repositories that were made private.
        commits: Messages, in order.
        requests: Method and path of all requests, in order.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.commits: list[str] = []
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: HubServer  # type: ignore[assignment]

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        self.server.requests.append(format % args)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid username or password."})
            return
        parts = self.path.partition("?")[0].strip("/").split("/")
        repo = "/".join(parts[2:4])
        match parts[1:2] + parts[4:5]:
            case ["validate-yaml"]:
                self._answer(200, {"errors": [], "warnings": []})
            case ["repos"]:
                about = json.loads(body)
                name = "/".join(filter(None, [about.get("organization"), about["name"]]))
                self.server.files.setdefault(name, {})
                if about.get("private") or about.get("visibility") == "private":  # as older and newer clients say it
                    self.server.private.add(name)
                self._answer(200, {"url": f"{self.server.url}/{name}", "name": name})
            case ["models", "preupload"]:
                names = [file["path"] for file in json.loads(body)["files"]]
                found = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
                self._answer(200, {"files": found})
            case ["models", "commit"]:
                self._commit(repo, [json.loads(line) for line in body.splitlines()])
            case _:
                self._answer(404, {"error": self.path})

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line["key"] == "header":
                self.server.commits.append(line["value"]["summary"])
            else:
                self.server.files[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        oid = _oid(repo)
        self._answer(200, {"commitUrl": f"{self.server.url}/{repo}/commit/{oid}", "commitOid": oid})

    def do_HEAD(self) -> None:
        self._file(send=False)

    def do_GET(self) -> None:
        self._file(send=True)

    def _file(self, send: bool) -> None:
        if self.path.startswith("/api/"):  # what a client asks who was refused
            self._answer(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return
        user, name, _, revision, path = self.path.partition("?")[0].strip("/").split("/", 4)
        repo = f"{user}/{name}"
        if repo not in self.server.files:
            self._answer(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", _oid(repo)):
            self._answer(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        elif path not in self.server.files[repo]:
            self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        else:
            data = self.server.files[repo][path]
            self.send_response(200)
            self.send_header("X-Repo-Commit", _oid(repo))
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if send:
                self.wfile.write(data)

    def _answer(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _oid(repo: str) -> str:
    return hashlib.sha1(repo.encode()).hexdigest()


@contextmanager
def hub_server(cache: str, token: str = TOKEN) -> Iterator[HubServer]:
    """Have huggingface_hub talk to a stand-in of the hub, and keep what it fetches in ``cache``."""
    with HubServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with (
            mock.patch.object(constants, "ENDPOINT", server.url),
            mock.patch.object(
                constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
            ),
            mock.patch.object(constants, "HF_HUB_OFFLINE", False),
            mock.patch.object(constants, "HF_HUB_CACHE", cache),
            mock.patch.dict("os.environ", {"HF_TOKEN": token, "HF_HUB_DISABLE_TELEMETRY": "1"}),
        ):
            yield server
        server.shutdown()
