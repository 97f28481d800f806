"""
Any history of a pool on several loops, as a state machine: whatever happens in whatever order, nothing is lost.

The same histories are tried every time. `LOOPAWARE_TEST_EXPLORE=5000` tries that many others instead.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fakes import FakeFuture, FakePool
from loopaware_pool._core.connect_pacing import PROBE_LONGEST_SECONDS
from loopaware_pool._core.slot import SlotState
from loopaware_pool.driver import Liveness, ReturnCheck

EXPLORE = int(os.environ.get("LOOPAWARE_TEST_EXPLORE", "0"))
# A slot in one of these is in no container of its shard: a caller, or a task of the pool, has it.
HELD = {SlotState.RESERVED, SlotState.LENT, SlotState.RESETTING}
SERVICES = ("resetting", "pinging", "reading", "unanswered")
WORK = ("opening", "closing", *SERVICES)
RARE_EVENTS = [
    "expire",
    "keep_floor",
    "leave_resets",
    "loop_ends",
    "maintenance",
    "mass_death",
    "mass_loss",
    "shut",
    "suspend_or_resume",
]
CONNECT_ENDS = ["well", "well", "with a message", "badly", "for good", "cancelled"]
# What a listener may do when it hears of something.
REACTIONS = ["acquire", "drain", "expire", "look", "resume", "shrink", "suspend", "sweep", "terminate"]
DURATIONS = [0.004, 0.01, 0.05, 0.3, 1.0, 7.0, 31.0]


def same(slots):
    """For comparing what may hold a slot more than once, if something is wrong."""
    return sorted(map(id, slots))


class Caller:
    """A task that waits, and may be cancelled at any moment; the first has number 1."""

    def __init__(self, shard, number, since, *, has_deadline):
        self.shard = shard
        self.waiter = FakeFuture()
        self.number = number
        self.since = since
        self.has_deadline = has_deadline
        self.is_cancelled = False
        # As of the last time that all was well.
        self.is_in_queue = False


class PoolMachine(RuleBasedStateMachine):
    """Rules are what may happen; invariants are what must hold after each, and `teardown` what must come of it."""

    @initialize(
        loops=st.integers(2, 3),
        max_size=st.integers(1, 4),
        floor=st.integers(0, 2),
        has_limits=st.booleans(),
        max_connecting=st.sampled_from([None, 1]),
        warm=st.integers(0, 3),
        reactions=st.lists(st.sampled_from(REACTIONS), max_size=8),
    )
    def start(self, loops, max_size, floor, has_limits, max_connecting, warm, reactions):
        limits = {"max_idle": 5.0, "max_lifetime": 20.0, "keepalive": 3.0, "leak_threshold": 0.2}
        self.pool = FakePool(
            min_size=min(floor, max_size),
            max_size=max_size,
            max_connecting=max_connecting,
            **(limits if has_limits else {}),
        )
        self.callers = []
        self.leases = []
        self.numbers = 0
        for _ in range(loops):
            self.pool.shard()
        self.pool.with_idle(self.pool.shards[0], min(warm, max_size))
        self.reactions = reactions
        self.pool.on_event = self._react

    # ---- a listener ----

    def _react(self, shard, kind):
        """Each event is answered by the next of the reactions, on the loop that it is of."""
        if self.reactions and shard in self.pool.shards:
            getattr(self, f"_{self.reactions.pop()}_on")(shard)

    def _acquire_on(self, shard, *, has_deadline=False):
        if shard.is_open:
            self._acquire(shard, has_deadline=has_deadline)

    def _drain_on(self, shard):
        self._expire_on(shard)
        shard.housekeeper.sweep(self.pool.now)

    def _expire_on(self, shard):
        self.pool.shared.generation += 1
        shard.expired()

    def _look_on(self, shard):
        shard.stats("loop")

    def _resume_on(self, shard):
        self._resume()

    def _shrink_on(self, shard):
        self.pool.messages += [("tell", served) for served in self.pool.reconfigure()]

    def _suspend_on(self, shard):
        if not self.pool.shared.is_suspended:
            self.suspend_or_resume(None)

    def _sweep_on(self, shard):
        shard.housekeeper.sweep(self.pool.now)

    def _terminate_on(self, shard):
        """As `pool.terminate()` does, on one loop; another comes in its place."""
        if shard.is_open:
            self._shut(shard)
            for slot in self._slots(shard):
                if slot.state not in (SlotState.CONNECTING, SlotState.CLOSING):
                    shard.retire(slot, "terminated", politely=False)
            self._replace()

    # ---- callers ----

    @rule(data=st.data(), count=st.integers(1, 3), has_deadline=st.booleans())
    def acquire(self, data, count, has_deadline):
        shard = data.draw(st.sampled_from(self._open_shards()))
        for _ in range(count):
            self._acquire_on(shard, has_deadline=has_deadline)

    def _open_shards(self):
        return [shard for shard in self.pool.shards if shard.is_open]

    def _acquire(self, shard, *, has_deadline):
        slot = shard.take(self.pool.now)
        if slot is not None:
            self.leases.append((shard, slot))
            return
        if not shard.is_open:  # a listener has closed it: the caller gets an error
            return
        self.numbers += 1
        self.pool.now += 1e-6  # no two callers come at the same moment
        caller = Caller(shard, self.numbers, self.pool.now, has_deadline=has_deadline)
        self.callers.append(caller)
        shard.enqueue(caller.waiter, self.pool.now, has_deadline=has_deadline)

    def _come_back(self, caller):
        """As a task does that finds that what it was handed has been lost since."""
        slot = caller.shard.take(self.pool.now)
        if slot is not None:
            self.leases.append((caller.shard, slot))
            return
        if not caller.shard.is_open:
            return
        caller.waiter = FakeFuture()
        caller.is_in_queue = False
        self.callers.append(caller)
        caller.shard.requeue(caller.waiter, caller.since, self.pool.now, has_deadline=caller.has_deadline)

    @precondition(lambda self: self.callers)
    @rule(data=st.data())
    def cancel(self, data):
        """Its task runs later: until then it is a cancelled future in the queue, or it has just been served."""
        caller = data.draw(st.sampled_from(self.callers))
        caller.is_cancelled = True
        caller.waiter.cancel()

    @precondition(lambda self: any(self._is_waiting(caller) and caller.has_deadline for caller in self.callers))
    @rule(data=st.data())
    def time_out(self, data):
        waiting = [caller for caller in self.callers if self._is_waiting(caller) and caller.has_deadline]
        caller = data.draw(st.sampled_from(waiting))
        caller.shard.dequeue(caller.waiter)
        caller.waiter.set_exception(TimeoutError())

    @precondition(lambda self: self._woken())
    @rule(data=st.data())
    def run_caller(self, data):
        self._run(data.draw(st.sampled_from(self._woken())))

    @precondition(lambda self: self._woken())
    @rule()
    def run_callers(self):
        for caller in self._woken():
            self._run(caller)

    def _woken(self):
        return [caller for caller in self.callers if caller.waiter.done()]

    def _run(self, caller):
        """As a task does whose future is done."""
        self.callers.remove(caller)
        shard, slot = caller.shard, caller.waiter.result
        if slot is None or caller.is_cancelled:
            shard.dequeue(caller.waiter)
            if slot is not None:
                shard.abandon(slot, self.pool.now)
        elif slot.state is SlotState.RESERVED:
            shard.claim(slot, 0.0, self.pool.now)
            self.leases.append((shard, slot))
        elif shard.is_open:
            self._come_back(caller)

    @staticmethod
    def _is_waiting(caller):
        return not caller.waiter.done()

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), check=st.sampled_from(ReturnCheck))
    def release(self, data, check):
        self._release(data.draw(st.sampled_from(self.leases)), check)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release_ready(self, data):
        self._release(data.draw(st.sampled_from(self.leases)), ReturnCheck.READY)

    def _release(self, lease, check):
        self.leases.remove(lease)
        shard, slot = lease
        if slot.state is SlotState.LENT:
            shard.returned(slot, check, self.pool.now)

    # ---- connections ----

    def _with(self, work):
        return [shard for shard in self.pool.shards if self._work(shard, work)]

    @staticmethod
    def _work(shard, kind):
        return list(shard.unanswered) if kind == "unanswered" else getattr(shard.effects, kind)

    @precondition(lambda self: self._with("opening"))
    @rule(data=st.data(), end=st.sampled_from(CONNECT_ENDS))
    def connect_ends(self, data, end):
        shard = data.draw(st.sampled_from(self._with("opening")))
        slot = data.draw(st.sampled_from(shard.effects.opening))
        if end in ("well", "with a message"):
            self.pool.connect(shard, slot, Liveness.ALIVE if end == "well" else Liveness.UNREAD)
            return
        shard.effects.opening.remove(slot)
        if end == "cancelled":
            shard.connect_cancelled(slot, self.pool.now)
        else:
            shard.connect_failed(slot, OSError("refused"), self.pool.now, is_final=end == "for good")

    @precondition(lambda self: any(self._with(work) for work in SERVICES))
    @rule(data=st.data(), is_well=st.booleans())
    def service_ends(self, data, is_well):
        kind = data.draw(st.sampled_from([kind for kind in SERVICES if self._with(kind)]))
        shard = data.draw(st.sampled_from(self._with(kind)))
        work = self._work(shard, kind)
        slot = work.pop(data.draw(st.integers(0, len(work) - 1)))
        self._serviced(shard, slot, is_well=is_well)

    def _serviced(self, shard, slot, *, is_well):
        if slot.session.life is Liveness.UNREAD:
            slot.session.life = Liveness.ALIVE if is_well else Liveness.DEAD
        if is_well and slot in shard.unanswered:
            shard.reset_answered(slot, self.pool.now)
        elif is_well:
            shard.serviced(slot, self.pool.now)
        else:
            shard.discard(slot, "it was not")

    @precondition(lambda self: self._with("closing"))
    @rule(data=st.data())
    def close_ends(self, data):
        shard = data.draw(st.sampled_from(self._with("closing")))
        self.pool.closed(shard, data.draw(st.sampled_from(shard.effects.closing)))

    def _sessions(self, *states):
        return [(shard, slot) for shard in self.pool.shards for slot in self._slots(shard) if slot.state in states]

    def _slots(self, shard):
        """In a fixed order, so that a history can be repeated."""
        return sorted(shard.slots, key=self.pool.numbers.__getitem__)

    @precondition(lambda self: self._sessions(SlotState.IDLE, *HELD))
    @rule(data=st.data(), event=st.sampled_from(["dies", "is lost", "has something to read", "is not settled"]))
    def connection_changes(self, data, event):
        """It dies unseen, it dies and its driver sees that, a message arrives, or a reset's answer is late."""
        shard, slot = data.draw(st.sampled_from(self._sessions(SlotState.IDLE, *HELD)))
        if event == "dies":
            slot.session.life = Liveness.DEAD
        elif event == "is lost":
            slot.session.life = Liveness.DEAD
            shard.discard(slot, "lost")
        elif event == "has something to read" and slot.session.life is Liveness.ALIVE:
            slot.session.life = Liveness.UNREAD
        else:
            slot.session.is_settled = not slot.session.is_settled

    def mass_death(self, data):
        """The server restarts: whatever is open is dead, and nobody has been told."""
        for _, slot in self._sessions(SlotState.IDLE, *HELD):
            slot.session.life = Liveness.DEAD

    def mass_loss(self, data):
        """The same, and every driver has noticed."""
        self.mass_death(data)
        for shard, slot in self._sessions(SlotState.IDLE, *HELD):
            shard.discard(slot, "lost")

    # ---- the pool, its threads and loops ----

    @rule(data=st.data(), event=st.sampled_from(RARE_EVENTS))
    def something_rare(self, data, event):
        """One rule for all of these, or they would be most of what happens."""
        getattr(self, event)(data)

    @precondition(lambda self: self.pool.messages or any(self._with(work) for work in WORK))
    @rule()
    def all_goes_well(self):
        """Whatever is under way ends well, on every loop; whoever was served has not run yet."""
        for shard in self.pool.shards:
            effects = shard.effects
            for work in (self._work(shard, kind) for kind in SERVICES):
                while work:
                    self._serviced(shard, work.pop(0), is_well=True)
            while effects.opening:
                self.pool.connect(shard)
            while effects.closing:
                self.pool.closed(shard)
        while self.pool.messages:
            self._deliver(0)

    @rule(seconds=st.sampled_from(DURATIONS))
    def time_passes(self, seconds):
        self.pool.pass_time(seconds)
        for shard in self.pool.shards[:]:
            if not shard.is_open and not shard.slots:
                self._end(shard)

    @precondition(lambda self: self.pool.messages)
    @rule(data=st.data())
    def message_arrives(self, data):
        self._deliver(data.draw(st.integers(0, len(self.pool.messages) - 1)))

    def _deliver(self, index):
        kind, shard = self.pool.messages.pop(index)
        if shard in self.pool.shards:
            if kind == "tell":
                shard.permit_granted(self.pool.now)
            else:
                shard.permit_requested(self.pool.now)
        elif kind == "tell":
            self._forget(shard)

    def _forget(self, shard):
        self.pool.messages += [("tell", served) for served in self.pool.permits.forget(shard)]

    def expire(self, data):
        self.pool.shared.generation += 1

    def leave_resets(self, data):
        """The time of callers who wait for them is up."""
        for shard in self.pool.shards:
            for slot in list(shard.effects.resetting):
                shard.left_to_pool(slot, self.pool.now, is_late=True)

    def suspend_or_resume(self, data):
        if self.pool.shared.is_suspended:
            self._resume()
            return
        self.pool.shared.is_suspended = True

    def maintenance(self, data):
        """What a suspension is for: the server restarts while callers queue, and then they are served."""
        if not self.pool.shared.is_suspended:
            self.suspend_or_resume(data)
        self.acquire(data, 2, has_deadline=False)
        self.mass_death(data)
        self._resume()

    def _resume(self):
        self.pool.resume()

    def keep_floor(self, data):
        data.draw(st.sampled_from(self.pool.shards)).keep_floor(self.pool.now)

    def shut(self, data):
        """What it has lent may come back yet; another loop comes in its place."""
        self._shut(data.draw(st.sampled_from(self._open_shards())))
        self._replace()

    def _replace(self):
        self.pool.shard()

    def _shut(self, shard):
        shard.shut(lambda: RuntimeError("closed"))

    def loop_ends(self, data):
        """Everything it has is cut, and another loop comes in its place."""
        self._end(data.draw(st.sampled_from(self._open_shards())))
        self._replace()

    def _end(self, shard):
        self._shut(shard)
        for slot in self._slots(shard):
            if slot.state is SlotState.CONNECTING:
                shard.connect_cancelled(slot, self.pool.now)
            elif slot.state is SlotState.CLOSING:
                shard.closed(slot, self.pool.now)
            else:
                shard.retire(slot, "terminated", politely=False)
        assert not shard.slots, "a loop that ends keeps nothing"
        self.pool.shards.remove(shard)
        self.callers = [caller for caller in self.callers if caller.shard is not shard]
        self.leases = [lease for lease in self.leases if lease[0] is not shard]
        self._forget(shard)

    # ---- what must hold ----

    @invariant()
    def all_is_well(self):
        self.each_connection_has_one_permit()
        self.each_connection_is_in_one_place()
        self.each_lease_has_one_holder()
        self.counts_agree()
        self.the_queue_holds_those_who_wait()
        self.first_come_first_served()
        self.nobody_waits_beside_an_idle_connection()
        self.nobody_waits_in_vain()
        self.claims_are_of_those_who_wait()

    def _grants(self, shard):
        return self.pool.messages.count(("tell", shard))

    def each_connection_has_one_permit(self):
        """Connecting and closing ones too; a permit on its way to another loop is that loop's."""
        for shard in self.pool.shards:
            assert self.pool.permits.held(shard) == len(shard.slots) + self._grants(shard)
        assert self.pool.permits.in_use == sum(self.pool.permits.held(shard) for shard in self.pool.shards)
        assert self.pool.permits.in_use <= self.pool.shared.config.max_size

    def each_connection_is_in_one_place(self):
        for shard in self.pool.shards:
            effects = shard.effects
            in_service = [*effects.resetting, *effects.pinging, *effects.reading, *shard.unanswered]
            for places, state in (
                ([shard.idle], SlotState.IDLE),
                ([shard.connecting, effects.opening], SlotState.CONNECTING),
                ([shard.closing, effects.closing], SlotState.CLOSING),
                ([in_service], SlotState.RESETTING),
            ):
                expected = same(slot for slot in shard.slots if slot.state is state)
                assert all(same(place) == expected for place in places)
            assert SlotState.GONE not in {slot.state for slot in shard.slots}
            assert shard.restoring <= shard.connecting
            assert set(shard.asked) <= set(effects.resetting) | set(effects.pinging)

    def each_lease_has_one_holder(self):
        lent = [slot for _, slot in self._sessions(SlotState.LENT)]
        assert same(lent) == same(slot for _, slot in self.leases if slot.state is SlotState.LENT)
        served = [caller.waiter.result for caller in self.callers if caller.waiter.result is not None]
        reserved = [slot for _, slot in self._sessions(SlotState.RESERVED)]
        assert same(reserved) == same(slot for slot in served if slot.state is SlotState.RESERVED)
        gone = {SlotState.RESERVED, SlotState.CLOSING, SlotState.GONE}
        assert all(slot.state in gone for slot in served), "a connection that was handed over is its caller's"

    def counts_agree(self):
        for shard in self.pool.shards:
            stats = shard.stats("loop")
            states = [slot.state for slot in shard.slots]
            assert stats.size == shard.size == sum(state in {SlotState.IDLE, *HELD} for state in states)
            assert stats.size + stats.connecting + stats.closing == len(states)
            assert stats.waiting == len(shard.waiters)
            counters = stats.counters
            assert counters.acquire_times.count == counters.acquired
            assert counters.connect_times.count == counters.opened
            assert sum(counters.closed_because.values()) == counters.closed
            unused = len(shard.idle) + len(shard.unanswered) + len(shard.asked) + len(shard.closing)
            assert shard.spare in (0, unused)

    def the_queue_holds_those_who_wait(self):
        """In the order in which they came, those included who lost what they were handed, and came back."""
        for shard in self.pool.shards:
            callers = [caller for caller in self.callers if caller.shard is shard and self._is_waiting(caller)]
            expected = [caller.waiter for caller in sorted(callers, key=lambda caller: caller.number)]
            assert [waiter for waiter in shard.waiters if not waiter.done()] == expected
            assert not callers or shard.is_open, "nobody waits for a pool that is closed"

    def first_come_first_served(self):
        """Of those who waited before this step, nobody was served before somebody who still waits."""
        for shard in self.pool.shards:
            queue = [caller for caller in self.callers if caller.shard is shard and caller.is_in_queue]
            served = max((caller.number for caller in queue if caller.waiter.result is not None), default=0)
            assert all(caller.number > served for caller in queue if self._is_waiting(caller))
        for caller in self.callers:
            caller.is_in_queue = self._is_waiting(caller)

    def nobody_waits_beside_an_idle_connection(self):
        for shard in self.pool.shards:
            assert not (not self.pool.shared.is_suspended and shard.idle and shard.waiters)

    def nobody_waits_in_vain(self):
        """A caller that no connect is under way for waits for a message, a timer, or a connection of its own loop."""
        permits, max_size = self.pool.permits, self.pool.shared.config.max_size
        for shard in self.pool.shards:
            if self.pool.shared.is_suspended or len(shard.waiters) <= len(shard.connecting) or self._grants(shard):
                continue
            has_timer = shard.effects.wake <= self.pool.now + PROBE_LONGEST_SECONDS
            assert has_timer or permits.held(shard) == max_size
            if permits.in_use < max_size and not self.pool.messages:
                assert has_timer, "nobody waits beside a free permit, but for a pause"

    def claims_are_of_those_who_wait(self):
        for claimant in self.pool.permits.claims:
            assert claimant in self.pool.shards
            assert claimant.waiters, "a claim outlives those it was made for: another loop would give up a connection"
        assert not (self.pool.permits.claims and self.pool.permits.in_use < self.pool.shared.config.max_size)

    # ---- what must come of it ----

    def teardown(self):
        """If the server answers and leases end, everybody who waits is served; and a pool that is shut empties."""
        if not hasattr(self, "pool"):
            return
        self.reactions = []
        if self.pool.shared.is_suspended:
            self._resume()
        for _ in range(100 + 20 * len(self.callers)):
            if not self.callers:
                break
            self._good_moment()
        assert not self.callers, "somebody waits for ever"
        for shard in list(self.pool.shards):
            self._shut(shard)
        self._good_moment()
        self._good_moment()
        assert not any(shard.slots for shard in self.pool.shards)
        assert self.pool.permits.in_use == 0
        assert not self.pool.permits.claims

    def _good_moment(self):
        self.all_goes_well()
        self.run_callers()
        for lease in list(self.leases):
            self._release(lease, ReturnCheck.READY)
        self.pool.pass_time(0.05)


if EXPLORE:
    chosen = settings(max_examples=EXPLORE, stateful_step_count=80)
else:
    chosen = settings(max_examples=250, stateful_step_count=50, derandomize=True, database=None)
PoolMachine.TestCase.settings = settings(
    chosen, deadline=None, report_multiple_bugs=False, suppress_health_check=list(HealthCheck)
)


@pytest.mark.both_pythons
class TestAnyHistory(PoolMachine.TestCase):
    """Whatever callers, servers, threads and time do, no connection, permit or caller is lost."""
