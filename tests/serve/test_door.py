# SPDX-License-Identifier: Apache-2.0
"""Who may come in: hosts, origins, keys and rates, on a real server and over every route."""

import itertools

import pytest

from segship.serve.app import PAGE_ROUTES, ROUTES
from segship.serve.door import SECURITY_HEADERS, Buckets, _name_of
from segship.serve.errors import Refusal
from segship.serve.options import hash_key
from tests.serve.serving import serving


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("door")
    keys = folder / "keys"
    keys.write_text(
        f"anna predict {hash_key('one')}\nben metrics {hash_key('two')}\ncara predict,metrics {hash_key('three')}\n"
    )
    options = ("--keys", str(keys), "--allowed-hosts", "masks.example.org", "--requests-per-minute", "600")
    with serving(*options, log=folder / "log") as running:
        running.keys = keys
        yield running


@pytest.fixture(scope="module")
def open_server(tmp_path_factory):
    with serving(log=tmp_path_factory.mktemp("open") / "log", ready=False) as running:
        yield running


def rows():
    return [(row, row.path.replace("{id}", "0" * 32).replace("{file}", "app.js")) for row in ROUTES + PAGE_ROUTES]


@pytest.mark.parametrize("row, path", rows(), ids=lambda value: getattr(value, "name", None))
def test_every_route_that_is_not_for_all_wants_a_key(server, row, path):
    nobody = server.ask(row.method, path)
    if row.scope is None:
        assert nobody.status != 401
        return
    assert (nobody.status, nobody.code) == (401, "missing_key")
    assert server.ask(row.method, path, Authorization="Bearer four").code == "unknown_key"
    assert server.ask(row.method, path, X_API_Key="four").code == "unknown_key"
    assert server.ask(row.method, path, Authorization="Basic b25l").code == "missing_key"
    other = "two" if row.scope == "predict" else "one"
    refused = server.ask(row.method, path, Authorization=f"Bearer {other}")
    assert (refused.status, refused.code) == (403, "forbidden_scope")
    own = server.ask(row.method, path, Authorization="Bearer three")
    assert own.status not in (401, 403)


def test_only_health_the_page_and_the_document_are_for_all():
    assert {row.name for row in ROUTES + PAGE_ROUTES if row.scope is None} == {
        "live", "ready", "health", "openapi", "index", "page"
    }  # fmt: skip


def test_a_picture_belongs_to_the_key_that_sent_it(server):
    import segship

    data = segship.demo_photograph().read_bytes()
    sent = server.post("/v1/images", data, X_API_Key="one").json
    path = f"/v1/images/{sent['id']}"
    assert server.get(path, X_API_Key="one").status == 200
    other, missing = server.get(path, X_API_Key="three"), server.get(f"/v1/images/{'0' * 32}", X_API_Key="three")
    for answer in (other, missing):
        answer.json["error"].pop("request_id")
    assert (other.status, other.code) == (missing.status, missing.code) == (404, "unknown_image")
    assert server.post("/v1/images", data, X_API_Key="three").json["id"] != sent["id"]


def test_a_key_that_is_taken_out_of_the_file_is_known_no_longer(server):
    text = server.keys.read_text()
    assert server.get("/v1/models", X_API_Key="one").status == 200
    server.keys.write_text(text.replace("anna", "anne", 1).replace(hash_key("one"), hash_key("uno")))
    try:
        assert server.get("/v1/models", X_API_Key="one").status == 401
        assert server.get("/v1/models", X_API_Key="uno").status == 200
        server.keys.write_text("nonsense\n")
        # What cannot be read changes nothing.
        assert server.get("/v1/models", X_API_Key="uno").status == 200
    finally:
        server.keys.write_text(text)


HOSTS = {
    "localhost": True, "localhost:80": True, "LOCALHOST": True, "127.0.0.1": True, "127.0.0.1:9": True, "[::1]": True,
    "[::1]:8080": True, "masks.example.org": True, "masks.example.org:443": True, "evil.example": False,
    "127.0.0.1.evil.example": False, "localhost.evil.example": False, "": False, "localhost@evil": False,
    "evil masks.example.org": False, "[::2]": False, "2130706433": False,
}  # fmt: skip


@pytest.mark.parametrize("host, is_known", HOSTS.items())
def test_names_of_other_places_are_refused(server, host, is_known):
    answer = server.raw(f"GET /v2/health/live HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 200" if is_known else b"HTTP/1.1 421"), answer[:200]


@pytest.mark.parametrize("fields", ["", "Host: localhost\r\nHost: localhost\r\n", "Host: localhost\r\nHost: evil\r\n"])
def test_a_request_has_one_host(server, fields):
    answer = server.raw(f"GET /v2/health/live HTTP/1.1\r\n{fields}Connection: close\r\n\r\n".encode())
    assert answer.startswith((b"HTTP/1.1 421", b"HTTP/1.1 400"))


SITES = {None: True, "same-origin": True, "none": True, "same-site": False, "cross-site": False, "x": False}
OWN = "http://localhost:{port}"
ORIGINS = {None: True, OWN: True, "https://localhost:{port}": True, "http://evil.example": False, "null": False,
           "http://localhost:1": False, "": False}  # fmt: skip


def test_pages_of_other_places_change_nothing(open_server):
    found = {}
    for site, origin in itertools.product(SITES, ORIGINS):
        for method, path in (("POST", "/v1/segment"), ("DELETE", f"/v1/images/{'0' * 32}"), ("GET", "/v1/models")):
            fields = {"Host": f"localhost:{open_server.port}"}
            fields |= {} if site is None else {"Sec-Fetch-Site": site}
            fields |= {} if origin is None else {"Origin": origin.format(port=open_server.port)}
            status = open_server.ask(method, path, **fields).status
            expected = method == "GET" or (SITES[site] and ORIGINS[origin])
            found[method, site, origin] = (status != 403) == expected
    assert len(found) == 126 and all(found.values()), [key for key, is_right in found.items() if not is_right]


def test_every_answer_carries_the_fields_of_safety(server):
    for answer in (server.get("/"), server.get("/v1/models"), server.get("/nothing"), server.get("/v2/health/live")):
        for name, value in SECURITY_HEADERS:
            assert answer.fields[name.decode()] == value.decode()
        assert "server" not in answer.fields and "access-control-allow-origin" not in answer.fields
        assert len(answer.fields["x-request-id"]) == 16
    policy = server.get("/").fields["content-security-policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy


def test_rates_are_counted_by_key(server):
    refused, asked = [], 0
    # More come for as long as it takes.
    while len(refused) < 10:
        answer, asked = server.post(f"/v1/images/{'0' * 32}/masks", {}, X_API_Key="three"), asked + 1
        refused += [answer] if answer.status == 429 else []
        # The key has asked for a little before.
        assert asked < 6_000 and (asked > 500 or not refused)
    assert refused[0].code == "rate_limited" and int(refused[0].fields["retry-after"]) >= 1
    assert refused[0].json["error"]["limit"]["name"] == "requests_per_minute"
    assert server.post(f"/v1/images/{'0' * 32}/masks", {}, X_API_Key="one").status == 404


def test_a_bucket_admits_its_rate_and_no_more():
    now = [0.0]
    buckets, admitted = Buckets(60, lambda: now[0]), 0
    for step in range(6_000):
        now[0] = step / 50
        try:
            buckets.take("a", 1)
            admitted += 1
        except Refusal as refusal:
            assert refusal.retry_after >= 1
    # A minute's worth at the start, and two minutes' since.
    assert admitted == pytest.approx(60 + 120, rel=0.02)
    for number in range(20_000):
        buckets.take(str(number), 1)
    assert len(buckets._held) == 10_000


def test_a_cost_above_a_minutes_worth_is_let_in_once_all_is_there():
    buckets = Buckets(5, lambda: 0.0)
    buckets.take("a", 20)
    with pytest.raises(Refusal):
        buckets.take("a", 1)


@pytest.mark.parametrize("host, name", [("a:1", "a"), ("[::1]:2", "[::1]"), ("[::1", ""), ("A", "a"), ("a:b:c", "a:b")])
def test_names_of_hosts(host, name):
    assert _name_of(host) == name
