# SPDX-License-Identifier: Apache-2.0
"""A real server on loopback for tests, and what asks it byte by byte."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

READY_SECONDS = 60


class Answer:
    """Status, fields and body of one answer."""

    def __init__(self, status, fields, body):
        self.status, self.fields, self.body = status, fields, body

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def code(self):
        return self.json["error"]["code"]


class Running:
    """A server process with its address."""

    def __init__(self, process, port, log):
        self.process, self.port, self.log = process, port, log

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method, path, body=b"", timeout=30, **fields):
        """One request on a connection of its own; ``Sec_Fetch_Site`` is a field Sec-Fetch-Site."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            data = json.dumps(body).encode() if isinstance(body, dict) else body
            connection.request(method, path, data, {name.replace("_", "-"): value for name, value in fields.items()})
            answer = connection.getresponse()
            return Answer(answer.status, dict((k.lower(), v) for k, v in answer.getheaders()), answer.read())
        finally:
            connection.close()

    def get(self, path, **fields):
        return self.ask("GET", path, **fields)

    def post(self, path, body=b"", **fields):
        return self.ask("POST", path, body, **fields)

    def raw(self, data, timeout=10, end=False):
        """Everything that comes back for these bytes, until the server closes or is silent; ``end`` ends ours first."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as line:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                line.sendall(data)
                if end:
                    line.shutdown(socket.SHUT_WR)
            found = b""
            with contextlib.suppress(TimeoutError, ConnectionResetError):
                while part := line.recv(65536):
                    found += part
            return found

    def wait_until_ready(self, seconds=READY_SECONDS):
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            with contextlib.suppress(OSError):
                if self.get("/v2/health/ready").status == 200:
                    return self
            time.sleep(0.05)
        raise AssertionError(f"not ready after {seconds} s: {self.get('/v2/health/ready').body}")

    def metric(self, name):
        """The value of a metric, with its labels as they are printed."""
        for line in self.get("/metrics").body.decode().splitlines():
            if line.rpartition(" ")[0] == name:
                return float(line.rpartition(" ")[2])
        return 0.0

    def children(self):
        """Process number of every worker by what it was told to be, in the order of their start."""
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True)
        return [int(line) for line in found.stdout.split()]

    def stop(self, signal_number=signal.SIGTERM, seconds=40):
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        return self.process.wait(seconds)


@contextlib.contextmanager
def serving(*options, log, module="segship", ready=True, environment=None):
    """Run a server with these options; ``log`` is a file for what it prints on stderr."""
    command = [
        sys.executable,
        "-m",
        *module.split(),
        *(["serve"] if module == "segship" else []),
        "--port",
        "0",
        *options,
    ]
    with open(log, "ab") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "COLUMNS": "200", **(environment or {})},
            # A suite that runs under nohup hands on that it is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )
    try:
        line = process.stdout.readline()
        found = re.search(r"http://[^:]+:(\d+)", line)
        assert found, f"no address: {line!r} {open(log).read()}"
        running = Running(process, int(found[1]), log)
        yield running.wait_until_ready() if ready else running
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        process.stdout.close()
