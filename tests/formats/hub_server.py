"""A stand-in for the Hugging Face hub on this machine: enough of its interface to list, fetch and commit files."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants


class Hub:
    """Repositories in memory: name -> file -> content. `requests` lists what was asked, in order."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []
        self.address = ""

    def commit_of(self, name: str) -> str:
        digest = hashlib.sha1()
        for file, content in sorted(self.files[name].items()):
            digest.update(file.encode() + content)
        return digest.hexdigest()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, value: Any = None, body: bytes | None = None, code: int = 200, **headers: str) -> None:
            data = body if body is not None else json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            for name, text in headers.items():
                self.send_header(name.replace("_", "-"), text)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def missing(self, kind: str) -> None:
            self.answer({"error": "not found"}, code=404, X_Error_Code=kind)

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            hub.requests.append(f"{self.command} {path}")
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self.info("/".join(parts[2:4]), parts[4:])
            elif len(parts) > 4 and parts[2] == "resolve":
                self.file("/".join(parts[:2]), "/".join(parts[4:]))
            else:
                self.missing("RepoNotFound")

        do_HEAD = do_GET

        def info(self, name: str, rest: list[str]) -> None:
            if name not in hub.files:
                return self.missing("RepoNotFound")
            if rest[:1] == ["revision"] and rest[1] not in ("main", hub.commit_of(name)):
                return self.missing("RevisionNotFound")
            if rest[:1] == ["tree"]:
                entries = [{"type": "file", "path": f, "size": len(c), "oid": "0"} for f, c in hub.files[name].items()]
                return self.answer(entries)
            siblings = [{"rfilename": file} for file in hub.files[name]]
            return self.answer({"id": name, "sha": hub.commit_of(name), "siblings": siblings, "tags": []})

        def file(self, name: str, file: str) -> None:
            content = hub.files.get(name, {}).get(file)
            if content is None:
                return self.missing("EntryNotFound")
            etag = hashlib.sha1(content).hexdigest()
            return self.answer(body=content, ETag=f'"{etag}"', X_Repo_Commit=hub.commit_of(name))

        def do_POST(self) -> None:
            path = self.path.split("?")[0]
            hub.requests.append(f"POST {path}")
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if path == "/api/repos/create":
                asked = json.loads(data)
                name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
                known = name in hub.files
                hub.files.setdefault(name, {".gitattributes": b""})
                hub.private.setdefault(name, asked.get("visibility") == "private" or bool(asked.get("private")))
                return self.answer({"url": f"{hub.address}/{name}"}, code=409 if known else 200)
            if "/preupload/" in path:
                files = json.loads(data)["files"]
                return self.answer(
                    {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
                )
            if "/commit/" in path:
                name = "/".join(path.strip("/").split("/")[2:4])
                for line in data.decode().splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        hub.files[name][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                commit = hub.commit_of(name)
                return self.answer({"commitUrl": f"{hub.address}/{name}/commit/{commit}", "commitOid": commit})
            return self.answer({}) if path.startswith("/api/") else self.missing("RepoNotFound")

    return Handler


@contextmanager
def serving() -> Iterator[Hub]:
    """The hub, reachable at its address on the loopback device while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def connect(hub: Hub, patch: pytest.MonkeyPatch, cache: Path) -> None:
    """Let huggingface_hub ask this server for everything, and keep what it fetches in `cache`."""
    _ask(hub.address, patch)
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)  # as read from the environment when it was imported
    patch.setenv("HF_TOKEN", "hf_test")


def disconnect(patch: pytest.MonkeyPatch) -> None:
    """From here on nobody answers."""
    _ask("http://127.0.0.1:9", patch)


def _ask(address: str, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(constants, "ENDPOINT", address)
    patch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", address)
