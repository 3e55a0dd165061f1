# SPDX-License-Identifier: Apache-2.0
"""A store on loopback that speaks S3: moto's, whose answers can be made wrong, and which can go away and come back."""

import io
import socket
import threading
from importlib import import_module

SECRETS = {"AWS_ACCESS_KEY_ID": "AKIDNOTTOBESHOWN", "AWS_SECRET_ACCESS_KEY": "secret/not+to+be/shown"}


class Store:
    """One server; what it holds outlives its end.

    Attributes
    ----------
    wrong
        Is asked of every request (method, path, WSGI environment) and may answer for the store: a status, a code of S3,
        and whether the request is carried out all the same; without a status the connection is cut. It may change the
        environment.
    seen
        Method, path and range of every request.
    """

    def __init__(self):
        # Loaded when it is wanted: it takes a second.
        moto = import_module("moto.moto_server.werkzeug_app")
        self._app = moto.DomainDispatcherApplication(moto.create_backend_app)
        self._handler = type("Quiet", (moto.MotoRequestHandler,), {"log": lambda *_: None})
        # moto looks whether there is an object and then puts it; a store does both at once.
        self._lock = threading.Lock()
        self._server, self.port = None, 0
        self.wrong, self.seen = None, []
        self.begin()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.port}"

    def begin(self):
        make_server = import_module("werkzeug.serving").make_server
        self._server = make_server("127.0.0.1", self.port, self._answer, threaded=True, request_handler=self._handler)
        self.port = self._server.port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def end(self):
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environment, begin):
        method, path = environment["REQUEST_METHOD"], environment["PATH_INFO"]
        # Before the lock: who asks may be stopped in the middle of it.
        body = environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
        environment["wsgi.input"] = io.BytesIO(body)
        with self._lock:
            self.seen.append((method, path, environment.get("HTTP_RANGE")))
            found = self.wrong(method, path, environment) if self.wrong else None
            if found is None:
                return [b"".join(self._app(environment, begin))]
            status, code, is_done = found
            if is_done:
                b"".join(self._app(environment, lambda *_: None))
        if status is None:
            environment["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            status = 500
        begin(f"{status} no", [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>{SECRETS['AWS_ACCESS_KEY_ID']}</Message></Error>".encode()]
