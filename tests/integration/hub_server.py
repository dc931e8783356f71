"""A hub of one repository, as far as the hub's own client asks it, which counts what it sends."""

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "ab" * 20


class Hub:
    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.sent_bytes: Counter[str] = Counter()
        # Whether parts of files can be had.
        self.gives_ranges = True
        # How many of the next requests for a part are answered that it is busy.
        self.busy_count = 0
        self.endpoint = ""

    def info(self) -> bytes:
        files = sorted(path for path in self.folder.iterdir() if path.is_file())
        siblings = [{"rfilename": path.name, "size": path.stat().st_size} for path in files]
        return json.dumps({"id": self.name, "sha": COMMIT, "siblings": siblings}).encode()


class Handler(BaseHTTPRequestHandler):
    """Of a class made for each hub, with the hub in it."""

    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        file = hub.folder / path.rpartition("/")[2]
        if path.startswith(f"/api/models/{hub.name}"):
            self._answer(200, hub.info())
        elif path.startswith(f"/{hub.name}/resolve/{COMMIT}/") and file.is_file():
            self._file(file)
        else:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _file(self, file: Path) -> None:
        asked = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if self.hub.gives_ranges else None
        content = file.read_bytes()
        if asked and self.hub.busy_count:
            self.hub.busy_count -= 1
            self._answer(503, b"")
            return
        if asked:
            content = content[int(asked[1]) : int(asked[2]) + 1]
        if self.command == "GET":
            self.hub.sent_bytes[file.name] += len(content)
        self._answer(206 if asked else 200, content, {"ETag": f'"{file.name}"', "X-Repo-Commit": COMMIT})

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving_hub(name: str, folder: Path) -> Iterator[Hub]:
    hub = Hub(name, folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
