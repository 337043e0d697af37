"""Token patterns that reproduce the tokenisation of the COCO caption evaluation.

Found by black-box experiments: the Java tool was given every word of up to four letters, every pair of word endings
and apostrophes, and all captions of COCO 2014, and only its output was looked at (scripts/conformance_tokenizer.py
repeats the last of these). The alternatives are tried in order at each position; white space separates tokens.
"""

from __future__ import annotations

import re

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


def _any_of(words: str) -> str:
    return "|".join(sorted(words.split(), key=lambda word: (-len(word), word)))


_APOSTROPHE = "['\u2019]"
_LETTER = r"[^\W\d_]"
_WORD_CHARACTER = r"[\w\u00ad]"
_CAPITALISED = "|".join(f"{word[0].upper()}(?:{word[1:]}|{word[1:].upper()})" for word in _ABBREVIATED_WHEN_CAPITALISED)
_CLITIC = rf"{_APOSTROPHE}(?:[smd]|ll|re|ve)(?!{_WORD_CHARACTER})"
_NOT = rf"n{_APOSTROPHE}t(?!{_WORD_CHARACTER})"
_BEFORE_CLITIC = rf"(?={_CLITIC}|{_NOT})"
_ELISION = (
    rf"(?:[dlno]{_APOSTROPHE}(?={_LETTER}{{2}})|\w*[aeiou]{_APOSTROPHE}(?=[aeiou])|e{_APOSTROPHE}(?=er\b)"
    rf"|c{_APOSTROPHE}(?=est\b))"
)
_PLAIN = rf"(?:(?!{_NOT}){_WORD_CHARACTER})+"
_HYPHENATED = rf"(?:{_ELISION})?{_PLAIN}(?:-(?:{_ELISION})?{_PLAIN})*"

PATTERN = re.compile(
    "|".join(
        (
            r"</?[a-z!][^<>]*>",
            r"&(?:amp|lt|gt|quot);",
            r"https?://[^\s\"<>]*[^\s\"<>.,;:!?)(\]'-]",
            r"[\w.%+-]*\w@\w[\w-]*(?:\.[\w-]+)*\.[a-z]{2,}",
            r"[@#][a-z]\w*",
            # Numbers: fractions (with a blank inside), dates and ratios, times and decimals.
            r"(?:\d+[ \u00a0])?\d+/\d+(?:/\d+)?(?!\w)",
            r"(?:(?<!\w)[+-])?\d+(?:[.,:]\d+)+",
            r"(?<!\w)[+-]?[.,]?\d+(?![\w-])",
            # The split words of the Penn Treebank, then negation and the other clitics.
            r"can(?=not\b)|(?<=can)not\b",
            r"\b(?:gon(?=na\b)|got(?=ta\b)|wan(?=na\b)|lem(?=me\b)|gim(?=me\b))",
            rf"\w+?(?={_NOT})|{_NOT}|{_CLITIC}",
            rf"{_APOSTROPHE}(?:em|n|till?|cause)\b",
            rf"\b[djly]{_APOSTROPHE}(?={_LETTER})(?!{_LETTER}{{2}})|\b[jy]{_APOSTROPHE}(?={_LETTER})",
            # Abbreviations keep their dot.
            rf"(?:{_LETTER}\.)+(?:{_LETTER}(?!\w)\.?)?(?!\w)|ph\.d\.?(?!\w)",
            rf"\b(?:{_any_of(_ALWAYS_ABBREVIATED)})\.(?![\w.])",
            rf"\b(?-i:{_CAPITALISED})\.(?![\w.])",
            rf"\b(?:{_any_of(_ABBREVIATED_BEFORE_A_NUMBER)})\.(?=\s*\d)",
            rf"{_WORD_CHARACTER}+(?:\.(?={_LETTER}){_WORD_CHARACTER}+)+",
            rf"{_HYPHENATED}(?:/{_HYPHENATED})+{_BEFORE_CLITIC}?",
            rf"{_LETTER}&{_LETTER}(?!\w)|at&t(?!\w)",
            rf"{_HYPHENATED}\.(?=[,;:])",
            _HYPHENATED,
            r"\.\.\.+|--+|[!?]+|\*+|``|''|[:;=]-?[()]",
            r"\S",
        )
    ),
    re.IGNORECASE,
)

REWRITTEN = {
    "&amp;": ["&"],
    "&lt;": ["<"],
    "&gt;": [">"],
    "&quot;": [],
    "(": ["-lrb-"],
    ")": ["-rrb-"],
    "[": ["-lsb-"],
    "]": ["-rsb-"],
    "{": ["-lcb-"],
    "}": ["-rcb-"],
    "\u20ac": ["$"],
    "\u00a3": ["#"],
    "\u00a2": ["cents"],
    "\u00bd": ["1/2"],
    "\u00bc": ["1/4"],
    "\u00be": ["3/4"],
}

_TYPOGRAPHIC = [
    "\u2013",
    "\u2014",
    "\u2026",
    "\u2018",
    "\u2019",
    "\u201c",
    "\u201d",
    "\u00ab",
    "\u00bb",
    "\u2039",
    "\u203a",
]
REMOVED = frozenset(["'", "''", "`", "``", ".", "?", "!", ",", ":", ";", "-", "--", "---", "...", '"', *_TYPOGRAPHIC])
"""What the punctuation filter of the COCO evaluation removes, in every spelling that the Java tool maps to it."""
