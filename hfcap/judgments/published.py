"""What papers report for the known sets of judgments: the one place of these numbers, each with its source."""

from __future__ import annotations

from dataclasses import dataclass, field

_PACS = "aimagelab/pacscore, README: human correlation scores"
_CLIPSCORE = "Hessel et al. 2021 (CLIPScore), as cited by Sarto et al. 2023 and Wada et al. 2024"
_SPICA = "arXiv:2512.21582, table 1"
_POLOS = "Wada et al. 2024 (Polos), table 1"
_DENEB = "Matsuda et al. 2024 (DENEB), table 1"


@dataclass(frozen=True, slots=True)
class PublishedValue:
    """A published number on the scale of papers (x 100)."""

    value: float
    source: str


@dataclass(frozen=True)
class KnownSet:
    """A set of judgments that papers use.

    Attributes:
        title: its name in papers.
        statistic: what papers report of it.
        n_judgments: how many the published numbers are of; None where it is not known for certain.
        values: output of a metric -> statistic -> published value.
    """

    title: str
    statistic: str
    n_judgments: int | None = None
    values: dict[str, dict[str, PublishedValue]] = field(default_factory=dict)


def _taus(source: str, **pairs: tuple[float | None, float | None]) -> dict[str, dict[str, PublishedValue]]:
    """Metric -> (tau-b, tau-c)."""
    return {
        output: {
            name: PublishedValue(value, source)
            for name, value in zip(("tau_b", "tau_c"), both, strict=True)
            if value is not None
        }
        for output, both in pairs.items()
    }


KNOWN_SETS = {
    "flickr8k_expert": KnownSet(
        "Flickr8k-Expert",
        "tau_c",
        16_992,
        _taus(
            _PACS,
            bleu_1=(32.175, 32.324),
            bleu_4=(30.599, 30.776),
            meteor=(41.538, 41.822),
            rouge_l=(32.139, 32.314),
            cider=(43.602, 43.891),
        )
        | _taus(_CLIPSCORE, spice=(None, 44.9), clip_score=(None, 51.2), ref_clip_score=(None, 53.0))
        | _taus(_POLOS, polos=(None, 56.4)),
    ),
    "flickr8k_cf": KnownSet(
        "Flickr8k-CF",
        "tau_b",
        47_830,
        _taus(
            _PACS,
            bleu_1=(17.946, 9.256),
            bleu_4=(16.863, 8.710),
            meteor=(22.269, 11.510),
            rouge_l=(19.903, 10.274),
            cider=(24.619, 12.724),
        )
        | _taus(_CLIPSCORE, spice=(24.4, None), clip_score=(34.4, None), ref_clip_score=(36.4, None))
        | _taus(_POLOS, polos=(37.8, None)),
    ),
    "composite": KnownSet(
        "Composite",
        "tau_c",
        None,
        _taus(
            _CLIPSCORE,
            bleu_4=(None, 30.6),
            meteor=(None, 38.9),
            cider=(None, 37.7),
            spice=(None, 40.3),
            clip_score=(None, 53.8),
            ref_clip_score=(None, 55.4),
        )
        | _taus(_SPICA, rouge_l=(30.0, 32.4))
        | _taus(_POLOS, polos=(None, 57.6)),
    ),
    "polaris": KnownSet(
        "Polaris",
        "tau_c",
        None,
        _taus(
            _POLOS,
            bleu_4=(None, 46.3),
            meteor=(None, 51.2),
            rouge_l=(None, 46.3),
            cider=(None, 52.1),
            spice=(None, 51.0),
            clip_score=(None, 52.3),
            ref_clip_score=(None, 52.3),
        ),
    ),
    "nebula": KnownSet(
        "Nebula",
        "tau_c",
        None,
        _taus(
            _SPICA,
            bleu_4=(46.5, 44.1),
            meteor=(50.2, 47.6),
            rouge_l=(45.8, 43.4),
            cider=(51.5, 48.8),
            clip_score=(50.5, 47.9),
        )
        | _taus(_DENEB, ref_clip_score=(None, 46.9)),
    ),
    "longcap_arena": KnownSet("LongCap-Arena", "tau_c"),
    "pascal50s": KnownSet("Pascal-50S", "accuracy", 4_000),
    "foil": KnownSet("FOIL", "accuracy"),
    "ratings": KnownSet("ratings of your own", "tau_b"),
    "preferences": KnownSet("preferences of your own", "accuracy"),
}
"""Layout -> the set of judgments."""
