# SPDX-License-Identifier: Apache-2.0
"""Pictures and runs in an object store, over HTTP: the same as on a disk, whatever becomes of store and driver."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time

import pyarrow
import pyarrow.parquet
import pytest

from segship.errors import BackendUnavailable, BundleError, ImageError, InputError, OutputError
from segship.run import objects
from segship.run.exporting import export, retry
from segship.run.ledger import Ledger
from segship.run.objects import Objects
from segship.run.plan import PlanOptions, make_plan
from segship.run.running import collect_garbage, start, status, verify
from segship.run.sources import find_items, read_item, renewed
from segship.run.storage import StoreFolder, open_folder
from tests.run.conftest import answer_by_stub
from tests.run.runs import AMG, picture, refused
from tests.run.stores import SECRETS
from tests.run.test_ledger import table

OPTIONS = PlanOptions(amg=AMG, shard_items=2)


@pytest.fixture
def place(store, request):
    """A place for a run that is a test's own; the store is right again afterwards."""
    store.seen.clear()
    yield f"s3://runs/{request.node.name}"
    store.wrong = None


@pytest.fixture(scope="module")
def source(store, tmp_path_factory):
    """The same pictures in a folder and, as its name and `photos`, in a bucket."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(8):
        name = f"sub {number % 2}/ä+{number}.png"
        (folder / name).parent.mkdir(exist_ok=True)
        data = b"no picture" if number == 5 else picture(number)
        (folder / name).write_bytes(data)
        Objects("photos").put(f"all/{name}", data)
    Objects("photos").put("all/sub 0/", b"")
    Objects("photos").put("all/notes.json", b"{}")
    return folder


@pytest.fixture(scope="module", autouse=True)
def stub():
    """Workers without a model; one run in a store with one is Ray's."""
    with pytest.MonkeyPatch.context() as patch:
        answer_by_stub(patch, 0.1)
        yield


@pytest.fixture(scope="module")
def expected(source, stub, tmp_path_factory):
    """The run of the folder in a folder."""
    place = tmp_path_factory.mktemp("expected") / "run"
    make_plan(source, open_folder(place), OPTIONS)
    return start(place, workers=1)


def everything(bucket="runs", prefix=""):
    return {found.key: Objects(bucket).get(found.key) for found in Objects(bucket).list(prefix)}


def test_a_run_in_a_store_is_the_run_in_a_folder(source, expected, place):
    plan = make_plan("s3://photos/all", open_folder(place), OPTIONS)
    done = start(place, workers=1)
    assert done.root == expected.root and done.quarantined == {"unknown_format": 1} and done.done == 7
    assert verify(place)["root"] == expected.root
    assert status(place).to_dict()["seconds_left"] == 0 and done.seconds >= 0
    # A run that is done is left as it is, and what nobody needs goes.
    before = everything()
    assert make_plan("s3://photos/all", open_folder(place), OPTIONS) == plan and start(place).root == done.root
    assert everything() == before
    Objects("runs").put(f"{place.removeprefix('s3://runs/')}/data/part-00000000-0000.parquet", b"of a loser")
    assert collect_garbage(place) == ["data/part-00000000-0000.parquet"] and everything() == before
    assert retry(place, f"{place}-again", ["unknown_format"]).items == 1
    # Another plan in the same place is refused.
    assert refused(InputError, make_plan, "s3://photos/all/sub 1", open_folder(place), OPTIONS) == "other_plan"


def driven(place):
    """Start the command, and return when it is in the middle."""
    command = [sys.executable, "-m", "segship", "run", "start", str(place), "--workers", "1", "--json"]
    driver = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline, folder = time.monotonic() + 60, open_folder(place)
    while not folder.names("commits"):
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return driver


@pytest.mark.parametrize("where", ["folder", "store"])
def test_a_driver_that_was_paused_finds_the_run_done_and_changes_nothing(source, expected, place, where, tmp_path):
    place = place if where == "store" else tmp_path / "run"
    make_plan(source, open_folder(place), OPTIONS)
    paused = driven(place)
    try:
        os.killpg(paused.pid, signal.SIGSTOP)
        assert start(place, workers=1).root == expected.root
        collect_garbage(place)
        before = {name: open_folder(place).names(name) for name in ("data", "commits")}
    finally:
        os.killpg(paused.pid, signal.SIGCONT)
    told, _ = paused.communicate(timeout=60)
    assert paused.returncode == 7 and json.loads(told)["root"] == expected.root
    assert verify(place)["root"] == expected.root and collect_garbage(place) == []
    assert {name: open_folder(place).names(name) for name in ("data", "commits")} == before


def test_kills_of_drivers_lose_nothing(source, expected, place):
    make_plan("s3://photos/all", open_folder(place), OPTIONS)
    driver = driven(place)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()
    assert start(place, workers=1).root == expected.root == verify(place)["root"]


def test_a_store_that_goes_away_ends_the_run_and_the_next_start_goes_on(source, expected, place, store):
    make_plan("s3://photos/all", open_folder(place), OPTIONS)
    driver = driven(place)
    store.end()
    try:
        out, told = driver.communicate(timeout=60)
    finally:
        store.begin()
    error = json.loads(out)["error"]
    assert driver.returncode == 4 and error["code"] == "store_unreachable" and "start again" in error["message"], error
    assert f"127.0.0.1:{store.port}" in error["message"]
    assert not open_folder(place).exists("manifest.json")
    done = start(place, workers=1)
    assert done.root == expected.root and done.quarantined == expected.quarantined


SHARDS = 2


def work(folder):
    """What a driver does with shards whose work is trivial, from wherever the run stands."""
    ledger = Ledger(folder, SHARDS)
    for shard in ledger.state().open:
        ledger.begin(shard)
        ledger.commit(shard, table(shard), shard, [f"item {shard}"], [])
    return ledger.seal("fingerprint")


HOW = {"refused": (503, "SlowDown", False), "answer lost": (503, "SlowDown", True), "cut": (None, "", True)}


@pytest.mark.parametrize("how", HOW)
def test_every_put_at_which_a_driver_can_end(place, store, how):
    prefix = place.removeprefix("s3://runs/")
    expected, puts = work(StoreFolder(Objects("runs"), f"{prefix}/undisturbed/")), []

    def wrong(method, path, environment):
        puts.extend([path] if method == "PUT" else [])
        return HOW[how] if method == "PUT" and len(puts) == at else None

    for at in range(1, 3 * SHARDS + 2):
        folder, store.wrong = StoreFolder(Objects("runs"), f"{prefix}/{at}/"), wrong
        puts.clear()
        assert refused(BackendUnavailable, work, folder) == "store_unreachable" and len(puts) == at
        store.wrong = None
        ledger = Ledger(folder, SHARDS)
        for commit in ledger.read_commits(sorted(ledger.state().committed)):
            assert ledger.check(commit) == table(commit.shard)
        assert work(folder) == expected
        assert json.loads(folder.read("manifest.json")) == expected


def test_what_was_put_though_the_answer_was_lost_counts_once(place, store, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    objects._client.cache_clear()
    lost = []

    def wrong(method, path, environment):
        if method == "PUT" and path not in lost:
            lost.append(path)
            return 500, "InternalError", True
        return None

    folder, store.wrong = open_folder(place), wrong
    try:
        # The client asks again and is told that it is there.
        assert folder.create("a", b"1") is False and folder.read("a") == b"1"
    finally:
        objects._client.cache_clear()


def test_conflicts_are_asked_again(place, store):
    left = [409, 409]
    store.wrong = lambda method, *_: (left.pop(), "ConditionalRequestConflict", False) if left else None
    assert open_folder(place).create("a", b"1") and not left


def test_a_store_that_puts_whatever_it_is_told_is_refused_before_anything_is_written(source, place, store):
    store.wrong = lambda method, path, environment: environment.pop("HTTP_IF_NONE_MATCH", None) and None
    before = everything()
    assert refused(OutputError, make_plan, source, open_folder(place), OPTIONS) == "no_conditional_puts"
    store.wrong = lambda method, path, environment: (
        (501, "NotImplemented", False) if "HTTP_IF_NONE_MATCH" in environment else None
    )
    assert refused(OutputError, make_plan, source, open_folder(place), OPTIONS) == "no_conditional_puts"
    store.wrong = None
    assert everything() == before
    make_plan(source, open_folder(place), OPTIONS)
    store.wrong = lambda method, path, environment: environment.pop("HTTP_IF_NONE_MATCH", None) and None
    assert refused(OutputError, start, place) == "no_conditional_puts"
    assert open_folder(place).names("attempts") == []


FAULTS = {
    "NoSuchBucket": (404, "no_bucket", BackendUnavailable),
    "AccessDenied": (403, "store_denied", BackendUnavailable),
    "InvalidAccessKeyId": (403, "no_credentials", BackendUnavailable),
    "ExpiredToken": (400, "no_credentials", BackendUnavailable),
    "SlowDown": (503, "store_unreachable", BackendUnavailable),
    "XMinioStorageFull": (507, "no_space", OutputError),
    "MalformedXML": (400, "store_failed", BackendUnavailable),
}


@pytest.mark.parametrize("said", FAULTS)
def test_what_a_store_refuses_is_told_without_its_words(place, store, said):
    number, code, kind = FAULTS[said]
    store.wrong = lambda *_: (number, said, False)
    for function in (Objects("runs").get, Objects("runs").delete, lambda key: Objects("runs").put_new(key, b"")):
        with pytest.raises(kind) as caught:
            function("a")
        assert caught.value.code == code and "s3://runs/a" in str(caught.value)
        assert not any(secret in str(caught.value) for secret in SECRETS.values())
        assert caught.value.__cause__ is None


def test_pictures_are_not_blamed_for_their_store(source, place, store):
    (item, *_) = find_items("s3://photos/all")
    for said in ("InvalidAccessKeyId", "SlowDown", "NoSuchBucket"):
        store.wrong = lambda *_, said=said: (FAULTS[said][0], said, False)
        with pytest.raises(BackendUnavailable) as caught:
            read_item(item, 10**6)
        assert caught.value.code in objects.STORE_FAULTS
    store.wrong = lambda *_: (403, "AccessDenied", False)
    assert refused(ImageError, read_item, item, 10**6) == "unreadable_file"


def test_no_secret_is_written_anywhere(source, place, store, caplog, monkeypatch):
    run = [sys.executable, "-m", "segship", "run"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint.replace("//", "//user:" + "password" + "@"))
    told = subprocess.run([*run, "status", place], capture_output=True, text=True)
    assert told.returncode == 3 and "no_plan" in told.stderr
    store.wrong = lambda *_: (503, "SlowDown", False)
    told = subprocess.run([*run, "plan", "s3://photos/all", "-o", place], capture_output=True, text=True)
    assert told.returncode == 4
    written = b"".join(everything_of_runs(store)) + (told.stdout + told.stderr + caplog.text).encode()
    assert b"store_unreachable" in written and b"fingerprint" in written
    for secret in (*SECRETS.values(), "password"):
        assert secret.encode() not in written
    for address in ("s3://key:secret@photos/all", "s3://photos/all?secret_key=secret", "http://u:secret@host/a"):
        with pytest.raises(InputError) as caught:
            list(find_items(address))
        assert caught.value.code == "bad_address" and "secret@" not in str(caught.value)
        assert refused(InputError, open_folder, address) == "bad_address"


def everything_of_runs(store):
    store.wrong = None
    return everything().values()


def test_lists_tables_and_archives_lie_in_stores_too(source, place, store, tmp_path):
    bucket, local = Objects("photos"), {item.name: item for item in find_items(source)}
    names = sorted(local)

    def same(address, expected=names):
        found = {item.name: item for item in find_items(address)}
        assert sorted(found) == sorted(expected)
        for item in found.values():
            own = local[item.name.removeprefix("a.tar/").removeprefix("../all/").removeprefix("s3://photos/all/")]
            assert read_item(item, 10**6) == read_item(own, 10**6) and renewed(item) == item
        return found

    same("s3://photos/all/")
    bucket.put("all/list.txt", "\n".join([*names, "not there.png"]).encode())
    lost = {item.name: item for item in find_items("s3://photos/all/list.txt")}.pop("not there.png")
    assert lost.bytes == -1 and refused(ImageError, read_item, lost, 10**6) == "vanished"
    bucket.put("lists/up.txt", "\n".join(f"../all/{name}" for name in names).encode())
    same("s3://photos/lists/up.txt", [f"../all/{name}" for name in names])
    addresses = [f"s3://photos/all/{name}" for name in names]
    (tmp_path / "list.txt").write_text("\n".join(addresses))
    same(tmp_path / "list.txt", addresses)
    rows = pyarrow.table({"image": names, "x": [3] * len(names), "y": [4] * len(names)})
    stream = io.BytesIO()
    pyarrow.parquet.write_table(rows, stream)
    bucket.put("all/points.parquet", stream.getvalue())
    bucket.put("all/points.csv", b"image,x,y\n" + "".join(f"{name},3,4\n" for name in names).encode())
    assert same("s3://photos/all/points.csv")[names[0]].prompts == '{"points": [[3.0, 4.0]], "labels": [1]}'
    same("s3://photos/all/points.parquet")
    for name in ("list.txt", "points.csv", "points.parquet"):
        bucket.delete(f"all/{name}")
        assert refused(InputError, lambda name=name: list(find_items(f"s3://photos/all/{name}"))) == "no_source"


def test_archives_in_stores_are_read_by_ranges(source, place, store):
    stream, names = io.BytesIO(), sorted(item.name for item in find_items(source))
    with tarfile.open(fileobj=stream, mode="w") as archive:
        big = tarfile.TarInfo("big.bin")
        big.size = 5 * 2**20
        archive.addfile(big, io.BytesIO(bytes(big.size)))
        for name in names:
            archive.add(source / name, name)
        archive.addfile(tarfile.TarInfo("empty.png"))
    Objects("photos").put("tars/a.tar", stream.getvalue())
    found = {item.name: item for item in find_items("s3://photos/tars")}
    assert sorted(found) == sorted([*(f"a.tar/{name}" for name in names), "a.tar/empty.png"])
    assert {item.name for item in find_items("s3://photos/tars/a.tar")} == {*names, "empty.png"}
    # What is no picture is passed over, and a picture is all that is fetched of it.
    spans = [span for method, path, span in store.seen if method == "GET" and path.endswith("a.tar")]
    assert spans and all(spans) and len(spans) <= 4
    store.seen.clear()
    for name in names:
        assert read_item(found[f"a.tar/{name}"], 10**6) == (source / name).read_bytes()
    assert read_item(found["a.tar/empty.png"], 10**6) == b""
    spans = [span.removeprefix("bytes=").split("-") for _, _, span in store.seen]
    assert sum(int(end) - int(begin) + 1 for begin, end in spans) == sum(
        (source / name).stat().st_size for name in names
    )
    Objects("photos").put("tars/a.tar", stream.getvalue() + bytes(10_240))
    one = found[f"a.tar/{names[0]}"]
    assert refused(ImageError, read_item, one, 10**6) == "changed_since_plan"
    assert read_item(renewed(one), 10**6) == (source / names[0]).read_bytes()
    Objects("photos").put("tars/no.tar", b"no archive" * 100)
    assert refused(InputError, lambda: list(find_items("s3://photos/tars"))) == "bad_source"
    Objects("photos").delete("tars/a.tar")
    assert refused(ImageError, read_item, one, 10**6) == "vanished"


def test_what_broke_off_is_asked_for_again(place, store, monkeypatch):
    Objects("runs").put("broken", bytes(1000))
    real, left = store._app, [1, 2]

    def cut(environment, begin):
        body = b"".join(real(environment, begin))
        return [body[: len(body) // 2] if environment["REQUEST_METHOD"] == "GET" and left and left.pop() else body]

    monkeypatch.setattr(store, "_app", cut)
    assert Objects("runs").get("broken") == bytes(1000) and not left
    for function in (Objects("runs").get, lambda key: list(Objects("runs").list(key))):
        left.extend([1, 2, 3])
        assert refused(BackendUnavailable, function, "broken") == "store_unreachable"
        left.clear()


def test_a_store_that_is_not_there_is_told(store, place, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{'pass' + 'word'}@127.0.0.1:{taken.getsockname()[1]}")
        objects._client.cache_clear()
        bucket = Objects("runs")
        objects._client.cache_clear()
        for function in (bucket.get, bucket.head, bucket.delete, lambda key: bucket.put_new(key, b"")):
            with pytest.raises(BackendUnavailable, match="127.0.0.1:") as caught:
                function("a")
            assert caught.value.code == "store_unreachable" and "password" not in str(caught.value)


def test_addresses_that_are_none_are_refused(store, tmp_path):
    for address in ("s3://", "s3:///a", "gs://bucket/a", "http://bucket/a", "s3://a b/c"):
        assert refused(InputError, open_folder, address) == "bad_address"
        assert refused(InputError, lambda address=address: list(find_items(address))) == "bad_address"
    assert refused(InputError, lambda: list(find_items("s3://photos/none.txt"))) == "no_source"
    assert refused(InputError, make_plan, "s3://photos/none", open_folder(tmp_path), OPTIONS) == "nothing_found"
    assert refused(BundleError, status, "s3://runs/none") == "no_plan"
    assert refused(BackendUnavailable, status, "s3://nowhere/none") == "no_bucket"
    assert refused(OutputError, export, "s3://runs/none", "s3://runs/out", ["coco"]) == "cannot_write"


def test_without_the_extra_it_is_named(store, monkeypatch):
    objects._client.cache_clear()
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    with pytest.raises(BackendUnavailable, match=r"segship\[s3\]") as caught:
        open_folder("s3://runs/none")
    assert caught.value.code == "s3_missing"


def test_credentials_are_looked_for_where_aws_has_them(store, place, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    try:
        objects._client.cache_clear()
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        assert refused(BackendUnavailable, open_folder(place).names, "x") == "no_credentials"
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        (tmp_path / "config").write_text(
            f"[profile mine]\naws_access_key_id = a\naws_secret_access_key = b\nendpoint_url = {store.endpoint}\n"
        )
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_PROFILE", "mine")
        objects._client.cache_clear()
        assert open_folder(place).create("x/a", b"") and open_folder(place).names("x") == ["a"]
    finally:
        objects._client.cache_clear()
