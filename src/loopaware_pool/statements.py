"""
Which statements leave a session as they found it, told from their text alone.

A statement is harmless if nothing that it says could change what a session reset restores: settings, role, advisory
locks, listeners, open cursors. The judgement is conservative. A statement is read token by token, and whatever is not
known to do no harm may do some: another kind of statement, a second one behind it, a function that is not in the list
below, a type that is not, a character that could mean the text is to be read otherwise.

What the text does not say cannot be judged: a function that the server calls of its own accord, for a trigger, a view,
a rule, a policy, an operator, a cast, a default or a constraint, one of yours that overloads the name of one in the
list, and one that is written as if it were a column (`row.function`).

To judge a text takes about a microsecond for each of its words. A program that writes its values into its statements
never sends one twice, and would pay for each. So a text is judged when it comes a second time.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

__all__ = ["is_harmless", "is_known_harmless"]

LONGEST_STATEMENT: Final = 4000  # characters; whatever is longer is not looked at
STATEMENTS_REMEMBERED: Final = 2000

_TOKEN: Final = re.compile(
    r"""
      (?P<gap>       [ \t\n\r\f\v]+ | --[^\n\r]* | /\*(?:(?!/\*|\*/).)*\*/ )
    | (?P<string>    '(?:[^']|'')*' )
    | (?P<quoted>    "(?:[^"]|"")+" )
    | (?P<word>      [A-Za-z_\u0080-\U0010ffff][A-Za-z0-9_$\u0080-\U0010ffff]* )
    | (?P<value>     \$[0-9]+ | [0-9]+(?:\.[0-9]*)? | \.[0-9]+ )
    | (?P<cast>      :: )
    | (?P<sign>      [-()\[\],.;:=<>+*/%^&|~!@\#?] )
    """,
    re.VERBOSE | re.DOTALL,
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_STATEMENTS: Final = _words("select with values insert update delete")
# What begins or ends a transaction, or a part of one. No expression has a place in it, so nothing is called.
_TRANSACTION_CONTROL: Final = _words("begin start commit end rollback abort savepoint release")

# Reserved, or at least no name for a function or a type, so that what follows is an expression, a list or a query.
_KEYWORDS: Final = _words(
    "all and any array as between case distinct else except exists from group having in intersect lateral limit not "
    "offset on or returning select some then to union using values when where"
)
# Keywords that could name a function, but not behind these.
_KEYWORDS_BEHIND: Final = {
    "by": _words("group order partition"),
    "conflict": _words("on"),
    "filter": _words(")"),
    "materialized": _words("as not"),
    "over": _words(")"),
    "zone": _words("time"),
}
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
_seen_once: Final[set[int]] = set()  # hashes: two texts of one hash cost a judgement, not a wrong one


def is_known_harmless(statement: str) -> bool:
    """
    Tell whether *statement* is known to leave the session as it is.

    Args:
        statement: SQL, as the server gets it.

    Returns:
        What `is_harmless` says of a text that has come before; False of one that is new or too long.
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
    verdict = _verdicts[statement] = is_harmless(statement)
    return verdict


def is_harmless(statement: str) -> bool:
    """
    Tell whether *statement* leaves the session as it is, as far as its text can tell (see above).

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
    words = {token.text for token in tokens}
    if tokens[0].text in _TRANSACTION_CONTROL:
        return "prepared" not in words and ";" not in words
    if tokens[0].text not in _STATEMENTS:
        return False
    if "conflict" in words and "join" in words:
        return False  # `on conflict (`: a clause of the first, or a call in the condition of the second
    names = _names_written_to(tokens)
    return all(
        _is_known(tokens[i], *_before(tokens, i), *_after(tokens, i)) for i in range(len(tokens)) if i not in names
    )


def _tokens(statement: str) -> list[_Token]:
    """Take *statement* apart, words in lower case; nothing if it cannot be, or if there is more than one in it."""
    tokens: list[_Token] = []
    position = 0
    while position < len(statement):
        match = _TOKEN.match(statement, position)
        if match is None:
            return []
        kind, text = str(match.lastgroup), match.group()
        if kind == "word":
            # Of a string's prefix, none but these are told from a type's name by the lack of a space.
            is_prefix = text.lower() in _PREFIXES_OF_STRINGS and statement.startswith("'", match.end())
            if not is_prefix:
                tokens.append(_Token(kind, text.lower() if text.isascii() else text))
        elif kind != "gap":
            tokens.append(_Token(kind, text))
        position = match.end()
    while tokens and tokens[-1].text == ";":
        tokens.pop()
    return tokens


def _before(tokens: list[_Token], i: int) -> tuple[_Token, _Token]:
    return (tokens[i - 2] if i > 1 else _NONE), (tokens[i - 1] if i else _NONE)


def _after(tokens: list[_Token], i: int) -> tuple[_Token, _Token]:
    return (tokens[i + 1] if i + 1 < len(tokens) else _NONE), (tokens[i + 2] if i + 2 < len(tokens) else _NONE)


def _names_written_to(tokens: list[_Token]) -> set[int]:
    """Find the words of `INSERT INTO schema.table`, behind which a list of columns may stand that is no call."""
    found: set[int] = set()
    for i in range(2, len(tokens)):
        if tokens[i - 2].text == "insert" and tokens[i - 1].text == "into":
            while i < len(tokens) and (tokens[i].kind in ("word", "quoted") or tokens[i].text == "."):
                found.add(i)
                i += 1
                if tokens[i - 1].text != "." and (i == len(tokens) or tokens[i].text != "."):
                    break
    return found


def _is_known(token: _Token, before_last: _Token, last: _Token, following: _Token, next_but_one: _Token) -> bool:
    """Whether *token* does no harm where it stands."""
    if token.kind == "word":
        return _is_known_word(token.text, before_last, last, following)
    if token.kind == "quoted":
        return following.text != "(" and following.kind != "string"
    if token.kind == "cast":
        return following.text in _TYPES and next_but_one.text not in (".", "(")
    return token.text != ";"


def _is_known_word(word: str, before_last: _Token, last: _Token, following: _Token) -> bool:
    if word == "into":
        return last.text == "insert"
    if word == "uescape" or (word == "u" and following.text == "&"):
        return False
    if following.text == "(":
        return _is_keyword(word, last) or (word in _FUNCTIONS and last.text != ".")
    if following.kind == "string":
        return _is_keyword(word, last) or _takes_string(word, before_last, last)
    return True


def _is_keyword(word: str, last: _Token) -> bool:
    """Whether *word* can only be a keyword, behind *last*."""
    if last.text == ".":
        return False
    return word in _KEYWORDS or last.text in _KEYWORDS_BEHIND.get(word, ())


def _takes_string(word: str, before_last: _Token, last: _Token) -> bool:
    """Whether a string behind *word* is an operand, or a literal of a type that the server itself brings along."""
    if word in ("like", "ilike"):
        return _is_operand(before_last if last.text == "not" else last)
    return word in _TYPES_OF_LITERALS and last.text != "."


def _is_operand(token: _Token) -> bool:
    """Whether an expression can end with *token*."""
    if token.kind == "word":
        return token.text not in _KEYWORDS
    return token.kind in ("quoted", "value", "string") or token.text in (")", "]")
