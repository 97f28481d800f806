"""How the end of a loop is noticed, on loops that these tests own."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from loopaware_pool._platform import event_loops

pytestmark = pytest.mark.both_pythons


@pytest.fixture
def new_loop(loop_factory):
    """Makes loops, and closes those that the test did not."""
    made = []

    def new_loop():
        made.append(loop_factory())
        return made[-1]

    yield new_loop
    for loop in made:
        loop.close()


class Notes(list):
    """What happened, in order."""

    def note(self, what):
        return lambda: self.append(what)

    def farewell(self, *, raises=None):
        async def farewell():
            self.append("begun")
            await asyncio.sleep(0.001)
            self.append("ended" if asyncio.get_running_loop().is_running() else "too late")
            if raises is not None:
                raise raises

        return farewell


@pytest.fixture
def notes():
    return Notes()


class TestFarewell:
    def test_it_is_awaited_while_the_loop_shuts_down(self, runner_factory, notes):
        """After the main coroutine, inside the running loop, to its end, and once."""

        async def main():
            main.end = event_loops.LoopShutdownHook(asyncio.get_running_loop(), notes.farewell())
            notes.append("main")

        with runner_factory() as runner:
            runner.run(main())
            runner.run(asyncio.sleep(0))
            assert notes == ["main"]
        assert notes == ["main", "begun", "ended"]

    def test_it_comes_without_anybodys_holding_the_object(self, runner_factory, notes):
        """The generator is known to the loop; whoever made it need not keep it, unless it is collected first."""
        kept = []

        async def main():
            kept.append(event_loops.LoopShutdownHook(asyncio.get_running_loop(), notes.farewell()))
            gc.collect()

        with runner_factory() as runner:
            runner.run(main())
        assert notes == ["begun", "ended"]

    def test_a_cancelled_one_never_comes(self, runner_factory, notes):
        """After `cancel()` the loop ends without it; a second `cancel()` does nothing."""

        async def main():
            end = event_loops.LoopShutdownHook(asyncio.get_running_loop(), notes.farewell())
            end.cancel()
            end.cancel()
            await asyncio.sleep(0)
            return end

        with runner_factory() as runner:
            runner.run(main())
        assert notes == []

    def test_cancelling_from_the_farewell_does_no_harm(self, runner_factory, notes):
        """A pool that closes itself while its loop shuts down calls its own end off."""

        async def main():
            async def farewell():
                end.cancel()
                notes.append("begun")
                await asyncio.sleep(0.001)
                notes.append("ended")

            end = event_loops.LoopShutdownHook(asyncio.get_running_loop(), farewell)

        with runner_factory() as runner:
            runner.run(main())
        assert notes == ["begun", "ended"]

    def test_several_come_all(self, runner_factory, notes):
        """Each pool on a loop is told."""
        kept = []

        async def main():
            kept.extend(event_loops.LoopShutdownHook(asyncio.get_running_loop(), notes.farewell()) for _ in range(3))

        with runner_factory() as runner:
            runner.run(main())
        assert sorted(notes) == ["begun"] * 3 + ["ended"] * 3

    def test_one_that_raises_is_reported_to_the_loop(self, runner_factory, notes):
        """The others still come, and the loop still closes."""
        kept, reports = [], []

        async def main():
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: reports.append(context["exception"]))
            kept.append(event_loops.LoopShutdownHook(loop, notes.farewell(raises=OSError("no goodbye"))))
            kept.append(event_loops.LoopShutdownHook(loop, notes.farewell()))

        with runner_factory() as runner:
            runner.run(main())
        assert notes.count("ended") == 2
        assert [str(error) for error in reports] == ["no goodbye"]

    def test_a_loop_closed_without_a_shutdown_leaves_it_out(self, new_loop, notes):
        """Nothing is said, nothing hangs: `on_closed` is for those."""
        loop = new_loop()

        async def main():
            return event_loops.LoopShutdownHook(loop, notes.farewell())

        end = loop.run_until_complete(main())
        loop.close()
        end.cancel()
        assert notes == []

    @pytest.mark.filterwarnings("ignore:asynchronous generator .* was scheduled after:ResourceWarning")
    def test_one_made_while_the_loop_shuts_down_is_never_told(self, runner_factory, notes):
        """It is too late then, and nothing is raised. (uvloop does not tell that it is, and warns.)"""
        kept = []

        async def main():
            loop = asyncio.get_running_loop()

            async def farewell():
                kept.append(event_loops.LoopShutdownHook(loop, notes.farewell()))
                notes.append("another")

            kept.append(event_loops.LoopShutdownHook(loop, farewell))

        with runner_factory() as runner:
            runner.run(main())
        kept[1].cancel()
        assert notes[0] == "another"


class TestOnClosed:
    def test_it_is_called_when_the_loop_is_closed(self, new_loop, notes):
        """From inside `close()`, once, and without the garbage collector."""
        loop = new_loop()
        event_loops.on_closed(loop, notes.note("closed"))
        gc.disable()
        try:
            loop.run_until_complete(asyncio.sleep(0))
            assert notes == []
            loop.close()
            assert notes == ["closed"]
            loop.close()
            assert notes == ["closed"]
        finally:
            gc.enable()

    def test_it_comes_after_the_farewell(self, runner_factory, notes):
        """The polite way comes first."""
        kept = []

        async def main():
            loop = asyncio.get_running_loop()
            event_loops.on_closed(loop, notes.note("closed"))
            kept.append(event_loops.LoopShutdownHook(loop, notes.farewell()))

        with runner_factory() as runner:
            runner.run(main())
        assert notes == ["begun", "ended", "closed"]

    def test_it_can_be_called_off(self, new_loop, notes):
        """As often as one likes, before the loop is closed or after."""
        loop = new_loop()
        call_off = event_loops.on_closed(loop, notes.note("closed"))
        call_off()
        call_off()
        loop.close()
        call_off()
        assert notes == []

    def test_calling_one_off_leaves_the_others(self, new_loop, notes):
        """Each has a timer of its own."""
        loop = new_loop()
        call_off = event_loops.on_closed(loop, notes.note("first"))
        event_loops.on_closed(loop, notes.note("second"))
        call_off()
        loop.close()
        assert notes == ["second"]

    def test_it_does_not_keep_the_loop_alive(self, loop_factory):
        """A loop that was closed is collected although somebody still has the function to call it off."""
        loop = loop_factory()
        call_off = event_loops.on_closed(loop, list)
        loop.close()
        gone = weakref.ref(loop)
        del loop
        gc.collect()
        assert gone() is None
        call_off()

    def test_it_does_not_delay_the_loop(self, runner_factory):
        """A timer that is never due is no work to wait for: `asyncio.run` returns."""

        async def main():
            event_loops.on_closed(asyncio.get_running_loop(), list)
            return "done"

        with runner_factory() as runner:
            assert runner.run(asyncio.wait_for(main(), 5)) == "done"


class TestPost:
    def test_it_reaches_a_loop_of_another_thread(self, runner_factory):
        """The callback runs there, with its arguments."""
        ready, reached = threading.Event(), []

        async def main():
            main.loop, main.end = asyncio.get_running_loop(), asyncio.Event()
            ready.set()
            await asyncio.wait_for(main.end.wait(), 10)

        def run():
            with runner_factory() as runner:
                runner.run(main())

        def callback(*args):
            reached.append((threading.current_thread(), args))
            main.end.set()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        assert ready.wait(10)
        assert event_loops.post(main.loop, callback, 1, "two") is True
        thread.join(10)
        assert reached == [(thread, (1, "two"))]

    def test_a_closed_loop_says_no(self, new_loop, notes):
        """And never calls."""
        loop = new_loop()
        loop.close()
        assert event_loops.post(loop, notes.append, "called") is False
        assert notes == []

    def test_a_loop_that_stands_still_is_reached_when_it_runs(self, new_loop, notes):
        """It says yes, and calls later."""
        loop = new_loop()
        assert event_loops.is_idle(loop)
        assert event_loops.post(loop, notes.append, "called") is True
        assert notes == []
        loop.run_until_complete(asyncio.sleep(0))
        assert notes == ["called"]


class TestErrands:
    """What is to be done on a loop, told by another thread."""

    @pytest.fixture
    def tell(self):
        """Has something told to a loop by a thread that is not the loop's."""

        def tell(errands, action):
            thread = threading.Thread(target=errands.add, args=(action,), daemon=True)
            thread.start()
            thread.join(10)

        return tell

    def test_a_loop_that_runs_does_it_itself(self, new_loop, notes, tell):
        """Soon, and once."""

        async def main():
            tell(errands, lambda: notes.append(threading.current_thread()))
            assert notes == []
            await asyncio.sleep(0)

        loop = new_loop()
        errands = event_loops.Errands(loop)
        loop.run_until_complete(main())
        errands.run_if_idle()
        assert notes == [threading.current_thread()]

    def test_nothing_is_done_beside_the_closing_of_a_loop(self, new_loop, notes, tell):
        """But after it, by the thread that closes it."""
        errands = event_loops.Errands(new_loop())
        with errands.closing():
            tell(errands, lambda: notes.append(threading.current_thread()))
            assert notes == []
        assert notes == [threading.current_thread()]

    def test_it_is_done_at_once_in_the_place_of_a_loop_that_stands_still(self, new_loop, notes, tell):
        """Or of one that is closed; the loop does not do it again."""
        loop = new_loop()
        errands = event_loops.Errands(loop)
        tell(errands, lambda: notes.append("idle"))
        assert notes == ["idle"]
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        tell(errands, lambda: notes.append("closed"))
        assert notes == ["idle", "closed"]

    def test_what_a_loop_has_not_heard_when_it_stops_is_done_by_the_next_who_looks(self, new_loop, notes, tell):
        """The call that was posted finds nothing left to do when the loop runs again."""

        def stop():
            loop.stop()
            tell(errands, lambda: notes.append("done"))
            tell(errands, lambda: notes.append("too"))
            errands.run_if_idle()
            assert notes == []

        loop = new_loop()
        errands = event_loops.Errands(loop)
        loop.call_soon(stop)
        loop.run_forever()
        errands.run_if_idle()
        assert notes == ["done", "too"]
        loop.run_until_complete(asyncio.sleep(0))
        assert notes == ["done", "too"]

    def test_a_loop_that_is_closed_as_it_is_told_has_it_done_in_its_place(self, notes):
        """Though it ran when it was looked at."""

        class Closing:
            def is_running(self):
                return True

            def call_soon_threadsafe(self, *_):
                raise RuntimeError("Event loop is closed")

        errands = event_loops.Errands(Closing())
        errands.add(lambda: notes.append("done"))
        assert notes == ["done"]

    def test_two_who_act_in_the_places_of_each_others_loops_wait_for_nobody(self, new_loop, notes, tell):
        """Each leaves its errand to the other."""
        both_act = threading.Barrier(2)
        mine, theirs = event_loops.Errands(new_loop()), event_loops.Errands(new_loop())

        def act(other):
            both_act.wait(10)
            other.add(lambda: notes.append(other))
            both_act.wait(10)

        thread = threading.Thread(target=mine.add, args=(lambda: act(theirs),), daemon=True)
        thread.start()
        tell(theirs, lambda: act(mine))
        thread.join(10)
        assert not thread.is_alive(), "it hangs"
        assert sorted(notes, key=id) == sorted([mine, theirs], key=id)

    def test_an_error_keeps_nothing_from_being_done(self, new_loop, notes, tell):
        """Each thing has a call of its own."""

        async def main():
            tell(errands, lambda: 1 / 0)
            tell(errands, lambda: notes.append("done"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)

        loop = new_loop()
        loop.set_exception_handler(lambda loop, context: notes.append(type(context["exception"])))
        errands = event_loops.Errands(loop)
        loop.run_until_complete(main())
        assert notes == [ZeroDivisionError, "done"]


class TestLabels:
    def test_a_loop_keeps_its_name(self, new_loop):
        """A number, and the thread it was first seen in; another loop has another."""
        first, second = new_loop(), new_loop()
        assert event_loops.label(first) == event_loops.label(first)
        assert event_loops.label(first) != event_loops.label(second)
        assert event_loops.label(first).startswith("loop-")
        assert event_loops.label(first).endswith(f"({threading.current_thread().name})")

    def test_a_name_is_not_used_again(self, loop_factory):
        """Although the next loop may live at the same address."""
        names = []
        for _ in range(20):
            loop = loop_factory()
            names.append(event_loops.label(loop))
            loop.close()
            del loop
            gc.collect()
        assert len(set(names)) == len(names)

    def test_a_name_does_not_keep_a_loop_alive(self, loop_factory):
        """Loops are known weakly."""
        loop = loop_factory()
        event_loops.label(loop)
        gone = weakref.ref(loop)
        loop.close()
        del loop
        gc.collect()
        assert gone() is None


class TestRunning:
    def test_there_is_no_loop_outside(self):
        """The reason says what to do."""
        assert event_loops.running() is None
        loop, reason = event_loops.supported_loop()
        assert loop is None
        assert "no event loop is running" in reason
        assert "asyncio.run()" in reason

    def test_the_running_loop_is_found(self, runner_factory):
        """Both kinds are supported."""

        async def main():
            return (
                asyncio.get_running_loop(),
                event_loops.running(),
                event_loops.supported_loop(),
                event_loops.is_idle(event_loops.running()),
            )

        with runner_factory() as runner:
            loop, running, supported, is_idle = runner.run(main())
            assert running is loop
            assert supported == (loop, "")
            assert not is_idle
            assert event_loops.is_idle(loop)
