"""
Which statements leave a session unchanged, judged by their text alone.

A statement is harmless if nothing in it could change what a session reset restores: settings, role, advisory locks,
listeners, open cursors. The judgement is conservative. A statement is read token by token, and anything that is not
known to be harmless counts as harmful: another kind of statement, a second statement, a function or a type that is not
listed below, a character that could give the text another meaning.

The text does not show everything. It does not show the functions that the server calls for a trigger, a view, a rule, a
policy, an operator, a cast, a default or a constraint. It does not show that a function or type of the user's has a
listed name, or that a function of the user's is written like a column (`row.function`).

PostgreSQL tells keywords from names by a grammar; this module does by the neighbouring words. A word that could be
either counts as a name. Tests compare the two on many statements, with every keyword of the grammar in every position.

Judging a text takes about a microsecond for each of its words. A program that writes its values into its statements
never sends one twice, and would pay for each. So a text is judged when it comes a second time.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

__all__ = ["is_known_to_leave_session_unchanged", "leaves_session_unchanged"]

LONGEST_STATEMENT: Final = 4000  # characters; whatever is longer is not looked at
STATEMENTS_REMEMBERED: Final = 2000

# Comments nest. A comment that contains another does not match here, and its slash is no sign either, so that such a
# text is not judged.
_TOKEN: Final = re.compile(
    r"""
      (?P<gap>       [ \t\n\r\f\v]+ | --[^\n\r]* | /\*(?:(?!/\*|\*/).)*\*/ )
    | (?P<string>    '(?:[^']|'')*' )
    | (?P<quoted>    "(?:[^"]|"")+" )
    | (?P<word>      [A-Za-z_\u0080-\U0010ffff][A-Za-z0-9_$\u0080-\U0010ffff]* )
    | (?P<value>     \$[0-9]+ | [0-9]+(?:\.[0-9]*)? | \.[0-9]+ )
    | (?P<cast>      :: )
    | (?P<sign>      /(?!\*) | [-()\[\],.;:=<>+*%^&|~!@\#?] )
    """,
    re.VERBOSE | re.DOTALL,
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_STATEMENTS: Final = _words("select with values insert update delete")
_WRITES: Final = _words("insert update delete")
# Begin or end a transaction, or a part of one. They contain no expression, so they call nothing.
_TRANSACTION_CONTROL: Final = _words("begin start commit end rollback abort savepoint release")

# Keywords that name no function and no type, so that an expression, a list or a query follows.
_KEYWORDS: Final = _words(
    "all and any array as between case distinct else except exists from group having in intersect lateral limit not "
    "offset on or returning select some then to union using values when where"
)
# Keywords that could name a function or a type, but not behind these.
_KEYWORDS_BEHIND: Final = {"by": _words("group order partition"), "zone": _words("time")}
# Words before an operand: behind these, `like 'x'` is a literal of a type called "like".
_BEFORE_OPERANDS: Final = _KEYWORDS | _words(
    "asymmetric both by default escape first for groups ilike leading like next placing range rows symmetric trailing "
    "variadic zone"
)
_FUNCTIONS: Final = _words(
    """
    abs age array_agg array_append array_length array_position array_remove array_to_json array_to_string avg bit_and
    bit_length bit_or bool_and bool_or btrim cardinality ceil ceiling char_length clock_timestamp coalesce concat
    concat_ws count cume_dist current_database current_schema current_setting date_bin date_part date_trunc decode
    dense_rank div encode every exp extract first_value floor format gen_random_uuid generate_series greatest hashtext
    initcap json_agg json_array_elements json_array_length json_build_array json_build_object json_each
    json_extract_path json_extract_path_text json_object_agg json_typeof jsonb_agg jsonb_array_elements
    jsonb_array_elements_text jsonb_array_length jsonb_build_array jsonb_build_object jsonb_each jsonb_each_text
    jsonb_extract_path jsonb_extract_path_text jsonb_object_agg jsonb_object_keys jsonb_set jsonb_strip_nulls
    jsonb_typeof
     lag last_value lastval lead least left length ln log lower lpad ltrim make_date
    make_interval make_timestamptz max md5 min mod mode nextval now nth_value ntile nullif octet_length overlay
    percent_rank percentile_cont percentile_disc pg_advisory_xact_lock pg_backend_pid pg_notify pg_sleep
    pg_try_advisory_xact_lock pg_typeof position power quote_ident quote_literal random rank regexp_matches
    regexp_replace regexp_split_to_array repeat replace reverse right round row row_number row_to_json rpad rtrim sha256
    sign split_part sqrt starts_with statement_timestamp stddev string_agg string_to_array strpos substr substring sum
    to_char to_date to_json to_jsonb to_number to_timestamp transaction_timestamp translate trim trunc unnest upper
    variance version websearch_to_tsquery width_bucket plainto_tsquery phraseto_tsquery to_tsquery to_tsvector ts_rank
    """
)
# Prefixes of functions that take one argument and may leave something.
_CALLED_AS_COLUMNS: Final = ("pg_advisory_", "pg_try_advisory_", "pg_replication_origin_", "setseed", "ts_stat")
_TYPES: Final = _words(
    """
    bigint bit bool boolean bytea char character cidr date decimal double float float4 float8 inet int int2 int4 int8
    integer interval json jsonb macaddr money name numeric oid real regclass regtype smallint text time timestamp
    timestamptz timetz uuid varchar xml
    """
)
_TYPES_OF_LITERALS: Final = _words("date interval time timestamp timestamptz uuid")
_PREFIXES_OF_STRINGS: Final = _words("b e n x")


class _Token(NamedTuple):
    kind: str
    text: str


_NONE: Final = _Token("", "")


_verdicts: Final[dict[str, bool]] = {}
_seen_once: Final[set[int]] = set()  # hashes: a collision costs a needless judgement, not a wrong one


def is_known_to_leave_session_unchanged(statement: str) -> bool:
    """
    Tell whether *statement* is known to leave the session as it is.

    Args:
        statement: SQL, as the server gets it.

    Returns:
        The result of `leaves_session_unchanged` for a text that has come before; False for a new text, or a long one.
    """
    if len(statement) > LONGEST_STATEMENT:
        return False
    verdict = _verdicts.get(statement)
    return _judge_if_seen(statement) if verdict is None else verdict


def _judge_if_seen(statement: str) -> bool:
    mark = hash(statement)
    if mark not in _seen_once:
        if len(_seen_once) >= STATEMENTS_REMEMBERED:
            _seen_once.clear()
        _seen_once.add(mark)
        return False
    if len(_verdicts) >= STATEMENTS_REMEMBERED:
        _verdicts.clear()
    verdict = _verdicts[statement] = leaves_session_unchanged(statement)
    return verdict


def leaves_session_unchanged(statement: str) -> bool:
    """
    Tell whether *statement* leaves the session as it is, as far as its text shows (see above).

    Args:
        statement: SQL, as the server gets it.

    Returns:
        False if it may not, or if that is not known.
    """
    # A backslash may make a string end elsewhere, depending on a setting.
    if len(statement) > LONGEST_STATEMENT or "\\" in statement:
        return False
    tokens = _tokens(statement)
    if not tokens:
        return False
    if tokens[0].text in _TRANSACTION_CONTROL:
        return all(token.text not in ("prepared", ";") for token in tokens)
    return tokens[0].text in _STATEMENTS and _is_harmless_statement([_NONE, _NONE, *tokens, _NONE, _NONE])


def _is_harmless_statement(tokens: list[_Token]) -> bool:
    words = {token.text for token in tokens}
    if "conflict" in words and "join" in words:
        return False  # `on conflict (`: a clause of the first, or a call in the condition of the second
    targets = _names_written_to(tokens)
    if not words.isdisjoint(_WRITES) and _names_a_system_relation(tokens, targets):
        return False
    return all(_is_known(tokens, i) for i in range(2, len(tokens) - 2) if i not in targets)


def _tokens(statement: str) -> list[_Token]:
    """
    Split *statement* into tokens, words in lower case. Empty if that is not possible, or if it has several statements.
    """
    tokens: list[_Token] = []
    position = 0
    while position < len(statement):
        match = _TOKEN.match(statement, position)
        if match is None:
            return []
        kind, text = str(match.lastgroup), match.group()
        if kind == "word":
            # Only these prefixes of strings are told from type names by the missing space.
            is_prefix = text.lower() in _PREFIXES_OF_STRINGS and statement.startswith("'", match.end())
            if not is_prefix:
                tokens.append(_Token(kind, text.lower() if text.isascii() else text))
        elif kind != "gap":
            tokens.append(_Token(kind, text))
        position = match.end()
    while tokens and tokens[-1].text == ";":
        tokens.pop()
    return tokens


def _names_written_to(tokens: list[_Token]) -> set[int]:
    """Find the words of `INSERT INTO schema.table`. The parenthesis behind them is a list of columns, not a call."""
    found: set[int] = set()
    for i in range(2, len(tokens)):
        if tokens[i - 2].text == "insert" and tokens[i - 1].text == "into":
            while i < len(tokens) and (tokens[i].kind in ("word", "quoted") or tokens[i].text == "."):
                found.add(i)
                i += 1
                if tokens[i - 1].text != "." and (i == len(tokens) or tokens[i].text != "."):
                    break
    return found


def _names_a_system_relation(tokens: list[_Token], targets: set[int]) -> bool:
    """
    Whether a system table or view may be written to: an update of `pg_settings` changes settings.

    In a statement that writes, any name with such a prefix counts, unless it is that of a call.
    """
    return any(
        tokens[i].text.lstrip('"').startswith(("pg_", "information_schema"))
        and (i in targets or tokens[i + 1].text != "(")
        for i in range(len(tokens))
        if tokens[i].kind in ("word", "quoted")
    )


def _may_be_called_as_column(tokens: list[_Token], i: int) -> bool:
    """Whether a name behind a dot may call a function of the server's: `(5::bigint).pg_advisory_lock` takes a lock."""
    return tokens[i - 1].text == "." and tokens[i].text.strip('"').startswith(_CALLED_AS_COLUMNS)


def _is_known(tokens: list[_Token], i: int) -> bool:
    """Whether a token is known to be harmless where it stands."""
    kind, text = tokens[i]
    if kind in ("word", "quoted") and _may_be_called_as_column(tokens, i):
        return False
    if kind == "word":
        return _is_known_word(tokens, i)
    following = tokens[i + 1]
    if kind == "quoted":
        return following.text != "(" and following.kind != "string"
    if kind == "cast":
        return following.text in _TYPES and tokens[i + 2].text not in (".", "(")
    if kind == "string":
        # `schema.n'x'` and `count(1) 'x'`: literals of the types schema.nchar and count.
        return tokens[i - 1].text not in (".", ")")
    return text != ";"


def _is_known_word(tokens: list[_Token], i: int) -> bool:
    word, following = tokens[i].text, tokens[i + 1]
    if word == "into":
        return tokens[i - 1].text == "insert" and not _is_in_select(tokens, i)
    if word == "uescape" or (word == "u" and following.text == "&"):
        return False
    if following.text == "(":
        return _is_keyword(tokens, i) or _begins_clause(tokens, i) or _is_call_of_known_function(tokens, i)
    if following.kind == "string":
        return _is_keyword(tokens, i) or _takes_string(tokens, i)
    return True


def _is_keyword(tokens: list[_Token], i: int) -> bool:
    """Whether a word can only be a keyword."""
    word, last = tokens[i].text, tokens[i - 1].text
    return last != "." and (word in _KEYWORDS or last in _KEYWORDS_BEHIND.get(word, ()))


def _begins_clause(tokens: list[_Token], i: int) -> bool:
    """Whether a word before a parenthesis begins a clause, and so is no function's name."""
    word, last = tokens[i].text, tokens[i - 1].text
    if word == "conflict":
        return last == "on"
    if word == "materialized":
        return last == "as" or (last == "not" and tokens[i - 2].text == "as")
    if word == "filter":
        return last == ")" and tokens[i + 2].text == "where"
    if word == "over":  # behind `distinct on (a)`, an expression may begin
        return last == ")" and _is_behind_call(tokens, i)
    return False


def _is_call_of_known_function(tokens: list[_Token], i: int) -> bool:
    return tokens[i].text in _FUNCTIONS and tokens[i - 1].text not in (".", "tablesample")


def _is_behind_call(tokens: list[_Token], i: int) -> bool:
    """Whether the parenthesis that closes before a token is that of a call, or of its filter."""
    opening = _opening(tokens, i - 1)
    return tokens[opening - 1].text == "filter" or _is_call_of_known_function(tokens, opening - 1)


def _is_in_select(tokens: list[_Token], i: int) -> bool:
    """Whether a SELECT precedes a token on its level. Then `insert into` may be a column and the clause INTO."""
    while i > 0:
        i -= 1
        if tokens[i].text == ")":
            i = _opening(tokens, i)
        elif tokens[i].text in ("(", "select"):
            return tokens[i].text == "select"
    return False


def _opening(tokens: list[_Token], i: int) -> int:
    """Find where the parenthesis that closes at a token is opened; 0 if nowhere."""
    depth = 1
    while depth and i > 0:
        i -= 1
        depth += (tokens[i].text == ")") - (tokens[i].text == "(")
    return i


def _takes_string(tokens: list[_Token], i: int) -> bool:
    """Whether a string behind a word is an operand, or a literal of one of the server's own types."""
    word, last = tokens[i].text, tokens[i - 1].text
    if word in ("like", "ilike"):
        return _ends_operand(tokens, i - 2 if last == "not" else i - 1)
    return word in _TYPES_OF_LITERALS and last != "."


def _ends_operand(tokens: list[_Token], i: int) -> bool:
    """Whether an expression ends with a token."""
    kind, text = tokens[i]
    if text == ")":
        return tokens[_opening(tokens, i) - 1].text != "on"  # behind `distinct on (a)`, an expression may begin
    if kind == "word":
        return text not in _BEFORE_OPERANDS or tokens[i - 1].text == "."
    return kind in ("quoted", "value", "string") or text == "]"
