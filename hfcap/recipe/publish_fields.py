"""Keys of `publish` that the Hub would refuse, looked at when a recipe is read: a push after days of training is late.

Sources: hub-docs modelcard.md, and refusals of the Hub that were seen.
"""

from __future__ import annotations

import re

from hfcap.registry import nearest

LICENSES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc
    cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
    cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
    cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
    eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl
    openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma apple-ascl
    apple-amlr intel-research h-research grok2-community open-mdw unknown other
    """.split()  # noqa: SIM905
)
"""Identifiers of licences that the Hub knows."""

REPO_ID = re.compile(r"^(?:[\w.-]{1,96}/)?[\w.-]{1,96}$")
LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")
"""ISO 639-1, 639-2 or 639-3, without a region."""

_LANGUAGES = {
    "english": "en",
    "german": "de",
    "deutsch": "de",
    "french": "fr",
    "spanish": "es",
    "italian": "it",
    "portuguese": "pt",
    "dutch": "nl",
    "polish": "pl",
    "russian": "ru",
    "turkish": "tr",
    "arabic": "ar",
    "hindi": "hi",
    "chinese": "zh",
    "japanese": "ja",
    "korean": "ko",
    "vietnamese": "vi",
}


def require_licence(value: str) -> None:
    """Refuse a licence identifier that the Hub does not know.

    Raises:
        ValueError: the message says what to write.
    """
    if value in LICENSES:
        return
    plain = re.sub(r"[\s_]+", "-", re.sub(r"\blicen[cs]e\b", "", value.lower()).strip())
    known = sorted(LICENSES)
    close = repr(plain) if plain in LICENSES else nearest(plain, known)
    hint = f"did you mean {close}?" if close else "for one that the Hub does not list write other, and license_name"
    raise ValueError(f"{value!r} is no licence identifier of the Hub; {hint}")


def require_language(value: str) -> None:
    """Refuse what is no language code of the Hub.

    Raises:
        ValueError: the message says what to write.
    """
    if LANGUAGE.fullmatch(value):
        return
    start = re.match(r"[a-z]{2,3}(?=[-_])", value.lower())
    close = _LANGUAGES.get(value.lower()) or (start and start.group())
    hint = f"did you mean {close}?" if close else "write en, de, zh or the like, or a list of them"
    raise ValueError(f"{value!r} is no language code of the Hub (ISO 639, without a region); {hint}")


def require_id(value: str) -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        ValueError: the message says what to write.
    """
    if not REPO_ID.match(value):
        raise ValueError(f"{value!r} is no id on the Hub; write namespace/name")


_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def size_in_bytes(size: str) -> int:
    """Return the bytes of a size such as 5GB, 500 MB or 2GiB.

    Raises:
        ValueError: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?B)\s*", size, re.IGNORECASE)
    number = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if number < 1:
        raise ValueError(f"{size!r} is not a size; write for example 5GB or 500MB")
    return number
