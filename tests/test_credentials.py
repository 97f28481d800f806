"""`RenewedSecret`: one fetch at a time, before the secret runs out, for every loop and thread; and no hanging."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import datetime as dt
import functools
import gc
import pickle
import threading
import traceback
import weakref
from datetime import timedelta

import pytest

from forking import in_child
from loopaware_pool import credentials
from loopaware_pool.credentials import Expiring, FetchFailed, RenewedSecret
from running import LoopThread, end_abruptly, end_politely, eventually, eventually_async


class Clock:
    """Two clocks that a test moves."""

    def __init__(self):
        self.passed = 0.0

    def monotonic(self):
        return 1000.0 + self.passed

    def time(self):
        return 1_800_000_000.0 + self.passed


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(credentials, "time", clock)
    return clock


class Service:
    """
    A token service. Its functions give a new token each time.

    Attributes:
        answered: How often it was asked, whatever came of it.
        failing: What it raises instead.
        held: Cleared, it lets nobody go.
    """

    def __init__(self, is_async):
        self.answered = self.at_once = self.most_at_once = 0
        self.failing = None
        self.held = threading.Event()
        self.held.set()
        self._lock = threading.Lock()
        self.fetch = self.fetch_async if is_async else self.fetch_plain

    def _answer(self):
        with self._lock:  # two threads may be let go at the same moment
            self.answered += 1
            number = self.answered
        if self.failing is not None:
            raise self.failing
        return f"token {number}"

    def fetch_plain(self):
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            assert self.held.wait(20)
            return self._answer()
        finally:
            self.at_once -= 1

    async def fetch_async(self):
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            await eventually_async(self.held.is_set, "the service answers")
            return self._answer()
        finally:
            self.at_once -= 1


@pytest.fixture(params=[False, True], ids=["plain", "async"])
def service(request):
    return Service(request.param)


# ---- when it is fetched ----


def test_a_secret_is_fetched_when_it_is_needed_and_kept(service, run, clock):
    """Not when it is made; and once, for as long as it is not due."""

    async def main():
        secret = RenewedSecret(service.fetch, lifetime=900)
        assert service.answered == 0
        assert [await secret() for _ in range(3)] == ["token 1"] * 3
        clock.passed = 900 * 0.8 - 1
        assert await secret() == "token 1"
        assert service.answered == 1

    run(main())


def test_a_secret_that_is_due_is_renewed_while_callers_get_the_old_one(service, run, clock):
    """Nobody waits for the renewal; who comes after it gets the new one."""

    async def main():
        secret = RenewedSecret(service.fetch, lifetime=900)
        await secret()
        clock.passed = 900 * 0.8 + 1
        service.held.clear()
        assert [await secret() for _ in range(3)] == ["token 1"] * 3
        service.held.set()
        await eventually_async(lambda: service.answered == 2, "the renewal")
        await eventually_async(lambda: "900 s left" in repr(secret), "the new one")
        assert await secret() == "token 2"

    run(main())


def test_a_secret_that_has_run_out_is_not_given_out(service, run, clock):
    """Callers wait for the new one."""

    async def main():
        secret = RenewedSecret(service.fetch, lifetime=900)
        await secret()
        clock.passed = 900
        assert await secret() == "token 2"

    run(main())


def test_a_secret_runs_out_by_whichever_clock_says_so(service, run, clock):
    """While a virtual machine is suspended, the monotonic clock may stand still."""

    async def main():
        secret = RenewedSecret(service.fetch, lifetime=900)
        await secret()
        monotonic = clock.monotonic()
        clock.monotonic = lambda: monotonic
        clock.passed = 901
        assert await secret() == "token 2"

    run(main())


UTC = dt.UTC


@pytest.mark.parametrize(
    "says",
    [
        {"lifetime": 600},
        {"lifetime": timedelta(minutes=10)},
        {"expires_at": 1_800_000_600},
        {"expires_at": dt.datetime.fromtimestamp(1_800_000_600, UTC)},
    ],
    ids=["seconds", "timedelta", "since 1970", "datetime"],
)
def test_a_fetch_function_says_how_long_its_secret_lives(run, clock, says):
    """In seconds or as a date, relative or absolute; it has precedence over what the helper was told."""
    asked = []

    def fetch():
        asked.append(1)
        return Expiring("token", **says)

    async def main():
        secret = RenewedSecret(fetch, lifetime=5, renew_before=100)
        assert await secret() == "token"
        clock.passed = 499
        await secret()
        assert len(asked) == 1
        clock.passed = 501
        await secret()
        await eventually_async(lambda: len(asked) == 2, "it is due 100 s before its end")

    run(main())


def test_a_secret_that_has_run_out_when_it_comes_goes_to_those_who_waited_for_it(run, clock):
    """As with a clock that is slow: nobody asks for ever."""
    asked = []

    def fetch():
        asked.append(1)
        return Expiring(f"token {len(asked)}", expires_at=clock.time() - 30)

    async def main():
        secret = RenewedSecret(fetch)
        assert await secret() == "token 1"
        assert await secret() == "token 2"

    run(main())


def test_a_secret_that_is_expired_by_hand_is_fetched_anew(service, run):
    """Also if a fetch was under way, whose secret may be the old one: it is not kept."""

    async def main():
        secret = RenewedSecret(service.fetch, lifetime=900)
        await secret()
        secret.expire()
        assert await secret() == "token 2"
        secret.expire()
        service.held.clear()
        early = asyncio.create_task(secret())
        await eventually_async(lambda: service.at_once == 1, "a fetch is under way")
        secret.expire()
        late = asyncio.create_task(secret())
        await eventually_async(lambda: service.at_once == 2, "another is under way")
        service.held.set()
        got = {await early, await late}
        assert got == {"token 3", "token 4"}
        assert await secret() == await late

    run(main())


# ---- one fetch, many loops ----


def test_all_loops_and_tasks_share_one_fetch(service, loop_factory):
    """However many ask at once: none asks by itself."""
    secret = RenewedSecret(service.fetch, lifetime=900)
    service.held.clear()

    async def many():
        return await asyncio.gather(*(secret() for _ in range(5)))

    with LoopThread(loop_factory) as one, LoopThread(loop_factory) as other, LoopThread(loop_factory) as third:
        asked = [loop.start(many()) for loop in (one, other, third)]
        eventually(lambda: service.at_once, "somebody asks")
        service.held.set()
        assert [answer.result(20) for answer in asked] == [["token 1"] * 5] * 3
    assert service.most_at_once == service.answered == 1


def test_a_caller_that_is_cancelled_leaves_the_fetch_to_others(service, run):
    """It began the fetch; those who wait get what comes of it."""

    async def main():
        secret = RenewedSecret(service.fetch, lifetime=900)
        service.held.clear()
        first, second = asyncio.create_task(secret()), asyncio.create_task(secret())
        await eventually_async(lambda: service.at_once == 1, "a fetch is under way")
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        service.held.set()
        assert await second == "token 1"
        assert service.answered == 1

    run(main())


@pytest.mark.parametrize("end", [end_politely, end_abruptly])
def test_a_loop_that_ends_in_the_middle_leaves_nobody_hanging(service, loop_factory, end):
    """The others begin another fetch, or get what a thread has fetched for all."""
    secret = RenewedSecret(service.fetch, lifetime=900)
    service.held.clear()

    with LoopThread(loop_factory) as survivor:

        async def ask_and_leave():
            task = asyncio.ensure_future(secret())
            await eventually_async(lambda: service.at_once == 1, "a fetch is under way")
            return task, survivor.start(secret())

        _, waiting = end(loop_factory, ask_and_leave())
        service.held.set()
        assert waiting.result(20).startswith("token")
        assert survivor.run(secret()).startswith("token")


def test_a_forked_child_fetches_by_itself(service, loop_factory):
    """The parent's fetch goes on in the parent only; a lock that a thread of the parent has is no lock in the child."""
    secret = RenewedSecret(service.fetch, lifetime=900)
    service.held.clear()

    def child():
        service.held = threading.Event()
        service.held.set()
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(asyncio.wait_for(secret(), 20))

    with LoopThread(loop_factory) as parent:
        waiting = parent.start(secret())
        eventually(lambda: service.at_once == 1, "a fetch is under way")
        with secret._renewal._lock:
            assert in_child(child).startswith("token")
        service.held.set()
        assert waiting.result(20) == "token 1"


def test_a_plain_fetch_stops_no_loop(run):
    """It runs in a thread of its own, with the caller's context."""
    began, go_on = threading.Event(), threading.Event()

    def fetch():
        began.set()
        assert go_on.wait(20)
        return "token"

    async def main():
        asking = asyncio.create_task(RenewedSecret(fetch, lifetime=900)())
        await eventually_async(began.is_set, "it has begun")  # this loop goes round meanwhile
        go_on.set()
        assert await asking == "token"

    run(main())


def test_nothing_keeps_a_loop_from_ending(loop_factory):
    """Not even a plain function that never returns; its thread is left to itself."""
    never = threading.Event()
    secret = RenewedSecret(never.wait, lifetime=900)

    async def main():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(secret(), 0.05)

    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())
    finally:
        never.set()


# ---- fetches that fail ----


def warnings(caplog):
    """Ours; asyncio complains, whenever the garbage collector comes, of tasks whose loops were closed."""
    return [record for record in caplog.records if record.name == "loopaware_pool"]


def test_a_renewal_that_fails_is_logged_once_and_the_old_secret_used(service, run, clock, caplog):
    """Until it has run out. It is tried again, after a pause; and one that succeeds ends it."""

    async def main():
        secret = RenewedSecret(service.fetch, lifetime=900, name="rds")
        await secret()
        service.failing = OSError(110, "Connection timed out")
        clock.passed = 800
        for attempt in range(2, 5):
            assert await secret() == "token 1"
            await eventually_async(lambda attempt=attempt: secret._renewal._failures == attempt - 1, "it fails")
            assert await secret() == "token 1"
            assert service.answered == attempt, "not before a pause"
            clock.passed += 30
        (record,) = warnings(caplog)
        assert "rds: the secret could not be fetched: TimeoutError: Connection timed out" in record.message
        assert "the old one is used for another 100 s" in record.message
        assert record.pool_event == "secret_not_renewed"
        service.failing = None
        assert await secret() == "token 1"
        await eventually_async(lambda: "900 s left" in repr(secret), "the new one")
        assert await secret() == "token 5"
        clock.passed += 800
        service.failing = OSError(110, "Connection timed out")
        await secret()
        await eventually_async(lambda: len(warnings(caplog)) == 2, "another streak is another record")

    run(main())


def test_without_a_secret_that_lives_each_caller_gets_an_error_of_its_own(service, run):
    """With the fetch function's as its cause. The program's fault is a `TypeError`, which no pool retries."""

    async def main():
        secret = RenewedSecret(service.fetch, lifetime=900, name="rds")
        for failing, kind in ((RuntimeError("CANARY"), FetchFailed), (NameError("x"), TypeError)):
            service.failing = failing
            failures = await asyncio.gather(*(secret() for _ in range(3)), return_exceptions=True)
            assert len({id(failure) for failure in failures}) == 3
            for failure in failures:
                assert type(failure) is kind
                assert str(failure) == f"rds: the secret could not be fetched: {type(failing).__name__}"
                assert failure.__cause__ is failing
        assert issubclass(FetchFailed, OSError)
        service.failing = None
        assert (await secret()).startswith("token")

    run(main())


def test_a_system_without_another_thread_costs_no_secret_that_lives(run, clock, monkeypatch, caplog):
    """Callers get the old one; without one, a `FetchFailed`, so that a pool tries again."""

    def cannot_start(_):
        raise RuntimeError("can't start new thread")

    async def main():
        secret = RenewedSecret(lambda: "token", lifetime=900)
        await secret()
        clock.passed = 800
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", cannot_start)
            assert [await secret() for _ in range(3)] == ["token"] * 3
            assert len(warnings(caplog)) == 1
            secret.expire()
            with pytest.raises(FetchFailed):
                await secret()
        assert await secret() == "token"

    run(main())


def test_a_secret_that_is_always_due_is_not_fetched_at_each_connect(service, run, clock):
    """A provider may hand out what it has kept itself, with less than `renew_before` left."""

    async def main():
        secret = RenewedSecret(service.fetch, lifetime=200, renew_before=300)
        for _ in range(20):
            await secret()
            await eventually_async(lambda: secret._renewal._fetch.is_over, "the renewal")
        assert service.answered == 1
        clock.passed = 2
        await secret()
        await eventually_async(lambda: service.answered == 2, "the next renewal")

    run(main())


def test_a_fetch_that_hangs_fails_in_the_end(run):
    """Those who wait are told, and the next begins another."""
    hangs = [True]
    never = threading.Event()

    async def fetch():
        if hangs.pop():
            await asyncio.get_running_loop().create_future()
        return "token"

    def fetch_plain():
        if hangs.pop():
            never.wait()
        return "token"

    async def main(fetch):
        secret = RenewedSecret(fetch, lifetime=900, fetch_timeout=0.2)
        with pytest.raises(FetchFailed, match="TimeoutError"):
            await secret()
        await eventually_async(lambda: not hangs, "it has begun, and hangs")
        secret._renewal._fetch_timeout = 20.0
        hangs.append(False)
        assert await secret() == "token"

    try:
        run(main(fetch))
        hangs.append(True)
        run(main(fetch_plain))
    finally:
        never.set()


async def none():
    return None


async def cancelled():
    raise asyncio.CancelledError


async def exited():
    raise GeneratorExit


@pytest.mark.parametrize(
    ("fetch", "options", "says"),
    [
        (none, {"lifetime": 5}, "returned NoneType"),
        (lambda: None, {"lifetime": 5}, "returned NoneType"),
        (lambda: none(), {"lifetime": 5}, "returned coroutine; one that awaits must be async"),
        (lambda: "CANARY", {}, "does not say how long its secret lives"),
        (lambda: Expiring("CANARY"), {}, "TypeError"),
        (lambda: {}["CANARY"], {"lifetime": 5}, "KeyError$"),
        (cancelled, {"lifetime": 5}, "CancelledError"),
        (exited, {"lifetime": 5}, "GeneratorExit"),
        (lambda: exit(1), {"lifetime": 5}, "SystemExit"),
    ],
)
def test_a_fetch_function_that_is_wrong_is_told_so(run, fetch, options, says):
    """In words that help, and without what it has returned."""

    async def main():
        with pytest.raises((TypeError, FetchFailed), match=says) as caught:
            await RenewedSecret(fetch, **options)()
        assert "CANARY" not in str(caught.value)

    run(main())


def test_async_functions_are_known_in_every_form(run):
    """Partial functions, methods, and objects that are called."""

    class Callable:
        async def __call__(self, given=None):
            return given or "token"

        async def method(self):
            return "token"

    async def main():
        for fetch in (Callable(), Callable().method, functools.partial(Callable(), "token")):
            assert await RenewedSecret(fetch, lifetime=5)() == "token"

    run(main())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lifetime": 0}, "lifetime=0: expected"),
        ({"lifetime": "900"}, "lifetime='900': expected"),
        ({"renew_before": -1}, "renew_before=-1: expected"),
        ({"fetch_timeout": None}, "fetch_timeout=None: expected"),
        ({"name": ""}, "name='': expected a non-empty string, or None$"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, says):
    """With the argument's name and value; a secret given by mistake is not repeated."""
    with pytest.raises((TypeError, ValueError), match=says):
        RenewedSecret(str, **options)
    with pytest.raises(TypeError, match="fetch: expected a function, not str"):
        RenewedSecret("CANARY")
    for wrong in ({"lifetime": 1, "expires_at": 2}, {}, {"lifetime": "1"}, {"expires_at": "x"}):
        with pytest.raises(TypeError, match=r"lifetime|expires_at"):
            Expiring("CANARY", **wrong)
    with pytest.raises(ValueError, match="with a time zone"):
        Expiring("CANARY", expires_at=dt.datetime(2030, 1, 1))
    with pytest.raises(ValueError, match="expires_at=1900000000000: expected seconds since 1970, not milliseconds"):
        Expiring("CANARY", expires_at=1_900_000_000_000)


# ---- nothing is said, nothing is left ----


def test_no_variable_of_a_fetch_that_failed_is_kept(run):
    """Whoever reports the error with its variables does not report what the service was asked with."""
    namespace = {}
    exec("def fetch():\n    key = 'CANARY'\n    raise RuntimeError", namespace)

    async def main():
        with pytest.raises(FetchFailed) as caught:
            await RenewedSecret(namespace["fetch"], lifetime=5)()
        frames = [frame for frame, _ in traceback.walk_tb(caught.value.__cause__.__traceback__)]
        assert len(frames) >= 2
        assert "CANARY" not in repr([frame.f_locals for frame in frames])

    run(main())


def test_a_fetch_that_goes_with_its_loop_is_no_failure(loop_factory, caplog):
    """Its coroutine is closed by the garbage collector, at any moment: it must not say anything then, nor lock."""
    service = Service(is_async=True)
    service.held.clear()
    secret = RenewedSecret(service.fetch, lifetime=900)

    async def ask_and_leave():
        asking = asyncio.ensure_future(secret())
        await eventually_async(lambda: service.at_once == 1, "a fetch is under way")
        return asking

    end_abruptly(loop_factory, ask_and_leave())
    with secret._renewal._lock:
        secret._renewal._fetch = None
        gc.collect()
    assert service.at_once == 0, "the coroutine is closed"
    assert not warnings(caplog)


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_secret_is_not_shown_pickled_or_copied(run, clock, duplicate):
    """Whatever state it is in."""
    secret = RenewedSecret(lambda: Expiring("CANARY", lifetime=900), name="rds")
    assert repr(secret) == "<RenewedSecret 'rds': nothing fetched>"
    assert run(secret()) == "CANARY"
    assert repr(secret) == "<RenewedSecret 'rds': 900 s left>"
    assert "CANARY" not in repr(vars(secret)) + repr(vars(secret._renewal)) + repr(Expiring("CANARY", lifetime=3))
    for one in (secret, Expiring("CANARY", lifetime=3)):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            duplicate(one)


def test_a_secret_that_is_dropped_is_collected(run):
    """Nothing of the module keeps it."""
    secret = RenewedSecret(Service(is_async=True).fetch, lifetime=900)
    run(secret())
    gone = threading.Event()
    weakref.finalize(secret, gone.set)
    del secret
    gc.collect()
    assert gone.is_set()


def test_a_renewal_of_a_secret_that_is_dropped_is_not_destroyed_in_the_middle(run, clock):
    """A loop refers to its tasks weakly, and Python complains of one that is collected while it is pending."""
    complaints, renewals = [], []

    async def fetch():
        if clock.passed:
            renewals.append(weakref.ref(asyncio.current_task()))
            await asyncio.get_running_loop().create_future()  # to which only this task refers
        return "token"

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
        secret = RenewedSecret(fetch, lifetime=900)
        await secret()
        clock.passed = 800
        await secret()
        await eventually_async(lambda: renewals, "the renewal")
        del secret
        gc.collect()
        assert not complaints
        renewals[0]().cancel()

    run(main())


def test_a_task_factory_of_the_programs_is_not_called_in_the_middle_of_a_decision(run):
    """An eager one would run the fetch function there, which may ask for the same secret."""

    async def fetch():
        return "token"

    async def main():
        secret = RenewedSecret(fetch, lifetime=900)

        def make_task(loop, coroutine, **options):
            assert not secret._renewal._lock.locked()
            return asyncio.Task(coroutine, loop=loop, **options)

        asyncio.get_running_loop().set_task_factory(make_task)
        assert await secret() == "token"
        asyncio.get_running_loop().set_task_factory(None)

    run(main())


@pytest.mark.parametrize("is_async", [False, True])
def test_a_fetch_finds_the_context_variables_of_whoever_asked(run, is_async):
    tenant = contextvars.ContextVar("tenant", default="nobody")

    async def fetch_async():
        return tenant.get()

    async def main():
        tenant.set("somebody")
        assert await RenewedSecret(fetch_async if is_async else tenant.get, lifetime=900)() == "somebody"

    run(main())
