# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser, in front of a real server; without chromium or playwright these tests are passed over."""

import base64
import io
import json
import re
import zipfile
from contextlib import contextmanager
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from PIL import Image

import segship
from benchmarks import page as house
from segship.masks.rle import decode_rle, encode_rle
from segship.masks.scores import mask_iou
from segship.serve.server import check_packages

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

SAMPLE = (600, 400)
SPOON, CUP = house.SPOON, house.CUP
MASKS = re.compile("/masks$")
EVERYTHING = re.compile("/everything$")
UPLOAD = re.compile(r"/v1/images\?")
MODELS = re.compile("/v1/models$")
ANSWERED = re.compile("^(Mask 1 of|Score)")


@pytest.fixture(scope="module")
def address(request):
    try:
        check_packages()
    except segship.BackendUnavailable as error:
        pytest.skip(str(error))
    if house.CHROMIUM is None:
        pytest.skip("there is no chromium")
    return request.getfixturevalue("server").address


@pytest.fixture(scope="module")
def browser(address):
    with house.browsing() as found:
        yield found


@pytest.fixture(scope="module")
def predictor():
    return segship.load("tiny")


@pytest.fixture(scope="module")
def spoon(predictor):
    """Three masks of a click on the spoon, the best of them first."""
    found = predictor.predict(segship.demo_photograph(), points=[SPOON], labels=[1], multimask_output=True)
    assert found.iou_predictions[0].argmax() == 0
    return found.masks[0]


class Visit:
    """A page with what was asked and seen in it."""

    def __init__(self, page, address):
        self.page = page
        self.address = address
        self.asked = []
        self.wrong = []
        page.on("request", lambda request: self.asked.append(request))
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("console", lambda said: self.wrong.append(said.text) if "olicy" in said.text else None)
        page.on("dialog", lambda dialog: (self.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.at = page.locator
        self.key = page.keyboard.press

    def open_sample(self):
        house.open_sample(self.page, self.address)
        return self

    def choose(self, name, data):
        self.at("#file").set_input_files({"name": name, "mimeType": "image/png", "buffer": data})

    def open(self, name, data):
        with self.page.expect_response(UPLOAD):
            self.choose(name, data)
        self.tell("^Ready")

    def click(self, point, size=SAMPLE, **how):
        house.click(self.page, point, size, **how)

    def press(self, point, size=SAMPLE, **how):
        """Click without waiting."""
        self.page.mouse.click(*house.place_of(self.page, point, size), **how)

    def drag(self, start, end):
        self.page.mouse.move(*house.place_of(self.page, start))
        self.page.mouse.down()
        self.page.mouse.move(*house.place_of(self.page, end), steps=3)
        self.page.mouse.up()

    def tell(self, text):
        try:
            # Looks again sooner than `expect` does.
            self.at("#status", has_text=re.compile(text)).wait_for()
        except playwright.TimeoutError:
            # Which says what stands there instead.
            expect(self.at("#status")).to_have_text(re.compile(text), timeout=100)

    def save(self, kind):
        """Download; return name and bytes."""
        self.at("#format").select_option(kind)
        with self.page.expect_download() as waiting:
            self.at("#download").click()
        return waiting.value.suggested_filename, waiting.value.path().read_bytes()

    def masks(self):
        """Masks of all objects, as the COCO file has them."""
        document = json.loads(self.save("coco")[1])
        return [decode_rle(annotation["segmentation"]) for annotation in document["annotations"]]

    def names(self):
        return [field.input_value() for field in self.at("#list .name").all()]

    def prompts(self):
        """The prompts of the last question about masks."""
        return [request.post_data_json for request in self.asked if MASKS.search(request.url)][-1]

    def count(self, pattern):
        return sum(bool(pattern.search(request.url)) for request in self.asked)


# Heard in the document itself; the console says most of them, too.
WATCH = "document.addEventListener('securitypolicyviolation', (event) => console.error('policy', event.blockedURI))"


@contextmanager
def visiting(browser, address, **settings):
    """Visit with an empty profile; no script is refused, no dialog opens, nothing leaves the server."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, "locale": "en-US", **settings})
    context.set_default_timeout(20_000)
    context.add_init_script(WATCH)
    visit = Visit(context.new_page(), address)
    yield visit
    context.close()
    assert visit.wrong == []
    home = (f"{address}/", f"blob:{address}", "data:")
    assert [request.url for request in visit.asked if not request.url.startswith(home)] == []


@pytest.fixture
def visit(browser, address):
    with visiting(browser, address) as found:
        yield found


@pytest.fixture
def sample(visit):
    return visit.open_sample()


def png(width=24, height=16):
    stream = io.BytesIO()
    pixels = np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def read_svg(text):
    """What a path along the edges of pixels encloses by the even-odd rule."""
    root = ElementTree.fromstring(text)
    inside = np.zeros((int(root.get("height")), int(root.get("width"))), bool)
    for letter, numbers in re.findall(r"([MHVZ])([\d ]*)", root.find("{*}path").get("d")):
        if letter == "M":
            x, y = start = tuple(map(int, numbers.split()))
        elif letter == "H":
            x = int(numbers)
        else:
            to = start[1] if letter == "Z" else int(numbers)
            inside[min(y, to) : max(y, to), x:] ^= True
            y = to
    return inside


def read_labelme(document):
    found = np.zeros((document["imageHeight"], document["imageWidth"]), np.uint8)
    for shape in document["shapes"]:
        if shape["shape_type"] == "mask":
            (x0, y0), (x1, y1) = shape["points"]
            crop = Image.open(io.BytesIO(base64.b64decode(shape["mask"])))
            found[y0 : y1 + 1, x0 : x1 + 1] |= np.asarray(crop) // 255
        else:
            cv2.fillPoly(found, [np.array(shape["points"], np.int32)], 1)
    return found > 0


def test_click_to_mask_to_download(sample, spoon):
    sample.click(SPOON)
    expect(sample.at(".candidates button")).to_have_count(3)
    name, data = sample.save("png")
    assert name == "sample_01_Object 1.png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), spoon[0] * np.uint8(255))
    assert np.array_equal(sample.masks()[0], spoon[0])
    assert np.array_equal(read_svg(sample.save("svg")[1]), spoon[0])
    # Of a polygon a corner may be a pixel off, and OpenCV fills its border.
    assert mask_iou(read_labelme(json.loads(sample.save("labelme")[1])), spoon[0]) > 0.95


def test_cut_out_holds_the_pixels_under_the_mask(sample, spoon):
    sample.click(SPOON)
    cut = np.asarray(Image.open(io.BytesIO(sample.save("cutout")[1])))
    y, x = np.nonzero(spoon[0])
    box = np.s_[y.min() : y.max() + 1, x.min() : x.max() + 1]
    assert np.array_equal(cut[..., 3], spoon[0][box] * np.uint8(255))
    picture = segship.read_image(segship.demo_photograph()).pixels[box].astype(int)
    # Two readers of JPEG round differently.
    assert np.abs(picture - cut[..., :3])[spoon[0][box]].max() <= 4
    assert not cut[~spoon[0][box]].any()


def test_several_objects_are_one_archive(sample):
    sample.click(SPOON)
    sample.at("#new-object").click()
    sample.click(CUP)
    name, data = sample.save("png")
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert name == "sample_masks.zip" and archive.testzip() is None
    assert archive.namelist() == ["sample_01_Object 1.png", "sample_02_Object 2.png"]
    expected = sample.masks()
    for mask, inner in zip(expected, archive.namelist(), strict=True):
        assert np.array_equal(np.asarray(Image.open(archive.open(inner))) > 0, mask)


def test_candidates_are_flipped_through_and_undone(sample, spoon):
    sample.click(SPOON)
    for key, place in (("2", 1), ("3", 2), ("c", 0), ("c", 1)):
        sample.key(key)
        expect(sample.at(".candidates button").nth(place)).to_have_attribute("aria-pressed", "true")
    assert np.array_equal(sample.masks()[0], spoon[1])
    sample.key("Control+z")
    expect(sample.at(".candidates button").nth(0)).to_have_attribute("aria-pressed", "true")


def test_background_points_and_boxes(sample, predictor):
    sample.click(SPOON)
    sample.click((330, 210), button="right")
    sample.page.keyboard.down("Alt")
    sample.click((320, 240))
    sample.page.keyboard.up("Alt")
    assert sample.prompts()["points"] == [list(SPOON), [330, 210], [320, 240]]
    assert sample.prompts()["labels"] == [1, 0, 0]
    sample.at("#new-object").click()
    with sample.page.expect_response(MASKS):
        sample.drag((100, 20), (410, 190))
    box = sample.prompts()["boxes"][0]
    assert np.abs(np.subtract(box, (100, 20, 410, 190))).max() <= 1
    sample.tell("^Score")
    expected = predictor.predict(segship.demo_photograph(), boxes=[box], multimask_output=False).masks[0, 0]
    assert np.array_equal(sample.masks()[1], expected)
    sample.at("[aria-current] .others").click()
    expect(sample.at("[aria-current] .candidates button")).to_have_count(4)
    assert np.array_equal(sample.masks()[1], expected)


def test_undo_and_redo_ask_nothing_again(sample, spoon):
    sample.click(SPOON)
    sample.click(CUP)
    second = sample.masks()[0]
    asked = sample.count(MASKS)
    sample.key("Control+z")
    assert np.array_equal(sample.masks()[0], spoon[0])
    sample.key("Control+Shift+z")
    assert np.array_equal(sample.masks()[0], second)
    sample.key("Delete")
    expect(sample.at("#list li")).to_have_count(0)
    sample.key("Control+z")
    assert np.array_equal(sample.masks()[0], second)
    for _ in range(2):
        sample.key("Control+z")
    expect(sample.at("#list li")).to_have_count(0)
    expect(sample.at("#undo")).to_be_disabled()
    assert sample.count(MASKS) == asked


def test_a_point_that_is_clicked_again_goes(sample, spoon):
    sample.click(SPOON)
    sample.click(CUP)
    sample.page.wait_for_timeout(400)
    sample.press(CUP)
    expect(sample.at(".candidates button")).to_have_count(3)
    assert np.array_equal(sample.masks()[0], spoon[0])


def test_hidden_objects_are_left_out_of_files(sample):
    sample.click(SPOON)
    sample.key("n")
    sample.click(CUP)
    sample.key("h")
    assert len(sample.masks()) == 1
    sample.tell("without 1 hidden")
    sample.key("h")
    assert len(sample.masks()) == 2


def test_everything_by_the_keyboard_alone(visit, predictor):
    visit.page.goto(visit.address)
    expect(visit.at("#status")).to_have_text("Open a picture to begin.")
    while visit.page.evaluate("document.activeElement.id") != "use-sample":
        visit.key("Tab")
    visit.key("Enter")
    visit.tell("^Ready")
    expect(visit.at("#stage")).to_be_focused()
    for key in (*["ArrowRight"] * 3, "Shift+ArrowDown", "Enter", "ArrowLeft", "x"):
        visit.key(key)
    visit.tell("^Score")
    [[x, y], _] = points = visit.prompts()["points"]
    assert visit.prompts()["labels"] == [1, 0]
    assert abs(x - 300) <= 20 and abs(y - 200) <= 2
    visit.key("n")
    with visit.page.expect_response(MASKS):
        for key in ("b", *["ArrowDown"] * 8, *["ArrowRight"] * 8, "b"):
            visit.key(key)
    assert np.ptp(np.reshape(visit.prompts()["boxes"], (2, 2)), axis=0).min() > 8
    visit.key("F2")
    visit.page.keyboard.type("Handle [1]")
    visit.key("Enter")
    visit.key("PageUp")
    visit.key("h")
    assert visit.names() == ["Object 1", "Handle [1]"]
    visit.key("h")
    with visit.page.expect_download() as waiting:
        visit.key("d")
    archive = zipfile.ZipFile(waiting.value.path())
    assert archive.namelist() == ["sample_01_Object 1.png", "sample_02_Handle _1_.png"]
    first = predictor.predict(segship.demo_photograph(), points=points, labels=[1, 0], multimask_output=False)
    assert np.array_equal(np.asarray(Image.open(archive.open(archive.namelist()[0]))) > 0, first.masks[0, 0])
    visit.key("?")
    expect(visit.at("#help-dialog")).to_be_visible()
    visit.key("Escape")
    expect(visit.at("#help-dialog")).to_be_hidden()


def test_everything_is_found_and_kept(sample, predictor):
    sample.key("e")
    sample.at("#cancel").click()
    sample.tell("^Cancelled")
    sample.at("#detail").select_option("16")
    sample.at("#find").click()
    sample.at("#keep-all").wait_for()
    records = segship.generate_masks(predictor, segship.demo_photograph(), segship.AmgOptions(points_per_side=16))
    sample.tell(f"^{len(records)} masks")
    smallest = min((record for record in records if record.mask[CUP[1], CUP[0]]), key=lambda record: record.area)
    sample.press(CUP)
    assert np.array_equal(sample.masks()[0], smallest.mask)
    sample.page.wait_for_timeout(400)
    sample.press(CUP)
    expect(sample.at("#list li")).to_have_count(0)
    sample.key("Control+z")
    expect(sample.at("#list li")).to_have_count(1)
    sample.at("#keep-all").click()
    expect(sample.at("#list li")).to_have_count(len(records))
    assert len(set(sample.names())) == len(records)
    sample.key("Control+z")
    expect(sample.at("#list li")).to_have_count(1)
    sample.key("Control+y")
    expect(sample.at("#list li")).to_have_count(len(records))
    sample.key("Escape")
    # A click after it is a new object, not another prompt of a mask that was kept.
    sample.click(SPOON)
    expect(sample.at("#list li")).to_have_count(len(records) + 1)


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


HOW = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}


def turned(picture, orientation, kind):
    """A file whose stored pixels are turned and whose EXIF says how."""
    stored = picture.transpose(TURNS[orientation]) if orientation in TURNS else picture
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    stored.save(stream, kind, exif=exif, **HOW[kind])
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_eight_orientations_show_and_segment_alike(visit, kind):
    # A window that is drawn and read sooner.
    visit.page.set_viewport_size({"width": 800, "height": 500})
    visit.page.goto(visit.address)
    # So that one of the eight is no rotation of another.
    picture = Image.open(segship.demo_photograph()).crop((150, 0, 600, 400)).resize((225, 200))
    shown, masks = [], []
    for orientation in range(1, 9):
        visit.open(f"{orientation}.{kind.lower()}", turned(picture, orientation, kind))
        visit.tell("^Ready: 225 x 200")
        screen = Image.open(io.BytesIO(visit.at("#stage").screenshot()))
        # Without its frame, which says where the keyboard is.
        screen = screen.crop((8, 8, screen.width - 8, screen.height - 8))
        shown.append(np.asarray(screen.convert("L").resize((96, 64)), int))
        visit.click((107, 145), (225, 200))
        masks += visit.masks()
    for screen, mask in zip(shown, masks, strict=True):
        assert np.abs(screen - shown[0]).mean() < 1
        assert mask_iou(mask, masks[0]) > (0.999 if kind == "WEBP" else 0.97)


HOSTILE_NAMES = (
    "../../../etc/passwd",
    "..\\..\\boot.ini",
    "CON.png",
    "photo\u202egnp.exe",
    "<b>bold</b>.png",
    "-rf.png",
    "=cmd|calc!A0.png",
    ".png",
    "a" * 400 + ".png",
    "line\nbreak\x00\x1b[31m.png",
    "\u732b \U0001f63a.png",
    "quote\"';.png",
)


def test_hostile_names_of_files(visit):
    visit.page.goto(visit.address)
    for name in HOSTILE_NAMES:
        visit.open(name, png())
        assert not re.search("[\u202e\x00\x1b]", visit.at("#file-name").inner_text())
        visit.click((8, 8), (24, 16))
        saved, data = visit.save("coco")
        inner = json.loads(data)["images"][0]["file_name"]
        for text in (saved, inner):
            assert re.fullmatch(r"[\w ()][\w .()\-]*", text) and len(text) <= 100, (name, text)
        assert not saved.upper().startswith("CON.")
    assert saved == "quote___.coco.json"


SCRIPTS = ("alert(1)", "document.title='owned'", "fetch('//evil.example')")
TEMPLATES = (
    "<script>{}</script>",
    "<img src=x onerror={}>",
    "<svg onload={}>",
    '"><script>{}</script>',
    "'-{}-'",
    "javascript:{}",
    '<iframe src="javascript:{}">',
    "<body onload={}>",
    '{{{{constructor.constructor("{}")()}}}}',
    "</title><script>{}</script>",
    "<math><mtext></table><mglyph><style><img src=x onerror={}>",
    '<a href="javascript:{}">x</a>',
    "<details open ontoggle={}>",
    "<input autofocus onfocus={}>",
    "<video><source onerror={}>",
    '<object data="data:text/html,<script>{}</script>">',
    "</text></svg><svg onload={}>",
    "<base href=//evil.example/>{}",
    '<meta http-equiv=refresh content="0;url=//evil.example">{}',
    "${{{}}}`{}`",
)
PAYLOADS = [template.format(script, script) for template in TEMPLATES for script in SCRIPTS]


def answer_json(value, status=200, **headers):
    return lambda route: route.fulfill(status=status, json=value, headers=headers)


def test_sixty_payloads_stay_text(visit):
    assert len(set(PAYLOADS)) == 60
    page = visit.page
    classes = [
        {
            "name": payload,
            "color": [9, 9, 9],
            "share": 0.1,
            "area": 1,
            "segmentation": {"size": [16, 24], "counts": [n, 1, 383 - n]},
        }
        for n, payload in enumerate(PAYLOADS)
    ]
    models = [{"name": name, "task": task} for name in PAYLOADS[:2] for task in ("promptable", "semantic")]
    page.route(MODELS, answer_json({"models": models, "limits": {}}))
    page.route(UPLOAD, answer_json({"id": "0" * 32, "width": 24, "height": 16, "notes": PAYLOADS}))
    page.route(re.compile("/v1/semantic"), answer_json({"classes": classes}))
    answers = []
    page.route(MASKS, lambda route: answers[0](route))
    page.goto(visit.address)
    at = house.place_of(page, (8, 8), (24, 16))
    for payload in PAYLOADS:
        answers[:] = [answer_json({"error": {"code": payload, "message": payload}}, status=422)]
        visit.open(payload, png())
        page.mouse.click(*at)
        visit.tell(f"^{re.escape(payload)}$")
        visit.at("#list .name").fill(payload)
        visit.key("Enter")
    visit.at("[data-mode=classes]").click()
    expect(visit.at("#legend li")).to_have_count(60)
    for n in range(0, 60, 7):
        visit.at("#legend button").nth(n).click()
    root = ElementTree.fromstring(visit.save("svg")[1])
    assert [title.text for title in root.findall(".//{*}title")] == PAYLOADS[::7]
    assert {element.tag.split("}")[1] for element in root.iter()} == {"svg", "path", "title"}
    assert page.title() == "segship"
    assert page.locator("script, img, iframe, object, video, base, meta[http-equiv]").count() == 1


def test_an_older_answer_never_covers_a_newer_one(visit, predictor):
    # Without the means to end a request, so that the older answer comes, and last.
    visit.page.add_init_script("AbortController.prototype.abort = () => {}")
    visit.open_sample()
    held = []
    visit.page.route(MASKS, lambda route: held.append(route) if len(held) < 2 else route.continue_())
    visit.press(SPOON)
    visit.press((380, 280))
    while len(held) < 2:
        visit.page.wait_for_timeout(20)
    visit.click((350, 300))
    visit.tell("^Score")
    for route in reversed(held):
        with visit.page.expect_response(MASKS):
            route.continue_()
    visit.page.wait_for_timeout(200)
    points = [SPOON, (380, 280), (350, 300)]
    assert visit.prompts()["points"] == [list(point) for point in points]
    expected = predictor.predict(segship.demo_photograph(), points=points, labels=[1, 1, 1], multimask_output=False)
    assert np.array_equal(visit.masks()[0], expected.masks[0, 0])


def test_what_newer_clicks_have_overtaken_is_ended(sample):
    held = []
    sample.page.route(MASKS, lambda route: held.append(route) if not held else route.continue_())
    ended = []
    sample.page.on("requestfailed", lambda request: ended.append(request.url))
    sample.press(SPOON)
    sample.tell("^Segmenting")
    sample.click(CUP)
    sample.tell("^Score")
    assert len(ended) == 1 and MASKS.search(ended[0])


def test_what_is_undone_is_not_waited_for(sample):
    sample.page.route(MASKS, lambda route: None)
    sample.press(SPOON)
    sample.tell("^Segmenting")
    sample.key("Delete")
    sample.tell("^Deleted Object 1")
    expect(sample.at("#progress")).to_be_hidden()
    sample.press(CUP)
    sample.tell("^Segmenting")
    sample.key("Control+z")
    expect(sample.at("#progress")).to_be_hidden()


def test_a_lost_connection_is_said_and_tried_again(sample, spoon):
    sample.page.route(MASKS, lambda route: route.abort("connectionreset"))
    sample.press(SPOON)
    sample.tell("^No connection")
    sample.page.unroute(MASKS)
    with sample.page.expect_response(MASKS):
        sample.at("#retry").click()
    sample.tell("^Mask 1 of 3")
    assert np.array_equal(sample.masks()[0], spoon[0])


def test_a_lost_upload_is_tried_again_by_the_click(visit):
    visit.page.goto(visit.address)
    visit.page.route(UPLOAD, lambda route: route.abort("connectionrefused"))
    visit.at("#use-sample").click()
    visit.tell("^No connection")
    visit.page.unroute(UPLOAD)
    visit.click(SPOON)
    visit.tell("^Mask 1 of 3")


def test_everything_that_is_cut_off_says_so(sample):
    part = '{"type": "progress", "points": 8, "of": 1024}\n'
    sample.page.route(EVERYTHING, lambda route: route.fulfill(body=part, content_type="application/x-ndjson"))
    sample.key("e")
    sample.tell("^No connection")
    expect(sample.at("#retry")).to_be_visible()


def test_a_picture_that_the_service_has_forgotten_is_sent_again(sample, spoon):
    [url] = [request.url for request in sample.asked if UPLOAD.search(request.url)]
    with sample.page.expect_response(MASKS) as waiting:
        sample.press(SPOON)
    sample.tell("^Mask 1 of 3")
    image = waiting.value.url.removesuffix("/masks")
    assert sample.page.request.delete(image).json() == {"deleted": True}
    sample.click(CUP)
    sample.tell("^Score")
    assert sample.count(UPLOAD) == 2 and url.startswith(sample.address)
    sample.key("Control+z")
    assert np.array_equal(sample.masks()[0], spoon[0])


def test_an_evicted_embedding_is_made_again_for_everything(sample):
    evicted = [{"error": {"code": "embedding_evicted", "message": "gone"}}]
    sample.page.route(
        EVERYTHING, lambda route: route.fulfill(status=410, json=evicted.pop()) if evicted else route.continue_()
    )
    sample.page.evaluate("document.getElementById('detail').value = '16'")
    sample.at("[data-mode=everything]").click()
    sample.at("#keep-all").wait_for()
    assert sample.count(UPLOAD) == 2


def test_a_busy_service_is_waited_for(sample):
    busy = {"error": {"code": "overloaded", "message": "busy"}}
    left = [503, 429, 503]
    sample.page.route(
        MASKS,
        lambda route: (
            route.fulfill(status=left.pop(), json=busy, headers={"Retry-After": "0"}) if left else route.continue_()
        ),
    )
    sample.press(SPOON)
    sample.tell("^Mask 1 of 3")
    assert sample.count(MASKS) == 4
    sample.page.unroute(MASKS)
    sample.page.route(MASKS, answer_json(busy, 503, **{"Retry-After": "0"}))
    sample.press(CUP)
    sample.tell("^The service is too busy")
    # Bounded: six tries and no more.
    assert sample.count(MASKS) == 10


def test_a_long_wait_is_not_begun(sample):
    limited = {"error": {"code": "rate_limited", "message": "slow down"}}
    sample.page.route(MASKS, answer_json(limited, 429, **{"Retry-After": "3600"}))
    sample.press(SPOON)
    sample.tell("^Too many requests")
    assert sample.count(MASKS) == 1


def test_the_key_is_asked_for_and_kept(browser, closed):
    with visiting(browser, closed.address) as visit:
        visit.page.goto(closed.address)
        for key, text in (("wrong", "This service asks for a key."), ("secret", "does not know this key")):
            expect(visit.at("#key-text")).to_contain_text(text)
            visit.at("#key").fill(key)
            visit.key("Enter")
        visit.tell("^Open a picture")
        visit.at("#use-sample").click()
        visit.tell("^Ready")
        visit.click(SPOON)
        visit.tell("^Mask 1 of 3")
        visit.save("coco")
        visit.page.reload()
        visit.tell("^Open a picture")
        assert visit.at("#key-dialog").is_hidden()


NAMES = {"segship", "sample", "jpg", "English", "PNG", "COCO", "JSON", "LabelMe", "SVG"}
NAMES_AND_KEYS = NAMES | {"Alt", "Enter", "Shift", "Delete", "Ctrl", "Escape", "PageUp", "PageDown"}


def test_chinese(browser, address):
    with visiting(browser, address, locale="zh-CN") as visit:
        visit.page.goto(address)
        expect(visit.at("#status")).to_have_text("请打开一张图片。")
        visit.at("#use-sample").click()
        visit.tell("^就绪")
        visit.click(SPOON)
        visit.tell("^掩码 1/3，得分 0.36")
        assert visit.names() == ["对象 1"]
        visit.at("#help").click()
        words = visit.page.inner_text("body")
        assert set(re.findall(r"[A-Za-z]{2,}", words)) <= NAMES_AND_KEYS
        visit.key("Escape")
        visit.at("#language").click()
        visit.tell("^Mask 1 of 3, score 0.36")
        visit.save("coco")
        visit.page.reload()
        expect(visit.at("#status")).to_have_text("Open a picture to begin.")


def test_opening_another_picture_over_masks_that_are_not_saved_is_asked_about(sample):
    sample.click(SPOON)
    sample.choose("next.png", png())
    sample.at("#loss-dialog .close").click()
    assert len(sample.masks()) == 1
    sample.at("#list .name").fill("Spoon")
    sample.key("Enter")
    sample.choose("next.png", png())
    sample.at("#lose").click()
    expect(sample.at("#file-name")).to_have_text("next.png")
    expect(sample.at("#list li")).to_have_count(0)
    sample.click((8, 8), (24, 16))
    sample.key("n")
    sample.click((20, 12), (24, 16))
    sample.save("svg")
    # To look at what is saved changes nothing.
    sample.key("[")
    sample.open("last.png", png())


def test_leaving_with_masks_that_are_not_saved_is_asked_about(sample):
    sample.click(SPOON)
    with sample.page.expect_event("dialog") as asked:
        sample.page.close(run_before_unload=True)
    assert asked.value.type == "beforeunload"
    sample.wrong.clear()


def test_both_languages_have_the_same_words(visit):
    visit.page.goto(visit.address)
    words = visit.page.evaluate("import('/page/strings.js').then((strings) => strings.LANGUAGES)")

    def shape(part):
        return (
            {key: shape(value) for key, value in part.items()}
            if isinstance(part, dict)
            else sorted(re.findall(r"{\w+}", part))
        )

    assert shape(words["en"]) == shape(words["zh"])
    asked = visit.page.evaluate(
        "[...document.querySelectorAll('[data-t], [data-label]')].flatMap((e) => [e.dataset.t, e.dataset.label])"
    )
    assert {word for word in asked if word} <= words["en"].keys()


def test_classes_have_a_legend_and_are_kept(visit):
    half = {"size": [400, 600], "counts": [0, 120000, 120000]}
    rest = {"size": [400, 600], "counts": [120000, 120000]}
    classes = [
        {"id": 0, "name": "left", "color": [128, 64, 128], "area": 120000, "share": 0.5, "segmentation": half},
        {"id": 1, "name": "right", "color": [70, 130, 180], "area": 120000, "share": 0.5, "segmentation": rest},
        {"id": 2, "name": "none", "color": [0, 0, 0], "area": 0, "share": 0.0, "segmentation": half},
    ]
    visit.page.route(re.compile("/v1/semantic"), answer_json({"classes": classes, "width": 600, "height": 400}))
    real = visit.page.request.get(f"{visit.address}/v1/models").json()
    real["models"].append({"name": "streets", "task": "semantic", "ready": True, "classes": []})
    visit.page.route(MODELS, answer_json(real))
    visit.open_sample()
    visit.key("l")
    expect(visit.at("#legend li")).to_have_text(["left50.0%", "right50.0%"])
    visit.page.mouse.move(*house.place_of(visit.page, (500, 100)))
    expect(visit.at("#readout")).to_have_text("right")
    visit.press((500, 100))
    assert visit.names() == ["right"]
    assert np.array_equal(visit.masks()[0], decode_rle(rest))
    expect(visit.at("#legend button").nth(1)).to_have_attribute("aria-pressed", "true")


def test_zoom_and_pan_keep_the_pixel_under_the_pointer(sample):
    zoom = sample.at("#zoom-now")
    x, y = house.place_of(sample.page, SPOON)
    before = zoom.inner_text()
    sample.page.mouse.move(x, y)
    sample.page.mouse.wheel(0, -400)
    expect(zoom).not_to_have_text(before)
    with sample.page.expect_response(MASKS):
        sample.page.mouse.click(x, y)
    assert sample.prompts()["points"] == [list(SPOON)]
    sample.page.keyboard.down(" ")
    sample.page.mouse.down()
    sample.page.mouse.move(x - 100, y - 50, steps=3)
    sample.page.mouse.up()
    sample.page.keyboard.up(" ")
    with sample.page.expect_response(MASKS):
        sample.page.mouse.click(x, y)
    moved = np.subtract(sample.prompts()["points"][1], SPOON)
    assert moved[0] > 20 and moved[1] > 10
    sample.key("0")
    expect(zoom).to_have_text(before)


def test_touch_taps_and_pinches(browser, address):
    size = {"width": 390, "height": 844}
    with visiting(browser, address, viewport=size, has_touch=True, is_mobile=True) as visit:
        visit.open_sample()
        x, y = house.place_of(visit.page, SPOON)
        with visit.page.expect_response(MASKS):
            visit.page.touchscreen.tap(x, y)
        visit.tell("^Mask 1 of 3")
        touch = visit.page.context.new_cdp_session(visit.page)
        before = visit.at("#zoom-now").inner_text()
        for kind, apart in (("touchStart", 20), ("touchMove", 40), ("touchMove", 80), ("touchEnd", None)):
            points = [] if apart is None else [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        expect(visit.at("#zoom-now")).not_to_have_text(before)
        assert len(visit.prompts()["points"]) == 1
        # Nothing runs over the edge of a small screen.
        assert visit.page.evaluate("document.documentElement.scrollWidth") == size["width"]


def test_preview_follows_the_pointer_only_when_it_is_asked_for(sample):
    sample.page.mouse.move(*house.place_of(sample.page, SPOON))
    sample.page.wait_for_timeout(200)
    assert sample.count(MASKS) == 0
    sample.at("#preview").check()
    with sample.page.expect_response(MASKS):
        sample.page.mouse.move(*house.place_of(sample.page, CUP))
    assert sample.prompts()["multimask_output"] == "best"
    assert sample.names() == []


def test_dropped_and_pasted_pictures_are_opened(visit):
    visit.page.goto(visit.address)
    script = """([event, field, bytes]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(bytes)], `${event}.png`, {type: "image/png"}));
      document.dispatchEvent(event === "paste"
        ? new ClipboardEvent(event, {clipboardData: transfer}) : new DragEvent(event, {dataTransfer: transfer}));
    }"""
    for event in ("drop", "paste"):
        with visit.page.expect_response(UPLOAD):
            visit.page.evaluate(script, [event, None, list(png())])
        expect(visit.at("#file-name")).to_have_text(f"{event}.png")


def tiff(picture, **more):
    stream = io.BytesIO()
    picture.save(stream, "TIFF", **more)
    return stream.getvalue()


def test_a_tiff_is_shown_as_the_service_reads_it(visit, predictor):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.open(segship.demo_photograph()).resize((300, 200))
    data = tiff(upright.transpose(TURNS[6]), exif=exif)
    assert np.array_equal(segship.read_image(data).pixels, np.asarray(upright))
    visit.page.goto(visit.address)
    visit.open("scan.tiff", data)
    visit.tell("^Ready: 300 x 200")
    point = (SPOON[0] // 2, SPOON[1] // 2)
    visit.click(point, (300, 200))
    visit.tell("^Mask 1 of 3")
    assert visit.count(re.compile("/picture$")) == 1
    expected = predictor.predict(data, points=[point], labels=[1], multimask_output=True).masks[0, 0]
    assert np.array_equal(visit.masks()[0], expected)
    cut = np.asarray(Image.open(io.BytesIO(visit.save("cutout")[1])))
    y, x = np.nonzero(expected)
    box = np.s_[y.min() : y.max() + 1, x.min() : x.max() + 1]
    assert np.array_equal(cut[..., :3][expected[box]], np.asarray(upright)[box][expected[box]])


def test_what_cannot_be_opened_is_said(visit):
    limits = {"body_bytes": 2**20}
    visit.page.route(MODELS, answer_json({"models": [{"name": "tiny", "task": "promptable"}], "limits": limits}))
    visit.page.goto(visit.address)
    visit.tell("^Open a picture")
    visit.choose("no.png", b"no picture")
    visit.tell("^Neither this browser nor the service can read this file")
    visit.choose("thin.tiff", tiff(Image.new("RGB", (1, 2000))))
    visit.tell("aspect_ratio|shorter")
    visit.choose("large.png", bytes(3 * 2**20))
    visit.tell("^The file has 3.0 MB; the service takes 1.0 MB")
    visit.open("good.png", png())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_controls_have_names_and_contrast(browser, address, scheme):
    with visiting(browser, address, color_scheme=scheme) as visit:
        visit.open_sample()
        visit.click(SPOON)
        nameless, faint = visit.page.evaluate(SEEN)
        assert nameless == [] and faint == []
        visit.key("Tab")
        style = visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert style == "solid"


# Names of controls, and contrast of text by the formula of WCAG 2 over what is painted behind it.
SEEN = """() => {
  const shown = [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() && !e.disabled);
  const controls = shown.filter((e) => e.matches("button, input, select, [role=application]"));
  const name = (e) => e.ariaLabel || e.innerText?.trim() || e.labels?.[0]?.innerText;
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (color) => {
    const [r, g, b] = color.slice(0, 3).map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const color = rgb(getComputedStyle(e).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
  };
  const contrast = (e) => {
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  const texts = shown.filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()));
  return [
    controls.filter((e) => !name(e)).map((e) => e.outerHTML),
    texts.filter((e) => contrast(e) < 4.5).map((e) => `${contrast(e).toFixed(1)} ${e.outerHTML}`),
  ];
}"""


READ_MASKS = """async (rles) => {
  const { Mask, ringArea } = await import("/page/mask.js");
  return rles.map((rle) => {
    try {
      const mask = new Mask(rle);
      const row = (y) => Array.from({length: mask.width}, (_, x) => mask.has(x, y));
      const under = Array.from({length: mask.height}, (_, y) => row(y));
      return {under, area: mask.area, box: mask.box, areas: mask.rings.map(ringArea), pixels: [...mask.pixels()]};
    } catch (error) {
      return String(error);
    }
  });
}"""


# Height, width, and how much of it is set.
SHAPES = [(1, 1, 1), (1, 1, 0), (1, 9, 0.5), (9, 1, 0.5), *((7, 12, share / 20) for share in range(21)), (40, 40, 0.5)]


def test_run_lengths_and_outlines_of_any_mask(visit):
    visit.page.goto(visit.address)
    chance = np.random.default_rng(0)
    masks = [chance.random((height, width)) < share for height, width, share in SHAPES]
    given = [encode_rle(mask, compressed=bool(n % 2)) for n, mask in enumerate(masks)]
    for mask, found in zip(masks, visit.page.evaluate(READ_MASKS, given), strict=True):
        assert np.array_equal(found["under"], mask)
        assert np.array_equal(np.reshape(found["pixels"], mask.shape) > 0, mask)
        assert found["area"] == mask.sum() == sum(found["areas"]) / 2
        y, x = np.nonzero(mask)
        assert found["box"] == ([x.min(), y.min(), x.max() + 1, y.max() + 1] if mask.any() else [0, 0, 0, 0])
        # Pixels that touch in a corner are apart: one outline a part, one more for every hole.
        parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[0] - 1
        around = cv2.connectedComponents(np.pad(~mask, 1, constant_values=True).astype(np.uint8), connectivity=8)[0] - 1
        assert sum(area > 0 for area in found["areas"]) == parts
        assert len(found["areas"]) == parts + around - 1


def test_run_lengths_that_are_none_are_refused(visit):
    visit.page.goto(visit.address)
    size = [2, 2]
    bad = [[4, 1], [-1, 5], [1.5, 2.5], [], "22", "222222222222", "P", "\x00", "oooooooooooo"]
    good = {"size": size, "counts": [1, 3]}
    answers = visit.page.evaluate(READ_MASKS, [good, *({"size": size, "counts": counts} for counts in bad)])
    assert answers[0]["area"] == 3
    # "22" is two columns of which the second is set.
    assert [isinstance(answer, str) for answer in answers[1:]] == [counts != "22" for counts in bad]


@pytest.mark.slow
def test_a_large_picture_keeps_its_own_pixels(visit):
    size = (7000, 5000)
    pixels = np.full((size[1], size[0], 3), 60, np.uint8)
    cv2.circle(pixels, (5200, 3600), 900, (240, 200, 40), -1)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    visit.page.goto(visit.address)
    visit.open("large.jpg", stream.getvalue())
    visit.tell("^Ready: 7000 x 5000")
    visit.click((5200, 3600), size)
    assert np.abs(np.subtract(visit.prompts()["points"][0], (5200, 3600))).max() <= 8
    [mask] = visit.masks()
    assert mask.shape == (5000, 7000) and mask[3600, 5200] and not mask[200, 200]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(visit.save("png")[1]))) > 0, mask)
