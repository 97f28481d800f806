"""
Bytes and arguments that nobody in his right mind would send: refused in so many words, and nothing hangs or grows.

The same examples are tried every time. `LOOPAWARE_TEST_EXPLORE=5000` tries that many others instead.
"""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import helpers
from loopaware_pool.asyncpg import create_pool
from loopaware_pool.asyncpg.pipelined_reset import LONGEST_ANSWER_BYTES, ResetProtocol
from loopaware_pool.asyncpg.reset_messages import ResetMessage
from loopaware_pool.psycopg import AsyncConnectionPool, AsyncNullConnectionPool

pytestmark = pytest.mark.thorough

EXPLORE = int(os.environ.get("LOOPAWARE_TEST_EXPLORE", "0"))
STATEMENTS = 3
RESET = ResetMessage(b"reset", STATEMENTS)
SECRET = "hunter2"
NOWHERE = f"postgresql://somebody:{SECRET}@127.0.0.1:1/postgres"


def examples(count):
    chosen = (
        settings(max_examples=EXPLORE) if EXPLORE else settings(max_examples=count, derandomize=True, database=None)
    )
    return settings(chosen, deadline=None, suppress_health_check=list(HealthCheck))


# ---- the answer to a reset ----


class Ear:
    """Session, transport and asyncpg's protocol in one: takes notes."""

    def __init__(self, clean):
        self.clean_answers = {} if clean is None else {RESET.data: clean}
        self.verdict = None
        self.passed_on = b""
        self.owner = self

    def set_protocol(self, protocol):
        self.owner = protocol

    def data_received(self, data):
        self.passed_on += data

    def write(self, data):
        pass

    def setting_reported(self):
        pass

    def answer_complete(self):
        self._decide("clean")

    def answer_failed(self, reason, sqlstate):
        self._decide("failed")

    def _decide(self, verdict):
        assert self.verdict is None, "decided twice"
        self.verdict = verdict


def message(kind, body=b""):
    return kind + struct.pack("!I", len(body) + 4) + body


def expected(data):
    """What is to become of *data*, read in one piece and at leisure: the verdict, and what asyncpg is given."""
    completed, passed_on = 0, b""
    while len(data) >= 5:
        kind, (length,) = data[:1], struct.unpack("!I", data[1:5])
        if length < 4 or length > LONGEST_ANSWER_BYTES:
            return "failed", passed_on
        if len(data) < 1 + length:
            break
        whole, data = data[: 1 + length], data[1 + length :]
        if kind == b"Z":
            is_clean = whole[5:] == b"I" and completed == STATEMENTS
            return ("clean", passed_on + data) if is_clean else ("failed", passed_on)
        if kind == b"C":
            completed += 1
        elif kind in (b"S", b"A"):
            passed_on += whole
        elif kind not in (b"T", b"D", b"I", b"N") and not (kind == b"E" and completed == STATEMENTS):
            return "failed", passed_on
    return None, passed_on


CLEAN = message(b"C", b"RESET\0") * STATEMENTS + message(b"Z", b"I")

bodies = st.binary(max_size=12)
likely = st.one_of(
    st.just(message(b"C", b"RESET\0")),
    st.builds(message, st.sampled_from([b"T", b"D", b"I", b"S", b"A", b"N", b"C"]), bodies),
)
unlikely = st.one_of(
    st.builds(message, st.binary(min_size=1, max_size=1), bodies),
    st.builds(
        lambda kind, length: kind + struct.pack("!I", length),
        st.sampled_from([b"C", b"N", b"Z"]),
        st.integers(0, 2**32 - 1),
    ),
    st.just(message(b"E", b"SERROR\0C57P01\0\0")),
    st.binary(max_size=20),
)
endings = st.one_of(
    st.sampled_from([message(b"Z", status) for status in (b"I", b"I", b"T", b"E", b"", b"XI", b"II")]), st.just(b"")
)
answers = st.one_of(
    st.builds(
        lambda parts, at, ending, surplus: (
            b"".join(parts[:at] + [message(b"C", b"RESET\0")] * STATEMENTS + parts[at:]) + ending + surplus
        ),
        st.lists(likely, max_size=2),
        st.integers(0, 2),
        endings,
        st.binary(max_size=9),
    ),
    st.builds(
        lambda parts, ending: b"".join(parts) + ending,
        st.lists(st.one_of(likely, likely, unlikely), max_size=8),
        endings,
    ),
    st.binary(max_size=60),
    st.builds(lambda begin, rest: CLEAN[:begin] + rest, st.integers(0, len(CLEAN)), st.binary(max_size=20)),
)


def feed(ear, pieces):
    """Let the pieces arrive, until the transport is given back; the rest is asyncpg's."""
    answer = ResetProtocol(ear, ear, ear, ear.clean_answers)
    answer.send(RESET)
    answer.is_wanted = True
    for piece in pieces:
        ear.owner.data_received(piece)
        assert len(answer._buffer) <= LONGEST_ANSWER_BYTES + 5
        if ear.verdict == "failed":
            break
    return answer


def split(data, cuts):
    places = sorted({place % (len(data) + 1) for place in cuts})
    return [data[begin:end] for begin, end in zip([0, *places], [*places, len(data)], strict=True) if begin < end]


def test_any_answer_to_a_reset_in_any_pieces(record_property):
    """Whatever bytes come, in whatever pieces: clean if they are a reset's answer, and refused or waited for if not."""
    fuzzed = 0

    @examples(4000)
    @given(answers, st.lists(st.integers(0, 300), max_size=6), st.sampled_from([None, CLEAN]))
    def check(data, cuts, clean):
        nonlocal fuzzed
        fuzzed += len(data)
        ear = Ear(clean)
        answer = feed(ear, split(data, cuts))
        verdict, passed_on = expected(data)
        event(f"verdict {verdict}")
        assert ear.verdict == verdict
        assert ear.passed_on == passed_on
        assert answer.is_due is (verdict is None)

    check()
    record_property("bytes fuzzed", fuzzed)


def test_an_answer_that_comes_byte_by_byte_for_ever():
    """An answer as long as is allowed costs what its bytes cost, not their square; and a longer one is refused."""
    ear = Ear(None)
    notice = message(b"N", bytes(LONGEST_ANSWER_BYTES - 5))
    answer = feed(ear, [notice[place : place + 1] for place in range(len(notice))])
    assert ear.verdict is None
    assert ear.passed_on == b""
    assert not answer._buffer
    ear = Ear(None)
    feed(ear, [b"N" + struct.pack("!I", LONGEST_ANSWER_BYTES + 1)])
    assert ear.verdict == "failed"


# ---- arguments ----

numbers = st.one_of(
    st.integers(-3, 3),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.fractions(max_denominator=9),
    st.decimals(),
    st.complex_numbers(),
)
junk = st.one_of(
    numbers,
    st.none(),
    st.booleans(),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.sampled_from([(), [], {}, set(), object, object(), len, int, NotImplemented, ..., range(3), [1], {"a": 1}]),
)
ASYNCPG_OPTIONS = [
    *("init_size", "min_size", "max_size", "max_queries", "max_inactive_connection_lifetime"),
    *("connect", "setup", "init", "reset", "loop", "connection_class", "record_class", "dsn"),
    *("name", "acquire_timeout", "session_reset", "max_lifetime", "lifetime_jitter", "keepalive", "max_waiting"),
    *("max_connecting", "leak_threshold", "fd_check", "close_timeout", "on_event"),
]
PSYCOPG_OPTIONS = [
    *("conninfo", "connection_class", "kwargs", "min_size", "max_size", "configure", "check", "reset", "name"),
    *("timeout", "max_waiting", "max_lifetime", "max_idle", "reconnect_timeout", "reconnect_failed", "num_workers"),
    *("session_reset", "idle_order", "discard_dead", "discard_expired", "keepalive", "max_connecting"),
    *("leak_threshold", "fd_check", "on_event"),
]
# Under which other name an argument may be complained of.
ALSO_CALLED = {"min_size": ("max_size", "init_size"), "max_size": ("min_size",), "init_size": ("min_size", "max_size")}


def asyncpg_pool(options):
    dsn = options.pop("dsn", NOWHERE)
    return create_pool(dsn, **{"min_size": 0, **options})


def psycopg_pool(options):
    return AsyncConnectionPool(**{"conninfo": NOWHERE, "min_size": 1, "open": False, **options})


def null_pool(options):
    return AsyncNullConnectionPool(**{"conninfo": NOWHERE, "max_size": 2, "open": False, **options})


def names(complaint, options):
    return any(name in complaint for option in options for name in (option, *ALSO_CALLED.get(option, ())))


@pytest.mark.parametrize(
    ("make", "options"),
    [(asyncpg_pool, ASYNCPG_OPTIONS), (psycopg_pool, PSYCOPG_OPTIONS), (null_pool, PSYCOPG_OPTIONS)],
    ids=["asyncpg", "psycopg", "psycopg-null"],
)
def test_any_argument_is_taken_or_refused_at_once(make, options, record_property):
    """Any value of any argument: a pool that can be described, or one line that names the argument. Nothing opens."""
    tried = 0
    before = helpers.open_sockets()

    @examples(1500)
    @given(st.dictionaries(st.sampled_from(options), junk, min_size=1, max_size=2))
    def check(chosen):
        nonlocal tried
        tried += 1
        try:
            pool = make(dict(chosen))
        except (ValueError, TypeError) as error:
            complaint = str(error)
            assert names(complaint, chosen), complaint
            assert "\n" not in complaint
            assert SECRET not in complaint
        else:
            assert SECRET not in repr(pool)
            assert pool.stats().size == 0

    check()
    assert helpers.open_sockets() == before
    record_property("argument combinations tried", tried)


@pytest.mark.parametrize("name", ["connect", "setup", "init", "reset"])
def test_a_callback_that_cannot_be_called_is_refused_at_once(name):
    """Not at the first connect, or acquire, of a pool that looked well."""
    with pytest.raises(TypeError, match=f"{name}=5: expected"):
        create_pool(NOWHERE, **{name: 5})


@pytest.mark.parametrize("name", ["configure", "check", "reset", "reconnect_failed"])
def test_a_psycopg_callback_that_cannot_be_called_is_refused_at_once(name):
    """The same for the psycopg flavour."""
    with pytest.raises(TypeError, match=f"{name}=5: expected"):
        AsyncConnectionPool(NOWHERE, open=False, **{name: 5})


@pytest.mark.parametrize("cls", [AsyncConnectionPool, AsyncNullConnectionPool])
@pytest.mark.parametrize("wrong", [5, 0, NotImplemented])
def test_a_name_that_is_no_string_is_refused(cls, wrong):
    """Not asked first whether it is true, which not every object answers."""
    with pytest.raises(TypeError, match=f"name={wrong!r}: expected a non-empty string"):
        cls(NOWHERE, max_size=2, min_size=0, open=False, name=wrong)


@pytest.mark.parametrize("wrong", [5, b"postgresql://x:hunter2@y", ["hunter2"]], ids=type)
def test_a_dsn_of_a_wrong_type_is_refused_without_showing_it(wrong):
    """It may have a password in it."""
    for make in (
        lambda: create_pool(wrong),
        lambda: AsyncConnectionPool(wrong, open=False),
        lambda: AsyncConnectionPool(NOWHERE, kwargs=wrong, open=False),
    ):
        with pytest.raises(TypeError, match=f"expected .*{type(wrong).__name__}") as caught:
            make()
        assert SECRET not in str(caught.value)
