"""An S3 server on loopback: moto's, made to do one request at a time, and to fail when told so.

`python tests/s3_server.py` prints its port and serves until it is killed. moto looks for a name and writes it in two
steps, and its server has many threads; S3 decides a conditional write in one step, hence the lock.

`PUT /-/fail?count=N&when=before|after` makes the next N requests to objects end with a status of 503: `before` they are
carried out, or `after`, as when the answer to a request that was carried out is lost. `PUT /-/ignore-conditions` makes
the server forget the headers that make a write conditional, as servers do that know none; `?off` ends it.
`GET /-/requests` tells every request since the last such question, as lines `METHOD path If-None-Match`.
"""

import contextlib
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from urllib.parse import parse_qs

from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

CONDITION = "HTTP_IF_NONE_MATCH"


class Server:
    def __init__(self):
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.lock = threading.Lock()
        self.failures, self.when = 0, "before"
        self.ignores_conditions = False
        self.requests = []

    def __call__(self, environ, start_response):
        with self.lock:
            path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
            if path.startswith("/-/"):
                return self._obey(path, query, start_response)
            if path.count("/") > 1:  # /bucket/key; a bucket is made undisturbed
                self.requests.append(f"{environ['REQUEST_METHOD']} {path} {environ.get(CONDITION, '')}".rstrip())
                if self.ignores_conditions:
                    environ.pop(CONDITION, None)
                if self.failures:
                    return self._fail(environ, start_response)
            return list(self.moto(environ, start_response))

    def _obey(self, path, query, start_response):
        asked = parse_qs(query, keep_blank_values=True)
        answer = ""
        if path == "/-/fail":
            self.failures, self.when = int(asked["count"][0]), asked["when"][0]
        elif path == "/-/ignore-conditions":
            self.ignores_conditions = "off" not in asked
        elif path == "/-/requests":
            answer, self.requests = "\n".join(self.requests), []
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [answer.encode()]

    def _fail(self, environ, start_response):
        self.failures -= 1
        if self.when == "after":
            list(self.moto(environ, lambda *answer: None))
        start_response("503 Service Unavailable", [("Content-Type", "text/plain")])
        return [b"told to fail"]


@contextlib.contextmanager
def running() -> Iterator[str]:
    """The URL of a server in a process of its own, with a bucket `bucket`."""
    server = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        port = server.stdout.readline().strip()
        assert port, "the S3 server did not start"
        url = f"http://127.0.0.1:{port}"
        with urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT"), timeout=60):
            yield url
    finally:
        server.kill()
        server.communicate()


if __name__ == "__main__":
    server = make_server("127.0.0.1", 0, Server(), threaded=True, request_handler=MotoRequestHandler)
    print(server.port, flush=True)
    server.serve_forever()
