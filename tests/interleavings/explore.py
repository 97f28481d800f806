"""Tells a story in every order: depth first over the choices, each order replayed from the start."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, NamedTuple

from interleavings.stage import Stage, Violation, counted_decisions, numbered_slots
from interleavings.world import Choices, World, virtual_clock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interleavings.stage import Scenario
    from interleavings.world import Choice

__all__ = ["Explored", "explore", "replay"]


class Explored(NamedTuple):
    """How many orders there were, and how many callbacks ran in all of them together."""

    interleavings: int
    steps: int


def explore(scenario: Scenario, departures: int | None = None) -> Explored:
    """
    Tell *scenario* in every order.

    Args:
        scenario: The story.
        departures: How often at most the order may differ from a real loop's; None takes the scenario's limit.

    Raises:
        Violation: Something happened that must not; the message has the choices that lead to it.
    """
    limit = scenario.departures if departures is None else departures
    count = steps = 0
    prefix: tuple[int, ...] | None = ()
    gc.collect()  # a pool of an earlier story that is dropped has something done by the loop that runs then
    with virtual_clock() as clock, numbered_slots(), counted_decisions():
        while prefix is not None:
            choices = Choices(prefix)
            world = clock.world = World(choices, time_races=scenario.time_races)
            try:
                Stage(scenario, world).play()
            except Exception as error:
                chosen = ",".join(str(choice.chosen) for choice in choices.made)
                raise Violation(f"{scenario.name}: {error}\nreplay it with {chosen or 'no choices'}") from error
            finally:
                world.end()
            count += 1
            steps += world.steps
            prefix = _next(choices.made, limit)
    return Explored(count, steps)


def _next(made: Sequence[Choice], limit: int | None) -> tuple[int, ...] | None:
    """The choices of the order after this one; None if it was the last."""
    chosen = [choice.chosen for choice in made]
    departed = sum(number > 0 for number in chosen)
    for place in range(len(made) - 1, -1, -1):
        departed -= chosen[place] > 0
        if chosen[place] + 1 < made[place].of and (limit is None or departed < limit):
            return (*chosen[:place], chosen[place] + 1)
    return None


def replay(scenario: Scenario, chosen: tuple[int, ...]) -> list[str]:
    """
    Tell *scenario* in one order.

    Returns:
        What ran, one line each, and how it ended.
    """
    with virtual_clock() as clock, numbered_slots(), counted_decisions():
        world = clock.world = World(Choices(chosen), time_races=scenario.time_races)
        world.trace = []
        try:
            Stage(scenario, world).play()
        except Exception as error:
            world.trace.append(f"VIOLATION: {error!r}")
        else:
            world.trace.append("All was well.")
        finally:
            world.end()
        return world.trace
