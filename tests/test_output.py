"""What commands print commands no terminal, keeps to its line, and its loss is told."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

import servers
from loopaware_pool.cli import command
from loopaware_pool.cli.console import VisibleConsole
from loopaware_pool.cli.output import in_one_line, visible, visible_output
from running import child_process

pytestmark = pytest.mark.both_pythons

COMMAND = [sys.executable, "-m", "loopaware_pool"]
# Clears the screen, sets the title by C1's way, goes back, reverses the line, and has no width.
NASTY = "a\x1b[2J\x9d0;t\x07\x7f\r\u202e\u2066\u200b\u2028b"
NASTY_CHARS = {*NASTY} - {*"a[2J0;tb"}


def run(*arguments, **options):
    settings = {"capture_output": True, "timeout": 60, "check": False, "cwd": None}
    done = subprocess.run([*COMMAND, *arguments], **settings | options)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def assert_harmless(said, lines=None):
    assert not NASTY_CHARS & {*said}, said
    if lines is not None:
        assert said.count("\n") == lines, said


def test_what_can_be_seen_stays_as_it_is():
    """In whatever script: only what commands, turns around or hides is written out."""
    seen = (
        "tab\t, line\n, naïve, 東京, नमस्ते, \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645, 👩\u200d💻, no\u00a0break"
    )
    assert visible(seen) == seen
    assert visible(NASTY) == r"a\u001b[2J\u009d0;t\u0007\u007f\u000d\u202e\u2066\u200b\u2028b"
    assert visible("\U000e0041\udcff") == r"\U000e0041\udcff"
    assert in_one_line("a\tb\nc") == r"a\u0009b\u000ac"


@pytest.mark.parametrize("number", [*range(32), *range(127, 160)])
def test_no_control_character_is_let_through(number):
    """C0, DEL and C1, but for what makes lines and columns."""
    char = chr(number)
    assert visible(char) == (char if char in "\t\n" else f"\\u{number:04x}")


def test_json_means_the_same():
    """DEL is not escaped in JSON; written out, it is still itself."""
    out = io.StringIO()
    out.write(visible(json.dumps(NASTY)))
    assert_harmless(out.getvalue())
    assert json.loads(out.getvalue()) == NASTY


def test_all_that_is_printed_goes_through_it(capsys):
    """By anybody, to either stream; afterwards all is as it was."""
    before = sys.stdout, sys.stderr

    def work():
        sys.stdout.write(f"{NASTY}\n")
        sys.stdout.writelines([NASTY, "\n"])
        sys.stderr.write(NASTY)
        with visible_output():
            raise command.Unusable(f"{NASTY}\nlint: Nothing found")

    assert command.attempt("lint", work) == 2
    out, err = capsys.readouterr()
    assert_harmless(out, lines=2)
    assert_harmless(err, lines=1)
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_an_encoding_has_not_is_written_out(encoding, monkeypatch):
    """As the bytes of a file's name that are no text, too."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    with visible_output():
        sys.stdout.write("東京\udcff\n")
        sys.stdout.flush()
    said = raw.getvalue().decode(encoding)
    assert said == ("東京" if encoding == "utf-8" else r"\u6771\u4eac") + "\\udcff\n"


def test_rich_colours_what_is_made_visible(monkeypatch):
    """Its own sequences do their work."""
    out = io.StringIO()
    with visible_output():
        VisibleConsole(out, force_terminal=True, width=200, color_system="truecolor").print(NASTY, style="red")
    assert out.getvalue().startswith("\x1b[31m")
    assert_harmless(re.sub(r"\x1b\[\d*m", "", out.getvalue()))


# ---- each command, where something hostile is ----


@pytest.mark.parametrize("form", ["text", "github", "json"])
def test_lint_shows_a_files_name(form, tmp_path):
    """A folder of somebody else's may have any."""
    names = [os.fsencode("a\x1b[2J\n::error::b\u202e.py"), b"\xff\x1b.py"]
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text("import asyncpg\nasyncpg.connect()\n")
    code, out, err = run("lint", "--format", form, cwd=tmp_path)
    assert code == 1
    assert_harmless(out + err)
    if form == "text":
        assert out.count("\n") == 3
    if form == "json":
        assert {os.fsencode(each["path"]) for each in json.loads(out)["findings"]} == {*names}


@pytest.mark.parametrize(
    "arguments", [["lint", NASTY], ["probe", "x", NASTY], ["top", NASTY], ["audit", "--script", NASTY], [NASTY]]
)
def test_what_is_asked_for_is_shown(arguments):
    """A script may pass on what it has from somewhere."""
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert_harmless(err, lines=1)


REFUSING = """
import socket, sys
body = b"SFATAL\\0C28000\\0M" + bytes.fromhex(sys.argv[1]) + b"\\0\\0"
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    while True:
        client, _ = listener.accept()
        client.recv(1000)
        client.sendall(b"E" + (len(body) + 4).to_bytes(4, "big") + body)
        client.close()
"""


@pytest.mark.parametrize("name", ["probe", "doctor", "audit", "demo"])
@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_servers_words_are_shown(name, is_terminal):
    """It may be anybody's who took the port."""
    server = child_process([sys.executable, "-c", REFUSING, NASTY.encode().hex()], stdout=subprocess.PIPE, text=True)
    with server as process:
        port = int(process.stdout.readline())
        arguments = [name, f"postgresql://u@127.0.0.1:{port}/d?sslmode=disable"]
        arguments += ["--timeout=50"] if name == "probe" else []
        said = run_in_terminal(*arguments) if is_terminal else "".join(run(*arguments)[1:])
        process.kill()
    assert "a\\u001b[2J" in said
    assert_harmless(said.replace("\r\n", "\n"), lines=1)


def run_in_terminal(*arguments):
    ours, theirs = pty.openpty()
    shown = b""
    environment = os.environ | {"TERM": "dumb", "NO_COLOR": "1"}
    with child_process([*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment):
        os.close(theirs)
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:  # nobody has it open any more
            os.close(ours)
    return shown.decode()


def test_doctor_shows_a_roles_name(dsn):
    """Roles are created by whoever may."""
    role = NASTY.replace("\0", "") + "\nok  tls"
    with psycopg.connect(dsn, autocommit=True) as admin:
        named = psycopg.sql.Identifier(role)
        admin.execute(psycopg.sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x' CONNECTION LIMIT 3").format(named))
        try:
            code, out, err = run("doctor", servers.dsn_of_role(dsn, role, "x"))
        finally:
            admin.execute(psycopg.sql.SQL("DROP ROLE {}").format(named))
    assert (code, err) == (1, "")
    assert_harmless(out)
    assert "\\u001b[2J" in out
    assert "\nok  tls" not in out


# ---- where nothing can be written ----


@pytest.mark.parametrize("arguments", [["lint", "."], ["lint", "--json", "."], ["lint", "--rules"], ["top", "--help"]])
def test_a_full_disk_is_told_in_one_line(arguments, tmp_path):
    """And by the exit code."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, *arguments], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert done.returncode == 2
    assert done.stderr.decode() == f"{arguments[0]}: what it says cannot be written: No space left on device\n"


@pytest.mark.parametrize("redirection", [">/dev/full 2>&1", ">&-", "2>&-", ">&- 2>&-", "2>/dev/full"])
@pytest.mark.parametrize(("arguments", "code"), [("lint --rules", 0), ("lint nowhere", 2)])
def test_a_stream_that_is_closed_or_full_is_no_reason_to_fall_over(redirection, arguments, code, tmp_path):
    """The exit code says what it says."""
    command = [*COMMAND[:1], "-m", "loopaware_pool", *arguments.split()]
    done = subprocess.run(
        ["sh", "-c", f'"$@" {redirection}', "sh", *command], cwd=tmp_path, capture_output=True, timeout=60, check=False
    )
    assert b"Traceback" not in done.stderr + done.stdout
    assert b"Exception" not in done.stderr
    assert done.returncode == (2 if "full 2" in redirection else code)
