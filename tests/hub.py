"""As much of the hub as a download asks for: one repository at main, and nothing else."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(BaseHTTPRequestHandler):
    repository: str
    folder: Path

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        api, files = f"/api/models/{self.repository}", f"/{self.repository}/resolve/"
        sizes = {
            str(file.relative_to(self.folder)): file.stat().st_size
            for file in sorted(self.folder.rglob("*"))
            if file.is_file()
        }
        if path.startswith(f"{api}/tree/"):
            self.reply(
                [
                    {"type": "file", "path": name, "size": size, "oid": "0" * 40}
                    for name, size in sizes.items()
                ]
            )
        elif path in (api, f"{api}/revision/main"):
            siblings = [{"rfilename": name} for name in sizes]
            self.reply({"id": self.repository, "sha": COMMIT, "siblings": siblings})
        elif path.startswith(files) and (name := path[len(files) :].partition("/")[2]) in sizes:
            self.reply_bytes((self.folder / name).read_bytes())
        else:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET

    def reply(self, answer: object) -> None:
        self.reply_bytes(json.dumps(answer).encode())

    def reply_bytes(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def serving_hub(repository: str, folder: Path) -> Iterator[str]:
    """Its address, for HF_ENDPOINT, while it serves the folder as the repository."""
    handler = type("Hub", (_Hub,), {"repository": repository, "folder": folder})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
