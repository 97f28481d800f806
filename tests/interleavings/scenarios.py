"""The stories: two or three parties, and something that happens to them at any moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interleavings.stage import Scenario
from loopaware_pool.driver import ReturnCheck
from loopaware_pool.errors import PoolClosed, PoolTimeout
from loopaware_pool.stats import ConnectionClosed

if TYPE_CHECKING:
    from collections.abc import Callable

    from interleavings.stage import Stage
    from loopaware_pool.stats import PoolEvent

__all__ = ["SCENARIOS"]

RESET, BROKEN, WORN_OUT = ReturnCheck.RESET, ReturnCheck.BROKEN, ReturnCheck.WORN_OUT
RESET_SENT = ReturnCheck.RESET_SENT


def two_callers(stage: Stage) -> None:
    stage.caller()
    stage.caller()


def three_callers(stage: Stage) -> None:
    two_callers(stage)
    stage.caller(hold=0)


def cancel_one(stage: Stage) -> None:
    stage.caller()
    victim = stage.caller()
    stage.at_any_moment(lambda: stage.cancel(victim))


def cancel_both(stage: Stage) -> None:
    for victim in (stage.caller(), stage.caller()):
        stage.at_any_moment(lambda victim=victim: stage.cancel(victim))


def cancel_twice(stage: Stage) -> None:
    stage.caller()
    victim = stage.caller()
    for _ in range(2):
        stage.at_any_moment(lambda: stage.cancel(victim))


def cancel_first_of_three(stage: Stage) -> None:
    victim = stage.caller(hold=0)
    stage.caller()
    stage.caller(hold=0)
    stage.at_any_moment(lambda: stage.cancel(victim))


def cancel_in_reset(stage: Stage) -> None:
    victim = stage.caller(hold=0, check=RESET, awaits=True)
    stage.caller(hold=0)
    stage.at_any_moment(lambda: stage.cancel(victim))


def cancel_all_tasks(stage: Stage) -> None:
    stage.caller(check=RESET)
    stage.caller(hold=0, check=WORN_OUT)
    stage.at_any_moment(stage.cancel_all)


def cancel_with_broken(stage: Stage) -> None:
    stage.caller(check=BROKEN)
    victim = stage.caller(hold=0)
    stage.at_any_moment(lambda: stage.cancel(victim))


def cancel_with_worn_out(stage: Stage) -> None:
    stage.caller(check=WORN_OUT)
    victim = stage.caller(hold=0)
    stage.at_any_moment(lambda: stage.cancel(victim))


def reset_sent(stage: Stage) -> None:
    stage.caller(check=RESET_SENT)
    stage.caller(hold=0, check=RESET_SENT)
    stage.caller(hold=0)


def cancel_with_reset_sent(stage: Stage) -> None:
    stage.caller(check=RESET_SENT)
    for victim in (stage.caller(hold=0), stage.caller(hold=0, check=RESET_SENT)):
        stage.at_any_moment(lambda victim=victim: stage.cancel(victim))


def connection_dies_with_reset_sent(stage: Stage) -> None:
    stage.caller(check=RESET_SENT)
    stage.caller(hold=0)
    stage.at_any_moment(stage.lose)


def close_with_reset_sent(stage: Stage) -> None:
    stage.caller(check=RESET_SENT)
    stage.caller(hold=0)
    stage.party(stage.core.close())


def connection_dies(stage: Stage) -> None:
    stage.caller()
    stage.caller(hold=0)
    stage.at_any_moment(stage.lose)


def connection_dies_and_cancel(stage: Stage) -> None:
    stage.caller()
    victim = stage.caller(hold=0)
    stage.at_any_moment(lambda: stage.cancel(victim))
    stage.at_any_moment(stage.lose)


def connect_fails(stage: Stage) -> None:
    stage.driver.failures.append(ConnectionRefusedError("refused"))
    stage.caller()
    stage.caller(hold=0)


def connect_fails_and_cancel(stage: Stage) -> None:
    stage.driver.failures.append(ConnectionRefusedError("refused"))
    stage.caller()
    victim = stage.caller(hold=0)
    stage.at_any_moment(lambda: stage.cancel(victim))


def close_with_one(stage: Stage) -> None:
    stage.caller()
    stage.party(stage.core.close())


def close_with_two(stage: Stage) -> None:
    stage.caller()
    stage.caller()
    stage.party(stage.core.close())


def close_and_cancel(stage: Stage) -> None:
    victim = stage.caller(hold=0)
    stage.party(stage.core.close())
    stage.at_any_moment(lambda: stage.cancel(victim))


def close_cancelled(stage: Stage) -> None:
    stage.caller()
    closer = stage.party(stage.core.close())
    stage.at_any_moment(lambda: stage.cancel(closer))


def close_twice(stage: Stage) -> None:
    stage.caller()
    stage.party(stage.core.close())
    stage.party(stage.core.close())


def close_in_reset(stage: Stage) -> None:
    stage.caller(hold=0, check=RESET, awaits=True)
    stage.party(stage.core.close())


def close_unused(stage: Stage) -> None:
    stage.caller()
    stage.caller(hold=0)
    stage.party(stage.core.close_unused(5.0))


def terminate(stage: Stage) -> None:
    stage.caller()
    stage.caller(hold=0)
    stage.at_any_moment(stage.core.terminate)


def terminate_in_close(stage: Stage) -> None:
    stage.caller()
    stage.party(stage.core.close())
    stage.at_any_moment(stage.core.terminate)


def loop_ends(stage: Stage) -> None:
    stage.caller()
    stage.caller(hold=0)
    stage.party(stage.end_loop(0))


def loop_ends_in_close(stage: Stage) -> None:
    stage.caller()
    stage.party(stage.core.close())
    stage.party(stage.end_loop(0))


def expire(stage: Stage) -> None:
    two_callers(stage)
    stage.at_any_moment(stage.core.expire)


def drain(stage: Stage) -> None:
    stage.caller()
    stage.caller(hold=0)
    stage.at_any_moment(stage.core.drain)


def suspend(stage: Stage) -> None:
    stage.caller()
    stage.caller(hold=0)
    stage.at_any_moment(stage.core.suspend)
    stage.at_any_moment(stage.core.resume)
    # Whatever comes first, in the end callers are served.
    stage.loops[0].call_later(1.0, stage.core.resume)


def grow(stage: Stage) -> None:
    stage.caller()
    stage.caller(hold=0)
    stage.at_any_moment(lambda: stage.resize(2))


def shrink(stage: Stage) -> None:
    stage.caller()
    stage.caller(hold=0)
    stage.at_any_moment(lambda: stage.resize(1))


def shrink_and_cancel(stage: Stage) -> None:
    stage.caller()
    victim = stage.caller(hold=0)
    stage.at_any_moment(lambda: stage.cancel(victim))
    stage.at_any_moment(lambda: stage.resize(1))


def too_late(stage: Stage) -> None:
    stage.caller(hold=1)
    stage.caller(hold=0, timeout=0.05)


def too_late_and_cancel(stage: Stage) -> None:
    stage.caller()
    victim = stage.caller(hold=0, timeout=0.05)
    stage.at_any_moment(lambda: stage.cancel(victim))


def two_loops(stage: Stage) -> None:
    stage.caller(0)
    stage.caller(1, hold=0)


def two_loops_and_cancel(stage: Stage) -> None:
    stage.caller(0)
    victim = stage.caller(1, hold=0)
    stage.at_any_moment(lambda: stage.cancel(victim), loop=1)


def two_loops_and_close(stage: Stage) -> None:
    stage.caller(0)
    stage.caller(1, hold=0)
    stage.party(stage.core.close(), loop=1)


def two_loops_and_end(stage: Stage) -> None:
    stage.caller(0)
    stage.caller(1, hold=0)
    stage.party(stage.end_loop(0), loop=0)


def two_loops_and_terminate(stage: Stage) -> None:
    stage.caller(0)
    stage.caller(1, hold=0)
    stage.at_any_moment(stage.core.terminate, loop=1)


def two_loops_and_loss(stage: Stage) -> None:
    stage.caller(0)
    stage.caller(1, hold=0)
    stage.at_any_moment(stage.lose)


def two_loops_and_one_stands_still(stage: Stage) -> None:
    """A permit that is granted to a loop which stops meanwhile is used there, or taken back."""
    stage.caller(0, check=BROKEN)
    stage.caller(1, hold=0)
    stage.stand_still_for_a_while(1)


def one_stands_still_with_a_connection(stage: Stage) -> None:
    stage.caller(0, hold=0)
    stage.caller(1, hold=0)
    stage.stand_still_for_a_while(0)


def one_stops_and_keeps_nobody_waiting(stage: Stage) -> None:
    """What a loop was granted that has stopped for long, and has no connection, serves another meanwhile."""

    def stop() -> None:
        if not any(runner.shard.slots for runner in stage.core.runners() if runner.loop is stage.loops[1]):
            stage.loops[1].stand_still()

    stage.caller(0, check=BROKEN)
    stage.caller(1, hold=0)
    stage.caller(0, hold=0, timeout=0.5)
    stage.at_any_moment(stop, loop=1)
    stage.loops[0].call_later(1.0, stage.loops[1].go_on)


def one_stands_still_and_close(stage: Stage) -> None:
    two_loops_and_one_stands_still(stage)
    stage.party(stage.core.close(), loop=0)


def listening(action: Callable[[Stage], object]) -> Callable[[Stage], None]:
    """Connections die, come back broken and are replaced; a listener hears of the first that is closed, and acts."""

    def begin(stage: Stage) -> None:
        def hear(event: PoolEvent) -> None:
            if isinstance(event, ConnectionClosed):
                stage.listener = None
                action(stage)

        stage.listener = hear
        stage.caller(check=BROKEN)
        stage.caller(hold=0)
        stage.at_any_moment(stage.lose)

    return begin


def suspend_for_a_while(stage: Stage) -> None:
    stage.core.suspend()
    stage.loops[0].call_later(1.0, stage.core.resume)


def look_at_everything(stage: Stage) -> None:
    stage.core.stats()
    stage.core.fd_report()


def stumble(_: Stage) -> None:
    raise ValueError("a listener's own")


TWO = {"max_size": 2}
CLOSED = (PoolClosed,)
REFUSED = (ConnectionRefusedError,)

SCENARIOS = [
    Scenario("two callers, one connection", two_callers, warm=1),
    Scenario("two callers, none open", two_callers),
    Scenario("two callers, two connections", two_callers, TWO, departures=4),
    Scenario("three callers, one connection", three_callers, warm=1),
    Scenario("three callers, two connections", three_callers, TWO, departures=2),
    Scenario("a caller is cancelled", cancel_one, warm=1),
    Scenario("a caller is cancelled while connecting", cancel_one),
    Scenario("both are cancelled", cancel_both, warm=1),
    Scenario("both are cancelled while connecting", cancel_both, departures=4),
    Scenario("a caller is cancelled twice", cancel_twice, warm=1),
    Scenario("the first of three is cancelled", cancel_first_of_three, warm=1),
    Scenario("cancelled in an awaited reset", cancel_in_reset, warm=1, departures=6),
    Scenario("everybody's tasks are cancelled, the pool's too", cancel_all_tasks, warm=1),
    Scenario("cancelled, and the connection comes back broken", cancel_with_broken, warm=1),
    Scenario("cancelled, and the connection comes back worn out", cancel_with_worn_out, warm=1),
    Scenario("a reset's answer is waited for", reset_sent, warm=1, departures=6),
    Scenario("a reset's answer is waited for by two connections' callers", reset_sent, TWO, departures=2),
    Scenario("a reset's answer is waited for, callers are cancelled", cancel_with_reset_sent, warm=1, departures=5),
    Scenario("a reset's answer is waited for, the connection dies", connection_dies_with_reset_sent, warm=1),
    Scenario("a reset's answer is waited for, close", close_with_reset_sent, warm=1, allowed=CLOSED, departures=5),
    Scenario("the connection dies", connection_dies, warm=1),
    Scenario("the connection dies, a caller is cancelled", connection_dies_and_cancel, warm=1),
    Scenario("a connect fails", connect_fails, TWO, allowed=REFUSED, departures=4),
    Scenario("a connect fails, a caller is cancelled", connect_fails_and_cancel, allowed=REFUSED),
    Scenario("close with one caller", close_with_one, warm=1, allowed=CLOSED),
    Scenario("close with one caller who connects", close_with_one, allowed=CLOSED),
    Scenario("close with two callers", close_with_two, warm=1, allowed=CLOSED),
    Scenario("close with two callers who connect", close_with_two, allowed=CLOSED, departures=4),
    Scenario("close, and a caller is cancelled", close_and_cancel, allowed=CLOSED, departures=5),
    Scenario("close is cancelled", close_cancelled, warm=1, allowed=CLOSED),
    Scenario("close twice at once", close_twice, warm=1, allowed=CLOSED, departures=4),
    Scenario("close in an awaited reset", close_in_reset, warm=1, allowed=CLOSED, departures=5),
    Scenario("close without waiting for leases", close_unused, warm=1, allowed=CLOSED, departures=6),
    Scenario("terminate", terminate, allowed=CLOSED),
    Scenario("terminate during close", terminate_in_close, allowed=CLOSED, departures=4),
    Scenario("the loop ends", loop_ends, warm=1, allowed=CLOSED, departures=4),
    Scenario("the loop ends while connecting", loop_ends, allowed=CLOSED, departures=2),
    Scenario("the loop ends during close", loop_ends_in_close, warm=1, allowed=CLOSED, departures=2),
    Scenario("connections expire", expire, warm=1, departures=6),
    Scenario("the pool is drained", drain, warm=1, departures=6),
    Scenario("the pool is suspended and resumed", suspend, warm=1),
    Scenario("the pool grows", grow, warm=1),
    Scenario("the pool shrinks", shrink, TWO, warm=2),
    Scenario("the pool shrinks, a caller is cancelled", shrink_and_cancel, TWO, warm=2),
    Scenario("a deadline passes", too_late, warm=1, allowed=(PoolTimeout,), time_races=True, departures=6),
    Scenario(
        "a deadline passes, the caller is cancelled",
        too_late_and_cancel,
        warm=1,
        allowed=(PoolTimeout,),
        time_races=True,
        departures=4,
    ),
    Scenario("two loops, one connection", two_loops, warm=1, loops=2, departures=4),
    Scenario("two loops, none open", two_loops, loops=2, departures=3),
    Scenario("two loops, a caller is cancelled", two_loops_and_cancel, warm=1, loops=2, departures=3),
    Scenario("two loops, and close", two_loops_and_close, warm=1, loops=2, allowed=CLOSED, departures=2),
    Scenario("two loops, one ends", two_loops_and_end, warm=1, loops=2, allowed=CLOSED, departures=2),
    Scenario("two loops, and terminate", two_loops_and_terminate, warm=1, loops=2, allowed=CLOSED, departures=3),
    Scenario("two loops, one stands still", two_loops_and_one_stands_still, warm=1, loops=2, departures=3),
    Scenario(
        "a loop stands still with a connection", one_stands_still_with_a_connection, warm=1, loops=2, departures=3
    ),
    Scenario("a loop stops for long", one_stops_and_keeps_nobody_waiting, warm=1, loops=2, departures=2),
    Scenario(
        "a loop stands still, and close", one_stands_still_and_close, warm=1, loops=2, allowed=CLOSED, departures=2
    ),
    Scenario("two loops, the connection dies", two_loops_and_loss, warm=1, loops=2, departures=4),
    *(
        Scenario(f"a listener {does}", listening(action), TWO, warm=2, allowed=CLOSED, departures=3)
        for does, action in {
            "terminates the pool": lambda stage: stage.core.terminate(),
            "closes the pool": lambda stage: stage.party(stage.core.close()),
            "suspends the pool": suspend_for_a_while,
            "expires connections": lambda stage: stage.core.expire(),
            "drains the pool": lambda stage: stage.core.drain(),
            "shrinks the pool": lambda stage: stage.resize(1),
            "grows the pool": lambda stage: stage.resize(3),
            "acquires": lambda stage: stage.caller(hold=0),
            "looks at everything": look_at_everything,
            "raises": stumble,
        }.items()
    ),
]
