# SPDX-License-Identifier: Apache-2.0
"""The cache of embeddings: bounded, scoped, forgetful, and never deleting what is being read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segship.serve.cache import EmbeddingCache, Entry
from segship.serve.errors import Refusal
from segship.serve.wire import Stored


def entry(digest="d", owner="a", size=10, model="tiny"):
    return Entry(owner, model, digest, 4, 3, (3, 4), (), Stored("0" * 32, 0, {}), Stored("1" * 32, size, {}))


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def make(most=100, seconds=60.0):
    dropped, clock = [], Clock()
    return EmbeddingCache(most, seconds, dropped.append, clock), dropped, clock


def code(cache, owner, handle):
    with pytest.raises(Refusal) as caught:
        cache.get(owner, handle)
    return caught.value.status, caught.value.code


def test_an_entry_is_found_by_its_picture_and_its_handle():
    cache, _, _ = make()
    kept = cache.add(entry())
    assert cache.find("a", "tiny", "d") is kept and cache.get("a", kept.id) is kept
    assert len(kept.id) == 32 and kept.id != cache.add(entry("e")).id


def test_for_others_it_is_as_if_it_were_not_there():
    cache, _, _ = make()
    kept = cache.add(entry())
    assert cache.find("b", "tiny", "d") is None and cache.find("a", "vit_b", "d") is None
    assert code(cache, "b", kept.id) == code(cache, "b", "0" * 32) == (404, "unknown_image")


def test_what_was_not_used_for_longest_goes_first_and_its_owner_is_told():
    cache, dropped, _ = make(most=30)
    first, second, third = (cache.add(entry(name)) for name in "abc")
    cache.get("a", first.id)
    cache.add(entry("d"))
    assert dropped == [second] and cache.bytes == 30 and cache.evictions == 1
    assert code(cache, "a", second.id) == (410, "embedding_evicted")
    assert code(cache, "b", second.id) == (404, "unknown_image")
    assert cache.get("a", third.id) is third


def test_it_is_forgotten_after_a_while_without_use():
    cache, dropped, clock = make(seconds=60)
    kept = cache.add(entry())
    clock.now = 59
    assert cache.get("a", kept.id)
    clock.now = 118
    assert cache.find("a", "tiny", "d") is kept
    clock.now = 179
    assert cache.find("a", "tiny", "d") is None and dropped == [kept] and cache.bytes == 0


def test_files_are_kept_while_they_are_read():
    cache, dropped, _ = make()
    kept = cache.add(entry())
    with cache.in_use(kept), cache.in_use(kept):
        cache.remove(kept)
        assert dropped == []
    assert dropped == [kept]
    assert code(cache, "a", kept.id) == (404, "unknown_image")


def test_one_entry_larger_than_all_is_still_kept_alone():
    cache, dropped, _ = make(most=30)
    small = cache.add(entry("s"))
    large = cache.add(entry("l", size=1000))
    assert dropped == [small] and cache.get("a", large.id) is large
    cache.add(entry("t"))
    assert dropped == [small, large] and cache.bytes == 10


def test_the_same_picture_again_replaces_its_entry():
    cache, dropped, _ = make()
    first, second = cache.add(entry()), cache.add(entry())
    assert dropped == [first] and len(cache) == 1 and cache.bytes == 10
    assert cache.find("a", "tiny", "d") is second


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 40), st.integers(0, 30)), max_size=60))
def test_bytes_never_pass_the_bound_by_more_than_one_entry(steps):
    cache, dropped, clock = make(most=100, seconds=50)
    for digest, size, seconds in steps:
        clock.now += seconds
        cache.find("a", "tiny", digest) or cache.add(entry(digest, size=size))
        held = [kept for kept in cache._entries.values()]
        assert cache.bytes == sum(kept.bytes for kept in held) <= 100 + 40
        assert not {kept.id for kept in held} & {kept.id for kept in dropped}
        assert len(cache._by_picture) == len(held)
    cache.clear()
    assert cache.bytes == 0 and not cache._by_picture


def test_room_is_made_of_what_was_not_used_for_longest():
    cache, dropped, _ = make()
    entries = [cache.add(entry(name)) for name in "abc"]
    cache.make_room()
    assert dropped == entries[:2] and code(cache, "a", entries[0].id) == (410, "embedding_evicted")
    cache.make_room()
    cache.make_room()
    assert len(cache) == cache.bytes == 0
