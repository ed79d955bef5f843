"""Runs Flower and calls its HTTP API."""

import socket
import tempfile
import urllib.parse
import urllib.request

from workers import *


class Flower:
    def __enter__(self):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._address = f"http://127.0.0.1:{port}"
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "worker_app", "flower", "--address=127.0.0.1",
             f"--port={port}", "--inspect_timeout=5000"],
            env={**os.environ, "FLOWER_UNAUTHENTICATED_API": "true"},
            stdout=self._log, stderr=self._log)
        until("Flower is up", self._is_up)
        return self

    def __exit__(self, kind, error, traceback):
        self._process.kill()
        self._process.wait()
        if error:
            self._log.seek(0)
            print(self._log.read(), file=sys.stderr)

    def get(self, path):
        return self._request(path)

    def post(self, path, **data):
        return self._request(path, urllib.parse.urlencode(data).encode())

    def _request(self, path, data=None):
        with urllib.request.urlopen(self._address + path, data, timeout=TIMEOUT) as response:
            return json.load(response)

    def _is_up(self):
        assert self._process.poll() is None, "Flower has exited"
        try:
            urllib.request.urlopen(f"{self._address}/healthcheck", timeout=1).close()
            return True
        except OSError:
            return False
