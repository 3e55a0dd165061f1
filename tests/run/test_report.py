# SPDX-License-Identifier: Apache-2.0
"""The page of a run: what it counts, and that nothing in it steers a browser."""

import base64
import hashlib
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from segship.errors import OutputError
from segship.run.plan import make_plan
from segship.run.report import THUMBNAILS, write_report
from segship.run.running import start
from segship.run.storage import open_folder
from tests.run.conftest import answer_by_stub
from tests.run.runs import OPTIONS, picture, refused

HOSTILE = ("<script>alert(1)<", "a\" onmouseover='x", "&lt;b>", "back\u202egnp", "line\nline", "](javascript:x)")


class Page(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.attributes, self.words = set(), {}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value)

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run with pictures of hostile names, of which some are without an answer."""
    folder = tmp_path_factory.mktemp("reported")
    source = folder / "source"
    source.mkdir()
    for number in range(40):
        (source / f"{number}.png").write_bytes(picture(number))
    for name in HOSTILE:
        (source / f"{name}.png".replace("/", "")).write_bytes(b"no")
    make_plan(source, open_folder(folder / "run"), OPTIONS)
    for number in range(30):
        (source / f"{number}.png").write_bytes(picture(number + 100, (200, 40)))
    with pytest.MonkeyPatch.context() as patch:
        answer_by_stub(patch, 0)
        start(folder / "run", workers=2)
    return folder / "run"


@pytest.fixture(scope="module")
def text(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "report.html"
    write_report(place, out)
    assert refused(OutputError, write_report, place, out) == "output_exists"
    write_report(place, out, overwrite=True)
    return out.read_text("utf-8")


def test_what_it_counts_is_what_the_run_has(place, text):
    words = " ".join(Page(text).words)
    root = start(place).root
    for said in ("10 (21.74%)", "36 (78.26%)", "changed_since_plan", "unknown_format", root, "pyarrow 2", "local"):
        assert said in words, said
    # Stages, and a worker's time in them.
    assert re.search(r"read \d+% answer \d+% look \d+%", words)


def test_pictures_are_shown_as_they_are_now_and_not_too_many(text):
    shown = [value for value in Page(text).attributes["src"] if value]
    assert all(value.startswith("data:image/png;base64,") for value in shown)
    sizes = {Image.open(io.BytesIO(base64.b64decode(value.partition(",")[2]))).size for value in shown}
    # Each reason has its turn; what is no picture has none.
    assert sizes == {(160, 32)} and len(shown) == THUMBNAILS - len(HOSTILE)


def test_names_are_text_and_nothing_is_asked_for_or_run(text):
    page = Page(text)
    known = (
        "html head meta title style body h1 h2 section table tr th td bdi b p div figure figcaption img svg rect text"
    )
    assert page.elements <= set(known.split())
    assert not [name for name in page.attributes if name.startswith("on") or name in ("style", "href", "srcset")]
    words = "".join(page.words)
    for name in HOSTILE[:3]:
        assert f"{name}.png" in words
    assert "back\\u202egnp" in words and "line\\nline" in words and "\u202e" not in text
    assert "http://" not in text and "https://" not in text
    (policy,) = [value for value in page.attributes["content"] if "default-src" in value]
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"style-src 'sha256-{digest}'" in policy and "script" not in policy


def test_a_run_that_was_not_begun_has_a_page_too(place, tmp_path):
    make_plan(place.parent / "source", open_folder(tmp_path / "run"), OPTIONS)
    write_report(tmp_path / "run", tmp_path / "page.html")
    words = " ".join(Page((tmp_path / "page.html").read_text("utf-8")).words)
    assert "0 (0.00%)" in words and "committed so far" in words and "leaves no note" in words
