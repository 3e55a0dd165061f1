# SPDX-License-Identifier: Apache-2.0
"""A server whose model only waits, so that overload is reached in seconds; and a bare echo to compare with.

``python -m benchmarks.serving.stub --port 0`` runs the server with workers of this module; SEGSHIP_STUB_ENCODE and
SEGSHIP_STUB_DECODE are how many seconds an encode and a decode take. With ``--echo`` it is a route of Starlette's that
sends back what it gets, on the same server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from dataclasses import replace

import numpy as np

from segship.masks.rle import encode_rle
from segship.serve import worker
from segship.serve.wire import store

RLE = encode_rle(np.ones((400, 600), np.bool_))
MASK = {"predicted_iou": 0.9, "area": 240_000, "bbox": [0, 0, 600, 400], "segmentation": RLE}
ANSWER = json.dumps(
    {"width": 600, "height": 400, "objects": [{"masks": [MASK]}], "notes": []}, separators=(",", ":")
).encode()


def seconds(name, usual):
    return float(os.environ.get(f"SEGSHIP_STUB_{name}", usual))


class Pictures(worker.Worker):
    def read(self, header, body, tell):
        stored = store(self.folder, {"pixels": np.zeros((4, 6, 3), np.uint8)})
        return {"pixels": stored.to_json(), "width": 600, "height": 400, "notes": []}, b""


class Encoder(worker.Worker):
    def describe(self):
        return {"task": "promptable", "architecture": "stub", "digest": "0" * 64, "aspect_ratio": 768, "golden": RLE}

    def encode(self, header, body, tell):
        time.sleep(seconds("ENCODE", 0.05))
        stored = store(self.folder, {"image_embeddings": np.zeros((1, 256, 24, 24), np.float32)})
        return {"stored": stored.to_json(), "size": [400, 600], "input_size": [256, 384]}, b""

    def everything(self, header, body, tell):
        for points in range(1, 101):
            if header["number"] in self.cancelled:
                raise worker.Cancelled
            time.sleep(seconds("ENCODE", 0.05) / 100)
            tell({"type": "progress", "points": points, "of": 100})
        return {"type": "end", "records": 0, "notes": []}, b""


class Clicks(worker.Worker):
    def masks(self, header, body, tell):
        if wait := seconds("DECODE", 0.005):
            time.sleep(wait)
        return {}, ANSWER

    def forget(self, header, body, tell):
        return {}, b""


worker.KINDS.update(pictures=Pictures, encoder=Encoder, clicks=Clicks)


def serve(port, **more):
    from segship.serve.options import ServeOptions
    from segship.serve.server import listen, serve_on

    options = ServeOptions(port=port, log="none", page=False)
    options = replace(options, limits=replace(options.limits, **more))
    with listen(options) as listener:
        models = {"stub": ("promptable", "stub")}
        module = "benchmarks.serving.stub_worker"
        asyncio.run(serve_on(listener, options, models, lambda at: print(at, flush=True), worker_module=module))


def echo(port):
    import uvicorn
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route

    from segship.serve.options import ServeOptions
    from segship.serve.server import listen

    async def answer(request):
        return Response(await request.body(), media_type="application/json")

    async def ready(request):
        return Response(b"{}")

    app = Starlette(routes=[Route("/echo", answer, methods=["POST"]), Route("/v2/health/ready", ready)])
    config = uvicorn.Config(app, http="httptools", ws="none", lifespan="off", log_config=None, access_log=False)
    with listen(ServeOptions(port=port)) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--echo", action="store_true")
    parser.add_argument("--decode-queue", type=int, default=64)
    parser.add_argument("--encode-queue", type=int, default=8)
    given = parser.parse_args()
    if given.echo:
        echo(given.port)
    else:
        serve(given.port, decode_queue=given.decode_queue, encode_queue=given.encode_queue)


if __name__ == "__main__":
    main()
