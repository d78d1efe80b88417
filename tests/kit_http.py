"""A web server on loopback that serves what a test gives it, and misbehaves on demand."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What is served: path -> bytes. A path in `cut` loses its second half on the way."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    unsized: set[str] = field(default_factory=set)  # sent without Content-Length
    stalled: set[str] = field(default_factory=set)  # sends half and then nothing
    asked: list[str] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def serve() -> Iterator[Site]:
    """Run a server on a free loopback port as long as the block runs."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(self.path)
            content = site.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            if self.path not in site.unsized:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            half = self.path in site.cut or self.path in site.stalled
            self.wfile.write(content[: len(content) // 2] if half else content)
            if self.path in site.stalled:
                site.done.wait(20)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        site.done.set()
        server.shutdown()
        server.server_close()
        thread.join()
