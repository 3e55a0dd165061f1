# SPDX-License-Identifier: Apache-2.0
"""Settings from a file, the environment and the command line; keys and who may listen where."""

import json
import subprocess
import sys
import tomllib
from dataclasses import replace

import pytest

from segship.errors import InputError
from segship.serve.options import (
    KeyRing,
    ServeLimits,
    ServeOptions,
    describe_options,
    hash_key,
    make_serve_options,
    parse_keys,
    read_settings,
)


def refused(function, *arguments, **named):
    with pytest.raises(InputError) as caught:
        function(*arguments, **named)
    return caught.value.code


def command(*arguments, **environment):
    import os

    done = subprocess.run(
        [sys.executable, "-m", "segship", "serve", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment, "COLUMNS": "200"},
    )
    return done


def test_the_command_line_stands_over_the_environment_and_that_over_the_file(tmp_path):
    file = tmp_path / "serve.toml"
    file.write_text('port = 1\ncache_seconds = 5\nbundle = ["tiny"]\njson_bytes = 7\nthreads = 3\n')
    environment = {"SEGSHIP_SERVE_PORT": "2", "SEGSHIP_SERVE_TENSORS": "true", "SEGSHIP_SERVE_ALLOWED_HOSTS": "a, b"}
    options = make_serve_options(read_settings(file, environment))
    assert (options.port, options.tensors, options.allowed_hosts) == (2, True, ("a", "b"))
    assert (options.cache_seconds, options.limits.json_bytes, options.run.threads) == (5, 7, 3)
    done = command("--config", str(file), "--port", "3", "--json-bytes", "8", "--print-config", "--json", **environment)
    shown = json.loads(done.stdout)
    assert (shown["port"], shown["json_bytes"], shown["threads"], shown["tensors"]) == (3, 8, 3, True)


def test_what_is_printed_is_read_back():
    options = replace(ServeOptions(port=0, allowed_hosts=('a"b',)), limits=ServeLimits(requests_per_minute=5))
    assert make_serve_options(tomllib.loads(describe_options(options))) == options


def test_names_that_there_are_not_refuse_to_start(tmp_path):
    file = tmp_path / "serve.toml"
    file.write_text("prot = 1\n")
    assert refused(lambda: make_serve_options(read_settings(file, {}))) == "unknown_setting"
    assert refused(read_settings, None, {"SEGSHIP_SERVE_PROT": "1"}) == "unknown_setting"
    file.write_text("port = = 1\n")
    assert refused(read_settings, file, {}) == "bad_config"
    done = command("--print-config", SEGSHIP_SERVE_PROT="1")
    assert done.returncode == 3 and "SEGSHIP_SERVE_PROT" in done.stderr and done.stdout == ""


@pytest.mark.parametrize(
    "name, text", [("PORT", "x"), ("TENSORS", "maybe"), ("CACHE_SECONDS", ""), ("BODY_BYTES", "1e6")]
)
def test_text_that_is_no_value_is_refused(name, text):
    assert refused(read_settings, None, {f"SEGSHIP_SERVE_{name}": text}) == "bad_option"


@pytest.mark.parametrize(
    "given",
    [{"port": 70_000}, {"port": "80"}, {"bundle": ()}, {"cache_bytes": 1}, {"log": "loud"}, {"body_bytes": 0}]
    + [{"head_seconds": 0.0}, {"encode_queue": -1}, {"requests_per_minute": 0}],
)
def test_values_outside_their_range_are_refused(given):
    assert refused(make_serve_options, given) == "bad_option"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_nobody_else_is_let_in_without_keys(host, tmp_path):
    assert refused(ServeOptions, host=host) == "needs_keys"
    assert ServeOptions(host=host, keys=tmp_path / "keys").host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_this_machine_needs_none(host):
    assert ServeOptions(host=host).keys is None


def test_a_new_key_is_printed_once_and_its_line_is_understood():
    shown = json.loads(command("--new-key", "anna", "--json").stdout)
    (key,) = parse_keys(shown["line"])
    assert key.name == "anna" and key.scopes == {"predict", "metrics"} and key.sha256 == hash_key(shown["key"])
    assert shown["key"] not in shown["line"] and len(shown["key"]) >= 40


@pytest.mark.parametrize(
    "text",
    ["", "# nothing\n", "anna predict", f"anna all {'0' * 64}", f"anna predict {'g' * 64}", f"a predict {'0' * 63}"]
    + [f"a predict {'0' * 64}\na metrics {'1' * 64}", f"a  {'0' * 64}"],
)
def test_lines_that_are_no_keys_refuse_the_file(text):
    assert refused(parse_keys, text) == "bad_keys"


def test_no_line_of_keys_is_quoted():
    with pytest.raises(InputError) as caught:
        parse_keys("secretname predict SECRETSECRET")
    assert "SECRET" not in str(caught.value) and "secretname" not in str(caught.value)


def test_keys_come_and_go_with_their_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"anna predict {hash_key('one')}  # first\n")
    ring = KeyRing(file)
    assert ring.find("one").name == "anna" and ring.find("two") is None and ring.find("") is None
    file.write_text(f"anna predict {hash_key('one')}\n\nben metrics {hash_key('two')}\n")
    ring.refresh()
    assert ring.find("two").name == "ben"
    file.write_text(f"ben metrics {hash_key('two')}\n")
    ring.refresh()
    assert ring.find("one") is None


@pytest.mark.parametrize("name", ["", "a b", "a\tb", "#anna"])
def test_a_key_has_a_name_that_its_file_can_hold(name):
    done = command("--new-key", name)
    assert done.returncode == 3 and "bad_option" in done.stderr and not done.stdout


def test_a_file_that_is_no_checkpoint_is_refused_at_the_start(tmp_path):
    from segship.errors import BundleError
    from segship.serve.server import find_models

    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(BundleError) as caught:
        find_models((str(tmp_path / "photo.jpg"),))
    assert caught.value.code == "unknown_model"
    assert find_models(("tiny", "again=tiny"))["again"][0] == "promptable"
    with pytest.raises(InputError):
        find_models(("tiny", "tiny"))
