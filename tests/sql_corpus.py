"""
Statements to judge: what applications send, what becomes of it by chance, and every keyword where it could be a name.

All of it is made from a seed. The seed statements, and most of what they become, run on the tables of `TABLES`.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from pathlib import Path

from pglast import keywords

__all__ = [
    "KEYWORDS",
    "ORDINARY",
    "POSITIONS",
    "TABLES",
    "generated",
    "keywords_in_every_position",
    "mutated",
    "scattered",
]


def _lines(name):
    return (Path(__file__).parent / "sql" / name).read_text().splitlines()


TABLES = """
    CREATE TABLE orders (id int, name text, total numeric, kind text, placed timestamptz, data jsonb, tags text[]);
    CREATE TABLE late (id int, name text, since date);
    CREATE TABLE accounts (id int PRIMARY KEY, name text, balance numeric, changed timestamptz);
    CREATE SEQUENCE s;
    CREATE SCHEMA shop;
    CREATE TABLE shop."Orders" (id int, "Name" text);
"""
KEYWORDS = sorted(
    keywords.COL_NAME_KEYWORDS
    | keywords.RESERVED_KEYWORDS
    | keywords.TYPE_FUNC_NAME_KEYWORDS
    | keywords.UNRESERVED_KEYWORDS
)
ORDINARY = _lines("ordinary.sql")
_POSITIONS = _lines("positions.sql")  # wherever an expression can begin, and where a name can be something else
_CALLS = _lines("calls.sql")  # how a name can call something
POSITIONS = (len(KEYWORDS) + 1) * len(_CALLS) * len(_POSITIONS)

_TOKEN = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|[0-9]+\.[0-9]+|\w+|::|:=|[-+*<>=~!@%^&|#?]+|\S")
_GAPS = ["", "\n", "\t", "\v", "/**/", "/* x */", "--x\n", "/* ' */", "--'\n", "/* /* */", "/* /* */ ' */", "*/"]
_MARKS = ["'", '"', "/*", "*/", "--", "\n"]
_GRAMMAR = defaultdict(list, word=KEYWORDS, string=_lines("strings.txt"), sign=_lines("signs.txt"))
for _rule in _lines("grammar.txt"):
    _GRAMMAR[_rule.partition(":")[0]].append(_rule.partition(":")[2].strip())
_SYMBOL = re.compile("<([a-z]+)>")
_LEAVES = {"alias", "column", "literal", "name", "relation", "string", "system", "type", "word"}
DEEPEST = 5
# What ends a statement that has become deep.
_SHALLOW = {
    symbol: [one for one in choices if _LEAVES.issuperset(_SYMBOL.findall(one))] or choices[:1]
    for symbol, choices in _GRAMMAR.items()
}


def keywords_in_every_position():
    """Write each keyword, and a name that is none, in each of the ways to call it, wherever a name can stand."""
    for keyword in [*KEYWORDS, "mine"]:
        for call in _CALLS:
            text = call.format(keyword, "mine")
            for position in _POSITIONS:
                yield position.replace("{}", text)


def generated(seed, count):
    """Write *count* statements by the rules of `sql/grammar.txt`, where a keyword can take the place of any name."""
    chance = random.Random(seed)
    for _ in range(count):
        text = _expanded("statement", chance, depth=0)
        yield text if chance.random() < 0.7 else _spaced(_TOKEN.findall(text), chance)


def mutated(seed, count):
    """Change ordinary statements by chance, *count* times."""
    chance = random.Random(seed)
    for _ in range(count):
        tokens = _TOKEN.findall(chance.choice(ORDINARY))
        for _ in range(chance.choice((1, 1, 1, 1, 2, 3))):
            _mutate(tokens, chance)
        yield _spaced(tokens, chance)


def scattered(seed, count):
    """Begin and end strings, names and comments at random, with a call among them, *count* times."""
    chance = random.Random(seed)
    for _ in range(count):
        marks = [*chance.sample(_MARKS, 3), chance.choice(_GRAMMAR["mark"])]
        pieces = [*chance.choices(marks, k=chance.randrange(2, 10)), ", mine(1)"]
        chance.shuffle(pieces)
        yield f"SELECT 1 {chance.choice(('', ' ')).join(pieces)}"


def _expanded(symbol, chance, depth):
    choices = _GRAMMAR[symbol] if depth < DEEPEST else _SHALLOW[symbol]
    return _SYMBOL.sub(lambda match: _expanded(match[1], chance, depth + 1), chance.choice(choices))


def _mutate(tokens, chance):
    i = chance.randrange(len(tokens) + 1)
    j = min(len(tokens), i + chance.choice((0, 0, 1, 1, 1, 2, 3)))
    kind = chance.random()
    if kind < 0.4:
        _exchange_operand(tokens, chance)
    elif kind < 0.6:
        tokens[i:j] = [_piece(chance)]
    elif kind < 0.7:
        tokens[i:j] = []
    elif kind < 0.8:
        tokens[i:i] = tokens[j : j + chance.randrange(1, 8)]
    elif kind < 0.9:
        other = _TOKEN.findall(chance.choice(ORDINARY))
        k = chance.randrange(len(other))
        tokens[i:j] = other[k : k + chance.randrange(1, 12)]
    else:
        tokens[i:j] = ["(", *tokens[i:j], ")"]


def _exchange_operand(tokens, chance):
    """Put something in the place of a name, a number or a string; keywords are written in capitals there."""
    operands = [i for i, token in enumerate(tokens) if re.match("['a-z0-9]", token)]
    if operands:
        tokens[chance.choice(operands)] = _piece(chance, ("call", "expr"))


def _piece(chance, kinds=("call", "call", "expr", "word", "word", "string", "sign", "sign", "system")):
    kind = chance.choice(kinds)
    if kind == "call":
        return chance.choice(_CALLS).format(chance.choice(KEYWORDS), chance.choice([*KEYWORDS, "mine"]))
    return _expanded(kind, chance, DEEPEST - 1)


def _spaced(tokens, chance):
    gaps = [" "] * 20 + chance.choices(_GAPS, k=chance.choice((0, 1, 2)))
    return "".join(token + chance.choice(gaps) for token in tokens)
