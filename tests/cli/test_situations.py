# SPDX-License-Identifier: Apache-2.0
"""Ordinary bad situations: each ends in one line, a documented exit code and, with --json, one document."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

import segship.cli
from segship.cli.main import app
from segship.images.comparison import draw_scene

DOCUMENTED = {int(code) for code in re.findall(r"^ +(\d+) ", segship.cli.__doc__, re.M)} - {1}
PLACES = [
    "missing",
    "",
    " ",
    "folder",
    "loop",
    "dangling",
    "empty",
    "text.txt",
    "pipe",
    "/dev/null",
    "photo.png/inside",
]
PLACES += ["x" * 300, "a/" * 2000, "\udcff", "two\nlines", "nul\0", "~", "*", "[", "x.pth"]
PLACES += ["x.onnx", "x.npz", "x.json", "x.safetensors", "bundle", "cut.png", "deep.json", "-"]
VALUES = ["", "nope", "-1", "9" * 400, "nan", "\udcff"]
# What a command is called with, and stops at without having computed anything.
CALLS = {
    "segment": ["photo.png", "--point", "5,5", "--model", "bundle", "-o", "out"],
    "everything": ["photo.png", "--model", "bundle", "-o", "out"],
    "semantic": ["photo.png", "--model", "bundle", "-o", "out"],
    "demo": ["-o", "photo.png"],
    "fetch": ["vit_b", "--mirror", "http://127.0.0.1:9/"],
    "export": ["x.pth", "-o", "out"],
    "tune": ["bundle"],
    "bench": ["missing", "--no-fresh"],
    "evaluate": ["cityscapes", "--data", "folder", "--predictions", "folder"],
    "train-ids": ["--data", "folder"],
    "inspect": ["x.onnx"],
    "models": [],
    "doctor": [],
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with everything that a name may turn out to be."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path / "cache"))
    Image.fromarray(draw_scene((60, 90), seed=5)).save("photo.png")
    written = {"empty": b"", "text.txt": b"hello", "x.pth": b"\0" * 100, "x.onnx": b"\xff" * 9, "x.npz": b"PK"}
    written |= {
        "x.json": b"{}",
        "x.safetensors": b"\xff" * 16,
        "deep.json": b"[" * 100_000,
        "bundle/manifest.json": b"{",
    }
    written["cut.png"] = (tmp_path / "photo.png").read_bytes()[:300]
    for name in ("folder", "bundle"):
        (tmp_path / name).mkdir()
    for name, data in written.items():
        (tmp_path / name).write_bytes(data)
    for link, target in (("loop", "loop2"), ("loop2", "loop"), ("dangling", "nowhere")):
        os.symlink(target, link)
    os.mkfifo("pipe")
    return tmp_path


def situations(command):
    """Every place as the first argument, every option with what it does not mean, and what nobody knows."""
    call = CALLS[command]
    yield from ([place, *call[1:]] for place in PLACES)
    for argument in app[command].assemble_argument_collection(default_parameter=app.default_parameter):
        name = next((name for name in argument.names if name.startswith("--")), None)
        if name and "bool" not in str(argument.hint):
            values = [*VALUES, *PLACES[3:9]] if "Path" in str(argument.hint) else VALUES
            yield from ([*call, f"{name}={value}"] for value in values)
    yield from ([*call, word] for word in ("--nope", "--json=nope", "--model", "--out", "-x", "--", "--help=x"))
    yield from ([*call, "one", word] for word in ("two", "", "\udcff", "--jsonl", "--quiet"))


@pytest.mark.skipif(sys.platform == "win32", reason="has neither FIFOs nor such names")
@pytest.mark.parametrize("command", CALLS)
def test_bad_situations_end_in_one_line_and_one_document(run, place, command):
    bad = {}
    for tokens in (tried := list(situations(command))):
        code, out, err = run(command, "--json", *tokens)
        lines = [line for line in err.splitlines() if line.startswith("error (")]
        pictures = "failed" in out and code
        wrong = code not in DOCUMENTED or (code != 0 and (not json.loads(out) or (len(lines) != 1 and not pictures)))
        if wrong or "Traceback" in err:
            bad[" ".join(tokens)[:200]] = code, out[:200], err[-500:]
    assert len(tried) >= 40 and bad == {}


@pytest.mark.parametrize("option", ["threads", "streams"])
@pytest.mark.parametrize("number", ["0", "-1", "1000000000", "9" * 40])
def test_absurd_numbers_of_threads_are_refused_before_a_runtime_sees_them(run_json, place, option, number):
    code, document = run_json("segment", "photo.png", "--point", "5,5", f"--{option}", number)
    assert code == 4 and document["error"]["code"] == f"bad_{option}"


@pytest.mark.parametrize("out", ["photo.png", "photo.png/inside", "loop", "/proc/inside"])
@pytest.mark.parametrize(
    "call",
    [
        ("segment", "photo.png", "--point", "5,5"),
        ("everything", "photo.png"),
        ("demo",),
        ("fetch", "vit_b", "--mirror", "http://127.0.0.1:9/"),
    ],
)
def test_a_place_that_cannot_be_written_is_exit_code_6_before_any_work(run_json, place, call, out):
    started = time.process_time()
    code, document = run_json(*call, "--out", out)
    assert code == 6 and document["error"]["code"] == "cannot_write"
    assert time.process_time() - started < 1


def shell(line, **more):
    command = f"{sys.executable} -m segship"
    return subprocess.run(["bash", "-c", line.replace("segship", command)], capture_output=True, text=True, **more)


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
@pytest.mark.parametrize("line", ["segship models > /dev/full", "segship models --json > /dev/full"])
def test_a_full_output_is_told(line):
    done = shell(line)
    assert done.returncode == 6 and done.stderr.count("\n") == 1 and "cannot write standard output" in done.stderr


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("segship models | head -1; exit ${PIPESTATUS[0]}", (0, 141)),
        ("segship models --json | true; exit ${PIPESTATUS[0]}", (0, 141)),
        ("segship models >&-", (0,)),
        ("segship models 2>&-", (0,)),
        ("segship segment - --point 1,1 <&-", (3,)),
    ],
)
def test_a_closed_stream_leaves_no_traceback(line, code):
    done = shell(line)
    assert done.returncode in code and "Traceback" not in done.stderr and "Exception" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
@pytest.mark.parametrize(
    ("number", "seconds"), [*((signal.SIGINT, seconds) for seconds in (0.15, 0.3, 0.5, 0.8)), (signal.SIGTERM, 0.8)]
)
def test_an_interrupt_is_no_traceback_even_while_modules_are_imported(tmp_path, number, seconds):
    command = [
        sys.executable,
        "-c",
        "import sys; print(flush=True); from segship.__main__ import main; sys.exit(main())",
    ]
    run = subprocess.Popen(
        [*command, "segment", "-", "--point", "1,1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    run.stdout.readline()
    # Standard input stays open, so that it waits for the picture at last.
    time.sleep(seconds)
    run.send_signal(number)
    _, err = run.communicate()
    assert run.returncode in (-number, 130) and "Traceback" not in err
