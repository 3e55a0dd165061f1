# SPDX-License-Identifier: Apache-2.0
"""Lanes: one job at a time, in order, in time; whoever gives up frees the place, and nobody is let in in vain."""

import asyncio
import time

import pytest

from segship.serve.errors import Refusal
from segship.serve.lanes import Lane, PoisonList
from segship.serve.workers import Call, Reply, WorkerDied


class FakeWorker:
    """Answers when it is told to."""

    def __init__(self):
        self.ready, self.calls, self.given_up, self.killed = True, [], [], 0

    def ask(self, lane, job, header, body=b"", tell=None):
        call = Call(len(self.calls), asyncio.get_running_loop().create_future(), tell)
        self.calls.append((call, header))
        return call

    def answer(self, index, **header):
        self.calls[index][0].reply.set_result(Reply({"seconds": 0.1, **header}))

    def die(self, index):
        self.calls[index][0].reply.set_exception(WorkerDied())

    def give_up(self, call):
        self.given_up.append(call.number)

    def kill(self):
        self.killed += 1


def run(scenario):
    async def main():
        worker = FakeWorker()
        await scenario(worker, Lane("decode", worker, 2, 0.2, PoisonList()))

    asyncio.run(main())


def ask(lane, number=0, seconds=5.0, **more):
    return asyncio.create_task(lane.run("job", {"n": number}, deadline=time.monotonic() + seconds, **more))


async def turn():
    for _ in range(5):
        await asyncio.sleep(0)


def test_one_job_at_a_time_in_order():
    async def scenario(worker, lane):
        tasks = [ask(lane, number) for number in range(3)]
        await turn()
        assert [header["n"] for _, header in worker.calls] == [0] and lane.waiting == 2
        for index in range(3):
            worker.answer(index)
            await turn()
        assert [header["n"] for _, header in worker.calls] == [0, 1, 2]
        assert all(task.result()[0].seconds == 0.1 for task in tasks)
        assert lane.mean_seconds == pytest.approx(0.1) and lane.jobs == 3

    run(scenario)


def test_a_full_queue_refuses_with_the_time_to_wait():
    async def scenario(worker, lane):
        lane.mean_seconds = 3.0
        tasks = [ask(lane, number, 60) for number in range(3)]
        await turn()
        with pytest.raises(Refusal) as caught:
            await lane.run("job", {}, deadline=time.monotonic() + 60)
        assert caught.value.status == 503 and caught.value.code == "overloaded"
        assert caught.value.retry_after == 9 and caught.value.limit == ("decode_queue", 2, 2)
        for task in tasks:
            task.cancel()

    run(scenario)


def test_what_cannot_be_in_time_is_not_let_in():
    async def scenario(worker, lane):
        lane.mean_seconds = 3.0
        first = ask(lane, 0, 60)
        await turn()
        with pytest.raises(Refusal) as caught:
            await lane.run("job", {}, deadline=time.monotonic() + 1)
        assert caught.value.code == "overloaded" and lane.waiting == 0
        first.cancel()

    run(scenario)


def test_expired_work_is_never_run():
    async def scenario(worker, lane):
        first, late = ask(lane, 0), ask(lane, 1, 0.05)
        await asyncio.sleep(0.1)
        assert late.exception().code == "deadline_exceeded" and late.exception().status == 504
        worker.answer(0)
        await turn()
        assert len(worker.calls) == 1 and first.result()

    run(scenario)


def test_whoever_leaves_the_queue_frees_the_place():
    async def scenario(worker, lane):
        first, second, third = (ask(lane, number) for number in range(3))
        await turn()
        second.cancel()
        await turn()
        assert lane.waiting == 1
        worker.answer(0)
        await turn()
        assert [header["n"] for _, header in worker.calls] == [0, 2]
        worker.answer(1)
        await turn()
        assert first.result() and third.result() and second.cancelled()

    run(scenario)


def test_a_seat_whose_turn_came_as_it_was_left_goes_on():
    async def scenario(worker, lane):
        _, second, third = (ask(lane, number) for number in range(3))
        await turn()
        worker.answer(0)
        # In the same turn of the loop in which it is called up.
        second.cancel()
        await turn()
        assert [header["n"] for _, header in worker.calls][-1] == 2
        worker.answer(len(worker.calls) - 1)
        await turn()
        assert third.result() and not lane.busy

    run(scenario)


def test_a_job_that_is_given_up_keeps_its_seat_until_it_is_done():
    async def scenario(worker, lane):
        first = ask(lane, 0)
        await turn()
        first.cancel()
        second = ask(lane, 1)
        await turn()
        assert worker.given_up == [0] and len(worker.calls) == 1
        worker.answer(0)
        await turn()
        assert len(worker.calls) == 2
        worker.answer(1)
        await turn()
        assert second.result()

    run(scenario)


def test_a_worker_that_hangs_is_ended():
    async def scenario(worker, lane):
        late = ask(lane, 0, 0.05)
        await asyncio.sleep(0.1)
        assert late.exception().code == "deadline_exceeded" and not worker.killed
        await asyncio.sleep(0.25)
        assert worker.killed == 1

    run(scenario)


def test_death_is_told_and_the_second_one_is_remembered():
    async def scenario(worker, lane):
        for index in range(2):
            task = ask(lane, index, digest="d")
            await turn()
            worker.die(index)
            await turn()
            assert task.exception().code == "worker_died" and task.exception().status == 503
        with pytest.raises(Refusal) as caught:
            await lane.run("job", {}, deadline=time.monotonic() + 5, digest="d")
        assert caught.value.code == "poisoned" and caught.value.status == 422
        other = ask(lane, 3, digest="e")
        await turn()
        worker.answer(2)
        await turn()
        assert other.result()

    run(scenario)


def test_poison_is_forgotten_after_a_while_and_the_list_is_bounded():
    now = [0.0]
    poison = PoisonList(lambda: now[0])
    poison.add("d")
    poison.refuse("d")
    poison.add("d")
    with pytest.raises(Refusal):
        poison.refuse("d")
    now[0] = 601.0
    poison.refuse("d")
    poison.add("d")
    poison.refuse("d")
    for number in range(2_000):
        poison.add(str(number))
    assert len(poison._deaths) == 1_000


def test_those_that_wait_for_a_worker_begin_when_it_is_there():
    async def scenario(worker, lane):
        worker.ready = False
        task = ask(lane, 0)
        await turn()
        assert lane.waiting == 1 and not worker.calls
        worker.ready = True
        lane.notice(worker)
        await turn()
        worker.answer(0)
        await turn()
        assert task.result()

    run(scenario)


def test_what_a_worker_refuses_is_refused():
    async def scenario(worker, lane):
        task = ask(lane, 0)
        await turn()
        worker.answer(0, error={"code": "point_outside", "message": "m", "kind": "PromptError"}, status=422)
        await turn()
        assert task.exception().status == 422 and task.exception().code == "point_outside" and not lane.busy

    run(scenario)


def test_an_answer_that_comes_too_late_is_handed_over_and_one_that_was_waited_for_is_not():
    async def scenario(worker, lane):
        left = []
        lane = Lane("encode", worker, 2, 5.0, PoisonList(), left.append)
        waited, late = ask(lane), ask(lane)
        await turn()
        worker.answer(0, stored="kept")
        await turn()
        late.cancel()
        await turn()
        worker.answer(1, stored="for nobody")
        await turn()
        assert waited.done() and [header["stored"] for header in left] == ["for nobody"] and not lane.busy

    run(scenario)


def test_a_fault_of_the_machine_says_when_to_come_again():
    async def scenario(worker, lane):
        for status, retry_after in ((503, 1), (422, None)):
            task = ask(lane)
            await turn()
            worker.answer(-1, status=status, error={"code": "no_space", "message": "no", "kind": None})
            with pytest.raises(Refusal) as caught:
                await task
            assert (caught.value.status, caught.value.retry_after) == (status, retry_after)

    run(scenario)
