"""The table of a slot's states and moves."""

from __future__ import annotations

import itertools
import types

import pytest

from loopaware_pool._core.slot import (
    LIBRARY_MODULES,
    TRANSITIONS,
    IllegalMove,
    Slot,
    SlotEvent,
    SlotState,
    acquiring_line,
)

S, E = SlotState, SlotEvent
# Written out once more, so that a slip in the table shows.
MOVES = {
    (S.CONNECTING, E.CONNECTED): S.IDLE,
    (S.CONNECTING, E.CONNECT_FAILED): S.GONE,
    (S.IDLE, E.TAKEN): S.LENT,
    (S.IDLE, E.RESERVED): S.RESERVED,
    (S.IDLE, E.RESET_STARTED): S.RESETTING,
    (S.IDLE, E.CLOSE_STARTED): S.CLOSING,
    (S.RESERVED, E.CLAIMED): S.LENT,
    (S.RESERVED, E.ABANDONED): S.IDLE,
    (S.RESERVED, E.CLOSE_STARTED): S.CLOSING,
    (S.LENT, E.RETURNED): S.IDLE,
    (S.LENT, E.RESET_STARTED): S.RESETTING,
    (S.LENT, E.CLOSE_STARTED): S.CLOSING,
    (S.RESETTING, E.RESET_FINISHED): S.IDLE,
    (S.RESETTING, E.CLOSE_STARTED): S.CLOSING,
    (S.CLOSING, E.CLOSED): S.GONE,
}
OTHERS = sorted(set(itertools.product(S, E)) - set(MOVES), key=str)


def slot_in(state):
    slot = Slot(generation=3, now=5.0)
    slot.state = state
    return slot


def contents(slot):
    return {name: getattr(slot, name, None) for name in Slot.__slots__}


@pytest.mark.parametrize(("state", "event"), list(MOVES), ids=str)
def test_a_legal_move_leads_where_the_table_says(state, event):
    """Each of the fifteen moves leads to its state, and changes nothing else."""
    slot = slot_in(state)
    before = contents(slot)
    slot.move(event)
    assert contents(slot) == before | {"state": MOVES[state, event]}


@pytest.mark.parametrize(("state", "event"), OTHERS, ids=str)
def test_any_other_move_is_refused(state, event):
    """A move that is not in the table raises, names the state and the event, and changes nothing."""
    slot = slot_in(state)
    before = contents(slot)
    with pytest.raises(IllegalMove) as refusal:
        slot.move(event)
    assert state.name in str(refusal.value)
    assert event.name in str(refusal.value)
    assert contents(slot) == before


def test_every_state_can_be_reached():
    """From CONNECTING, where a slot begins, moves lead to every state."""
    assert Slot(generation=0, now=0.0).state is S.CONNECTING
    reached, fresh = set(), {S.CONNECTING}
    while fresh:
        reached |= fresh
        fresh = {after for state in fresh for after in TRANSITIONS[state].values()} - reached
    assert reached == set(S)


def test_every_state_ends():
    """From every state, moves lead to GONE, from which none leads on."""
    ending = {S.GONE}
    for _ in S:
        ending |= {state for state, moves in TRANSITIONS.items() if ending & set(moves.values())}
    assert ending == set(S)
    assert TRANSITIONS[S.GONE] == {}


def test_only_a_close_ends_what_was_open():
    """GONE is reached from CLOSING, or from a connect that failed: no open socket is just forgotten."""
    ways = {(state, event) for state, moves in TRANSITIONS.items() for event, after in moves.items() if after is S.GONE}
    assert ways == {(S.CLOSING, E.CLOSED), (S.CONNECTING, E.CONNECT_FAILED)}


def test_every_event_happens_somewhere():
    """The table uses every event."""
    assert {event for moves in TRANSITIONS.values() for event in moves} == set(E)


def test_a_new_slot_knows_when_it_began():
    """A slot starts with the time and the generation it is given, no end of life, and nobody holding it."""
    slot = Slot(generation=7, now=12.5)
    assert (slot.generation, slot.opened_at, slot.since) == (7, 12.5, 12.5)
    assert slot.expires_at == float("inf")
    assert slot.holder is None
    assert (slot.code, slot.instruction) == (None, 0)
    assert not slot.reported
    assert not hasattr(slot, "session")


def test_a_slot_describes_itself_before_it_has_a_session():
    """`repr` works while connecting: it is needed most when something has gone wrong."""
    assert repr(Slot(generation=0, now=0.0)) == "<Slot connecting None>"


def test_a_slot_describes_its_session():
    """And where it is in its life."""
    slot = slot_in(S.LENT)
    slot.session = "the session"
    assert repr(slot) == "<Slot lent 'the session'>"


class Task:
    """Something that can be held weakly."""


def test_a_slot_knows_who_acquired_it_and_where():
    """Weakly: it keeps no task alive; and without a task nobody holds it."""
    slot, task, code = slot_in(S.LENT), Task(), test_every_event_happens_somewhere.__code__
    slot.lent_to(task, code, 7)
    assert (slot.holder(), slot.code, slot.instruction) == (task, code, 7)
    del task
    assert slot.holder() is None
    slot.lent_to(None, None, 0)
    assert (slot.holder, slot.code, slot.instruction) == (None, None, 0)


def frames(*modules):
    """Frames of functions of *modules*, each called by the next; the innermost."""
    frame = None
    for number, module in reversed(list(enumerate(modules))):
        frame = types.SimpleNamespace(f_globals={"__name__": module}, f_back=frame, f_code=module, f_lasti=number)
    return frame


def test_an_acquire_stands_in_the_first_frame_that_is_the_callers_own():
    """However many of the pool's are below it, and whichever follow."""
    assert acquiring_line(frames("app", "main")) == ("app", 0)
    assert acquiring_line(frames(*sorted(LIBRARY_MODULES), "app", "contextlib", "main")) == (
        "app",
        len(LIBRARY_MODULES),
    )


def test_where_an_acquire_stands_may_be_unknown():
    """If there are no frames, or none that is the caller's."""
    assert acquiring_line(None) == (None, 0)
    assert acquiring_line(frames("contextlib", "loopaware_pool._core.acquire")) == (None, 0)
