# SPDX-License-Identifier: Apache-2.0
"""A program asks a server for masks: here one that it starts itself, elsewhere one that is there already."""

import re
import subprocess
import sys

import segship
from segship.client import Client

command = [sys.executable, "-m", "segship", "serve", "--port", "0", "--no-page", "--log", "none"]
with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
    address = re.search(r"http://[\w.:]+", server.stdout.readline())[0]
    # Until its model is loaded it says so, and the client asks again.
    with Client(address, retries=30) as client:
        image = client.upload(segship.demo_photograph())
        prediction = image.segment(points=[[365, 290]], multimask_output="best")
        print(f"the cup has {prediction.areas[0, 0]} pixels")
        for record in image.everything(points_per_side=4):
            print(f"and here are {record.area} pixels in the box {record.bbox}")
    server.terminate()
