"""Score files of captions in English, German and Chinese."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hfcap.comparison import compare_languages, named_by_files, read_systems
from hfcap.comparison.result import LanguageComparison
from hfcap.scoring import score_files

N_IMAGES = 24
WORDS = {
    "en": (
        ("a dog", "two cats", "a red bird", "horses"),
        ("runs", "sleeps", "eats"),
        ("on grass", "near the sea"),
        " ",
    ),
    "de": (
        ("ein Hund", "zwei Katzen", "ein Vogel", "Pferde"),
        ("läuft", "schläft", "frisst"),
        ("im Gras", "am Meer"),
        " ",
    ),
    "zh": (("一只狗", "两只猫", "一只红色的鸟", "马"), ("在奔跑", "在睡觉", "在吃东西"), ("草地上", "大海旁边"), ""),
}
"""Language -> who, does what, where; and what stands between them."""

Score = Callable[..., Path]


def sentences(language: str) -> list[str]:
    *parts, between = WORDS[language]
    return [between.join(words) for words in itertools.product(*parts)]


def human(language: str, n_images: int = N_IMAGES) -> dict[str, list[str]]:
    said = sentences(language)
    return {str(number): [said[number], said[(number + 5) % len(said)]] for number in range(n_images)}


def captions(language: str, n_wrong: int) -> dict[str, str]:
    """Captions of which the first `n_wrong` are those of other images."""
    said = sentences(language)
    return {str(n): said[(n + 3) % len(said)] if n < n_wrong else said[n] for n in range(N_IMAGES)}


def scorer(folder: Path) -> Score:
    """Return a function that writes the score file of captions in a language, some of them wrong."""

    def write(name: str, language: str, n_wrong: int = 0, **options: Any) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        references = options.pop("references", human(language))
        predictions = {key: text for key, text in captions(language, n_wrong).items() if key in references}
        chosen: dict[str, Any] = {"metrics": ["bleu", "rouge_l", "cider"], "n_resamples": 100, "language": language}
        score_files(predictions, references, output=path, warn=lambda message: None, **(chosen | options))
        return path

    return write


def table(*paths: Path, n_resamples: int = 200, **options: Any) -> LanguageComparison:
    systems = named_by_files(read_systems(list(paths)))
    return compare_languages(systems, n_resamples=n_resamples, warn=lambda message: None, **options)


def two_systems(score: Score) -> list[Path]:
    """Six score files: `blip` is better in German and Chinese, `git` in English."""
    wrong = {"en": (3, 0), "de": (0, 13), "zh": (1, 13)}
    return [
        score(f"{name}.{language}.json", language, n_wrong[place])
        for language, n_wrong in wrong.items()
        for place, name in enumerate(("blip", "git"))
    ]


def written(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Rewrite a score file's JSON."""
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path
