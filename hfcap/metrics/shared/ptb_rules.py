"""Token patterns that reproduce the tokenisation of the COCO caption evaluation.

Found by black-box experiments: the Java tool was given every word of up to four letters, pairs of word endings and
apostrophes, every character of the Basic Multilingual Plane, and all captions of COCO 2014, and only its output was
looked at (scripts/conformance_tokenizer.py repeats the last of these). The alternatives of the pattern are tried in
order at each position; characters that none of them matches (white space, controls, emoji) separate tokens and vanish.
"""

from __future__ import annotations

from functools import cache

import regex

_ALWAYS_ABBREVIATED = """
    al cf co ct dr ft ga jr ky lt md mo mr ms mt ph rd rt sq sr st va vs vt wm
    adj adm adv ala apr aug ave bhd cie col cos cpl dak dec det drs ens esq est etc ext feb fla fri gen gov hon inc ind
    jan jos jul jun kan ltd maj mar mfg mme mon mrs mtg neb nev nov oct pfc plc pte pty pvt rep rev sen sep seq sfc sgt
    spc ste sys tel thu tue wed wis wyo alex ariz assn asst atty attys bancorp bldg blvd brig bros calif capt cmdr colo
    conn corp dept elec govs insp intl invt kans messrs mich minn mlle mont msgr natl okla penn ppte ppty pres prof
    profs ptes ptys reps sens sept supt supts tenn tues univ wisc
"""

_ABBREVIATED_WHEN_CAPITALISED = ("ark", "az", "del", "ill", "la", "mass", "miss", "ore", "pa", "tex", "wash")

_ABBREVIATED_BEFORE_A_NUMBER = "art ca fig figs no nos op pp prop"


_SENTENCE_STARTERS = """
    a about according after an as at but earlier he her here if in it many more now one other our she since so some such
    that the their then there these they this we what when while yet you
"""


def _any_of(words: str) -> str:
    return "|".join(sorted(words.split(), key=lambda word: (-len(word), word)))


_APOSTROPHE = "['\u2019\x92]"
_LETTER = r"\p{L}"
_CHARACTER = r"[\p{L}\p{M}\p{Nd}\u00ad]"
_ENDS = rf"(?!{_CHARACTER})"
_WORD = rf"{_CHARACTER}+(?:_{_CHARACTER}+)*"
_ENDING = "(?:[smd]|ll|re|ve)"
_CLITIC = rf"{_APOSTROPHE}{_ENDING}{_ENDS}"
_NOT = rf"n{_APOSTROPHE}t{_ENDS}"
_CAPITALISED = "|".join(f"{word[0].upper()}(?:{word[1:]}|{word[1:].upper()})" for word in _ABBREVIATED_WHEN_CAPITALISED)
_STARTER = rf"(?=(?-i:\p{{Lu}}))(?:{_any_of(_SENTENCE_STARTERS)}){_ENDS}"

# An apostrophe that stays inside its word: d'art, o'clock, ho'ohu.
_ELIDED = (
    rf"(?:[dlno]{_APOSTROPHE}(?={_LETTER}{{2}})|{_CHARACTER}*[aeiou]{_APOSTROPHE}(?=[aeiou])"
    rf"|c{_APOSTROPHE}(?=(?:est|mon){_ENDS}))(?!{_ENDING}{_ENDS}){_WORD}"
)
_PART = rf"(?:{_ELIDED}|{_WORD})"
_HYPHENS = rf"(?:-{_PART})"
_ALONE = r"(?![\p{L}\p{Nd}'\u2019-])"

# What the Java tool takes for a label of a web address: no capitals, no digits.
_NAME = r"[^\s\"`'<>|!?(){},\x2c-\x5f$]+"

_SYMBOLS = (
    r"[\x21-\x7e\x80\u00a1-\u00bf\u00d7\u00f7\u037e\u0387\u0589\u05be\u05c0\u05c3\u05f3\u05f4\u0606-\u060c\u061b\u061e"
    r"\u061f\u066a\u066d\u06d4\u0964\u0965\u0e3f\u0e4f\u2013-\u2023\u2026\u2030-\u2038\u2039-\u203b\u203e-\u2042\u2044"
    r"\u2070-\u208e\u20a0\u20a4\u20ac\u2100-\u214f\u2153-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff65"
    r"\uffe0\uffe1\uffe5\uffe6--[\p{L}\p{M}\p{Nd}]]"
)

_TOKEN = "|".join(
    (
        r"</?!?[a-z][^\s<>]*>",
        r"&(?:amp|lt|gt|quot|apos|nbsp);|&(?:[a-z]+(?:acute|grave|uml|circ|tilde|cedil|slash)|\#\d+);",
        r"(?:https?|ftp)://[^\s\"<>]*[^\s\"<>.,;:!?)(\]'-]",
        rf"(?-i:(?:{_NAME}\.)+(?:com|net|org|edu))/[^\s\"<>|()]+[^\s\"<>|.!?(){{}},-]",
        r"\([0-9]{2,3}\)[ \u00a0]?[0-9]{3,4}[- \u00a0]?[0-9]{3,5}",
        r"-(?:[lr][rcs]b)-",
        r"[\w.%+-]*[\p{L}\p{Nd}]@[\p{L}\p{Nd}][\w-]*(?:\.[\w-]+)*",
        rf"\#{{2,}}|@{{2,}}|[@\#]{_LETTER}\w*",
        rf"(?-i:[<>]?[:;=][-o*']?[\(\)DPpdO\\\{{@|\[\]]|[xX]D){_ENDS}|\^_\^|-_-",
        # Numbers: dates and fractions; times and decimals; signed integers; '20s.
        r"\d+/\d+(?:/\d+)?(?![\p{L}\p{Nd}_-])",
        r"[+-]?\d+(?:[.,:]\d+)+|[+-]?(?:[.,:]\d+)+",
        rf"[+-]\d+{_ENDS}",
        rf"{_APOSTROPHE}\d\ds{_ENDS}(?!{_APOSTROPHE})",
        # The split words of the Penn Treebank.
        rf"can(?=not{_ALONE})|(?:gon(?=na)|got(?=ta)|wan(?=na)|lem(?=me)|gim(?=me))(?=..{_ALONE})",
        rf"{_APOSTROPHE}t(?=(?:is|was){_ENDS})",
        rf"{_PART}{_HYPHENS}+(?:/{_PART}{_HYPHENS}*)*|{_PART}(?:/{_PART}{_HYPHENS}*)+",
        rf"(?:(?!{_NOT}){_CHARACTER})+(?={_NOT})|{_NOT}|{_CLITIC}|{_ELIDED}",
        rf"{_APOSTROPHE}(?:em(?!{_CHARACTER}{{2}})|n(?:{_APOSTROPHE}|(?=\s|$))|(?:till?|cause){_ENDS})",
        rf"(?<={_LETTER}){_APOSTROPHE}n{_ENDS}",
        rf"[jy]{_APOSTROPHE}(?={_LETTER})|[djl]{_APOSTROPHE}|(?:dunkin|somethin|ol){_APOSTROPHE}{_ENDS}",
        # Abbreviations keep their dot; that of a single letter ends a sentence that visibly ends.
        rf"{_LETTER}(?=\.(?:\s*$|\s+{_STARTER}))",
        rf"(?:{_LETTER}\.)+(?:{_LETTER}(?!{_CHARACTER}|\.))?(?!{_LETTER})(?:-{_WORD})?",
        rf"(?:{_any_of(_ALWAYS_ABBREVIATED)}|(?-i:{_CAPITALISED})|ph\.d)\.(?!{_LETTER})",
        rf"(?:{_any_of(_ABBREVIATED_BEFORE_A_NUMBER)})\.(?=\s*\d)",
        rf"(?!\d){_CHARACTER}+(?:\.(?={_LETTER}){_CHARACTER}+)+",
        rf"{_PART}\.(?=[,;:])",
        r"(?-i:\p{Lu}+(?:&\p{Lu}+)+)",
        rf"(?:c\+\+|[cf]\#){_ENDS}|(?:us|a|c|nz|hk)\$(?=\d)",
        _WORD,
        r"\.\.\.|--+|[!?]+|\*+|_+|``|''|<<|>>",
        _SYMBOLS,
    )
)


@cache
def token_pattern() -> regex.Pattern[str]:
    """Return the pattern of one token; compiled when it is first asked for, since that takes 0.2 s."""
    return regex.compile(_TOKEN, regex.IGNORECASE | regex.V1)


NEEDS_CONTEXT = regex.compile(
    rf"(?<![\p{{L}}\p{{M}}\p{{Nd}}.])(?:{_LETTER}|{_any_of(_ABBREVIATED_BEFORE_A_NUMBER)})\.$|\([0-9]{{2,3}}\)$"
    r"|\([0-9]{2,3}\)[0-9]{3,4}$",
    regex.IGNORECASE | regex.V1,
)
"""Pieces between white space whose tokens depend on what follows them."""

_EVERY_ABBREVIATION = (_ALWAYS_ABBREVIATED + _ABBREVIATED_BEFORE_A_NUMBER).split()
_SPLIT = ("cannot", "gonna", "gotta", "wanna", "lemme", "gimme")
SPLIT_OR_ABBREVIATED = frozenset((*_SPLIT, *_ABBREVIATED_WHEN_CAPITALISED, *_EVERY_ABBREVIATION))
"""Words without apostrophe that are not one token, or that may keep a dot."""

SPELLING = str.maketrans({"\u2019": "'", "\x92": "'", "\u00ad": None})
"""Characters that the Java tool unifies inside words."""

REWRITTEN = {
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "\x80": "$",
    "\u00a4": "$",
    "\u20a0": "$",
    "\u20ac": "$",
    "\u00a3": "#",
    "\u00a2": "cents",
    "\u00bd": "1/2",
    "\u00bc": "1/4",
    "\u00be": "3/4",
    "\u2153": "1/3",
    "\u2154": "2/3",
}
"""Tokens that the Java tool writes differently."""

_TYPOGRAPHIC = "\u2013\u2014\u2015\u2018\u2019\u201b\u201c\u201d\u2026\u00ab\u00bb\u2039\u203a\x92"
_ENTITIES = ("&quot;", "&apos;", "&nbsp;")
REMOVED = frozenset(("'", "''", "`", "``", ".", "?", "!", ",", ":", ";", "-", "...", '"', *_TYPOGRAPHIC, *_ENTITIES))
"""What the punctuation filter of the COCO evaluation removes, in every spelling that the Java tool maps to it.

Runs of hyphens are removed too, whatever their length.
"""
