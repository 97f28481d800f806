"""The answer to a reset, byte by byte."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter

import pytest

from loopaware_pool.asyncpg.pipelined_reset import LONGEST_ANSWER_BYTES, ResetProtocol
from loopaware_pool.asyncpg.reset_messages import ResetMessage, guarded

pytestmark = pytest.mark.both_drivers
STATEMENTS = 3
RESET = ResetMessage(b"reset", STATEMENTS)


def message(kind, body=b""):
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def completed(tag=b"RESET"):
    return message(b"C", tag + b"\0")


READY = message(b"Z", b"I")
PARAMETER = message(b"S", b"TimeZone\0UTC\0")
NOTICE = message(b"N", b"SNOTICE\0\0")
NOTIFICATION = message(b"A", b"\0\0\0\1channel\0payload\0")
ROWS = message(b"T", b"\0\0") + message(b"D", b"\0\0")
CLEAN = ROWS + completed(b"SELECT 1") + completed() + message(b"I") + completed() + READY
MIXED = NOTICE + ROWS + completed(b"SELECT 1") + PARAMETER + completed() + NOTIFICATION + completed() + READY
SURPLUS = message(b"1") + message(b"2") + completed(b"SELECT 9")


class Recorder:
    """Stands for the driver's protocol, the transport and the session at once, and remembers the order of things."""

    def __init__(self):
        self.clean_answers = {}
        self.calls = []
        self.current = "driver"
        self.forwarded = b""
        self.failures = []

    @property
    def clean_answer(self):
        return self.clean_answers.get(RESET.data)

    def write(self, data):
        self.sent = data

    def set_protocol(self, protocol):
        self.current = "driver" if protocol is self else "answer"
        self.calls.append(f"transport to {self.current}")

    def data_received(self, data):
        self.forwarded += bytes(data)
        self.calls.append(f"data while transport is with {self.current}")

    def connection_lost(self, exc):
        self.calls.append(("lost", exc))

    def connection_gone(self, reason):
        self.calls.append(f"session lost: {reason}")

    def pause_writing(self):
        self.calls.append("pause")

    def resume_writing(self):
        self.calls.append("resume")

    def setting_reported(self):
        pass

    def answer_complete(self):
        self.calls.append("answered")

    def answer_failed(self, reason, sqlstate):
        self.failures.append(reason)
        self.calls.append("failed")


def expecting(clean=None, *, is_wanted=True, reset=RESET):
    recorder = Recorder()
    if clean is not None:
        recorder.clean_answers[RESET.data] = clean
    answer = ResetProtocol(recorder, recorder, recorder, recorder.clean_answers)
    answer.send(reset)
    answer.is_wanted = is_wanted
    assert answer.is_due
    assert recorder.current == "answer"
    return answer, recorder


def assert_finished(answer, recorder, forwarded=b""):
    assert recorder.failures == []
    assert not answer.is_due
    assert recorder.current == "driver"
    assert recorder.calls.count("answered") == 1
    assert recorder.forwarded == forwarded


def assert_failed(answer, recorder):
    assert len(recorder.failures) == 1
    assert not answer.is_due
    assert recorder.current == "driver"
    assert "answered" not in recorder.calls


@pytest.mark.parametrize("clean", [None, CLEAN, CLEAN[:-6] + completed() + READY], ids=["first", "known", "other"])
@pytest.mark.parametrize("reply", [CLEAN, MIXED], ids=["clean", "mixed"])
@pytest.mark.parametrize("surplus", [b"", SURPLUS], ids=["alone", "surplus"])
def test_an_answer_cut_anywhere_is_understood(clean, reply, surplus):
    """An answer in any two pieces, or byte by byte, is taken out, with its notices; all else reaches the driver."""
    forwarded = (PARAMETER + NOTIFICATION if reply is MIXED else b"") + surplus
    stream = reply + surplus
    cuts = [[cut] for cut in range(1, len(stream))] + [[], list(range(1, len(reply)))]
    for cut in cuts:
        answer, recorder = expecting(clean)
        for begin, end in zip([0, *cut], [*cut, len(stream)], strict=True):
            (answer if recorder.current == "answer" else recorder).data_received(stream[begin:end])
        assert_finished(answer, recorder, forwarded)


def test_the_clean_answer_is_learned_once_and_for_each_answer_alike():
    """The first answer in one piece and with nothing else in it becomes the one that later answers are compared to."""
    answer, recorder = expecting()
    answer.data_received(CLEAN + SURPLUS)
    assert recorder.clean_answer == CLEAN
    for _ in range(3):
        answer.send(RESET)
        answer.data_received(CLEAN)
        assert not answer.is_due
    assert recorder.clean_answer == CLEAN


@pytest.mark.parametrize("pieces", [[MIXED], [CLEAN[:30], CLEAN[30:]], [NOTICE, CLEAN], [PARAMETER + CLEAN]])
def test_an_answer_with_something_else_in_it_is_not_learned(pieces):
    """What came in pieces, or had a notice or a parameter in it, is no model for later answers."""
    answer, recorder = expecting()
    for piece in pieces:
        answer.data_received(piece)
    assert not answer.is_due
    assert recorder.clean_answer is None


def test_what_comes_with_the_answer_is_forwarded_at_once_and_surplus_after_the_hand_back():
    """The driver hears of a setting while the answer is due, and of its own data when it has the transport again."""
    answer, recorder = expecting()
    answer.data_received(PARAMETER + CLEAN + SURPLUS)
    assert recorder.calls == [
        "transport to answer",
        "data while transport is with answer",
        "transport to driver",
        "data while transport is with driver",
        "answered",
    ]


def test_an_error_after_the_last_statement_comes_too_late_to_matter():
    """As a time limit that is noticed while the server logs the commit: the session is reset, and that is no model."""
    answer, recorder = expecting()
    late = message(b"E", b"SERROR\0C57014\0\0")
    answer.data_received(completed() * STATEMENTS + late + READY)
    assert_finished(answer, recorder)
    assert recorder.clean_answer is None


GUARDED = guarded(("RESET ALL;", "SET TRANSACTION ISOLATION LEVEL READ COMMITTED;", "CLOSE ALL;"))
BOUND = message(b"1") + message(b"2")


def test_messages_of_the_extended_protocol_belong_to_the_guard_alone():
    """They come with the statements that go ahead, and are no answer to those behind."""
    ahead = (BOUND + completed()) * GUARDED.ahead
    behind = completed(b"CLOSE CURSOR ALL") + completed(b"COMMIT") + READY
    answer, recorder = expecting(reset=GUARDED)
    answer.data_received(ahead + behind)
    assert_finished(answer, recorder)
    assert recorder.clean_answers == {GUARDED.data: ahead + behind}
    answer, recorder = expecting(reset=GUARDED)
    answer.data_received(ahead + BOUND + behind)
    assert_failed(answer, recorder)


BAD = {
    "error": completed() + message(b"E", b"SERROR\0C42501\0\0") + READY,
    "error at once": message(b"E", b"SFATAL\0C57P01\0\0"),
    "in a transaction": CLEAN[:-1] + b"T",
    "in a failed one": CLEAN[:-1] + b"E",
    "too few": completed() + READY,
    "too many": completed() * (STATEMENTS + 1) + READY,
    "none": READY,
    "copy": message(b"H", b"\0\0\0"),
    "extended": message(b"1"),
    "authentication": message(b"R", b"\0\0\0\0"),
    "zero byte": b"\0\0\0\0\4",
    "too short": b"C\0\0\0\3",
    "no length": b"C\0\0\0\0",
    "too long": b"C" + (LONGEST_ANSWER_BYTES + 1).to_bytes(4, "big"),
    "absurd": b"C\xff\xff\xff\xff",
    "ready without status": b"Z\0\0\0\4",
}


@pytest.mark.parametrize("reply", BAD.values(), ids=BAD)
@pytest.mark.parametrize("clean", [None, CLEAN], ids=["first", "known"])
def test_an_answer_that_is_not_one_fails_the_reset(reply, clean):
    """Anything but the clean end of all statements is a failure, however it is cut, and gives the transport back."""
    for cut in range(len(reply)):
        answer, recorder = expecting(clean)
        answer.data_received(reply[:cut]) if cut else None
        if recorder.current == "answer":
            answer.data_received(reply[cut:])
        assert_failed(answer, recorder)
        assert recorder.clean_answer == clean


ENDLESS = {
    "notices": NOTICE,
    "parameters": PARAMETER,
    "notifications": NOTIFICATION,
    "rows": message(b"D", b"\0\0"),
    "statements": completed(),
    "empty messages": message(b"I"),
    "large notices": message(b"N", bytes(60_000)),
    "one message, byte by byte": b"D" + (LONGEST_ANSWER_BYTES).to_bytes(4, "big") + bytes(LONGEST_ANSWER_BYTES),
}


@pytest.mark.parametrize("piece", [61, 4096, 1 << 18])
@pytest.mark.parametrize("flood", ENDLESS.values(), ids=ENDLESS)
def test_an_answer_without_an_end_is_given_up(flood, piece):
    """Whatever a server sends in place of the end, it is read for a mebibyte and a piece at most."""
    answer, recorder = expecting(CLEAN)
    recorder.data_received = lambda data: None  # nothing is kept here
    flood *= -(-4 * piece // len(flood))
    stream = memoryview(flood)[: len(flood) // piece * piece]
    sent = 0
    while recorder.current == "answer" and sent < 2 * LONGEST_ANSWER_BYTES:
        answer.data_received(bytes(stream[sent % len(stream) :][:piece]))
        sent += piece
    assert_failed(answer, recorder)
    assert sent <= LONGEST_ANSWER_BYTES + piece


@pytest.mark.parametrize("piece", [61, 4096, 1 << 18])
@pytest.mark.parametrize("comes_with_the_answer", [True, False])
def test_settings_without_an_end_are_given_up_when_nobody_has_the_connection(comes_with_the_answer, piece):
    """asyncpg keeps each, under whatever name. What is not kept, and may come for years, does not count."""
    kept, numbers = bytearray(), iter(range(10_000_000))

    def parameters():
        flood = b""
        while len(flood) < piece:
            flood += message(b"S", b"my.setting%d\0on\0" % next(numbers))
        return flood

    answer, recorder = expecting(CLEAN)
    recorder.data_received = kept.extend
    answer.data_received(CLEAN + (parameters() if comes_with_the_answer else b""))
    answer.stand_guard()
    for _ in range(3 * LONGEST_ANSWER_BYTES // (100 * len(NOTICE + NOTIFICATION))):
        answer.data_received((NOTICE + NOTIFICATION) * 100)
    assert recorder.current == "answer"
    kept.clear()
    for _ in range(2 * LONGEST_ANSWER_BYTES // piece):
        if recorder.current == "answer":
            answer.data_received(parameters())
    assert recorder.current == "driver"
    assert len(kept) <= LONGEST_ANSWER_BYTES
    assert not recorder.failures
    assert "bytes of reported settings, without an end" in recorder.calls[-1]


def test_settings_that_each_reset_reports_are_no_flood():
    """However many leases a connection sees."""
    answer, recorder = expecting(CLEAN)
    recorder.data_received = lambda data: None
    half = PARAMETER * (LONGEST_ANSWER_BYTES // len(PARAMETER) // 2)
    for _ in range(5):
        answer.data_received(half + CLEAN)
        answer.give_back()
        answer.send(RESET)
    assert not recorder.failures


def test_an_answer_that_is_given_up_has_not_cost_much_memory():
    """The largest message that is waited for is kept once, and copied at most twice for a moment."""
    answer, recorder = expecting(CLEAN)
    tracemalloc.start()
    answer.data_received(b"D" + LONGEST_ANSWER_BYTES.to_bytes(4, "big"))
    while recorder.current == "answer":
        answer.data_received(bytes(4096))
    left_bytes, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert_failed(answer, recorder)
    assert most_bytes < 4 * LONGEST_ANSWER_BYTES
    assert left_bytes < 100_000


def test_what_drips_in_is_not_copied_with_each_drop():
    """Half a message that comes byte by byte takes as long as it is, not as its square."""

    def seconds(size):
        answer, recorder = expecting()
        answer.data_received(b"D" + LONGEST_ANSWER_BYTES.to_bytes(4, "big"))
        began = time.process_time()
        for _ in range(size):
            answer.data_received(b"x")
        assert recorder.failures == []
        return time.process_time() - began

    short = min(seconds(50_000) for _ in range(3))
    assert min(seconds(200_000) for _ in range(2)) < 10 * short


def test_much_that_follows_the_answer_is_the_next_querys():
    """Only what comes before the answer's end counts towards its length."""
    answer, recorder = expecting()
    large = message(b"D", bytes(LONGEST_ANSWER_BYTES + 1))
    answer.data_received(NOTICE + CLEAN + large)
    assert_finished(answer, recorder, large)


def test_an_answer_that_was_given_up_leaves_nothing_for_the_next():
    """What a reset has counted, or kept of an unfinished message, is forgotten when the transport is given back."""
    answer, recorder = expecting()
    answer.data_received(completed() + completed() + b"C\0")
    answer.give_back()
    answer.send(RESET)
    answer.is_wanted = True
    answer.data_received(CLEAN)
    assert_finished(answer, recorder)


def on_guard():
    answer, recorder = expecting(is_wanted=False)
    answer.data_received(CLEAN)
    assert answer.is_on_guard
    assert not answer.is_due
    assert recorder.calls == ["transport to answer", "answered"]
    recorder.calls.clear()
    return answer, recorder


def test_on_guard_what_may_come_unasked_reaches_the_driver():
    """Cut anywhere, and also if somebody wants the connection in the middle of it."""
    unasked = NOTICE + PARAMETER + NOTIFICATION
    for cut in range(len(unasked) + 1):
        answer, recorder = on_guard()
        answer.data_received(unasked[:cut])
        answer.relieve()
        assert recorder.current == "driver"
        recorder.data_received(unasked[cut:])
        assert recorder.forwarded == unasked
        assert "session lost" not in str(recorder.calls)


@pytest.mark.parametrize("said", [SURPLUS, *BAD.values()], ids=["surplus", *BAD])
def test_on_guard_anything_else_is_the_end(said):
    """The driver would take it for the beginning of the next answer."""
    if said == b"\0\0\0\0\4":
        said += b"\0"
    for cut in range(len(said)):
        answer, recorder = on_guard()
        for piece in (said[:cut], said[cut:]):
            if recorder.current == "answer":
                answer.data_received(piece)
        assert "session lost" in str(recorder.calls)
        assert recorder.forwarded == b""
        assert recorder.failures == []
        assert not answer.is_on_guard


def test_a_surplus_that_nobody_has_asked_for_is_the_end():
    """It comes together with the reset's answer; if somebody has the connection by then, it may be his."""
    answer, recorder = expecting(is_wanted=False)
    answer.data_received(CLEAN + SURPLUS)
    assert "session lost" in str(recorder.calls)
    assert recorder.forwarded == b""


def test_a_lost_connection_is_the_drivers_to_hear():
    """The loss of the connection, and the transport's flow control, reach the driver while an answer is due."""
    answer, recorder = expecting()
    reason = OSError("gone")
    answer.pause_writing()
    answer.resume_writing()
    answer.connection_lost(reason)
    assert recorder.calls[1:] == [
        "pause",
        "resume",
        "transport to driver",
        ("lost", reason),
        "session lost: closed by the server",
    ]
    assert not answer.is_due


def test_giving_back_twice_is_once():
    """The transport is set to the driver's protocol once, however often it is given back."""
    answer, recorder = expecting()
    answer.give_back()
    answer.give_back()
    assert Counter(recorder.calls) == {"transport to answer": 1, "transport to driver": 1}
