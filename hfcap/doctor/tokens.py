"""What the tokenizer makes of the training captions: lengths, cuts, unknown and special tokens inside captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from hfcap.captioners.base import Captioner
from hfcap.captioners.shared.round_trip import round_trip
from hfcap.doctor.findings import Findings
from hfcap.recipe.blocks import Recipe
from hfcap.schema import CaptionedImage

_NO_LIMIT = 1_000_000
_NOTABLE_SHARE = 0.01
_SHARE_BEYOND_GENERATION = 0.05


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """Training captions as tokens.

    Attributes:
        tokens: fewest, median and most tokens of a caption, without start, prompt and end.
        cut: captions longer than data.max_caption_tokens.
        unknown: tokens the tokenizer has no entry for.
        special_inside: captions that contain the start, end or pad token as a word.
        empty: captions of which no token is left.
        beyond_generation: captions longer than generate.max_new_tokens allows (the end token included).
    """

    n_captions: int
    tokens: tuple[int, float, int]
    cut: int
    unknown: int
    special_inside: int
    empty: int
    beyond_generation: int


def examine_tokens(
    recipe: Recipe, captioner: Captioner, records: Sequence[CaptionedImage], findings: Findings
) -> TokenFacts:
    """Tokenise all training captions without cutting them."""
    captions = [caption for record in records for caption in record.captions]
    tokens = captioner.caption_token_ids(captions, _NO_LIMIT)
    lengths = [len(ids) for ids in tokens]
    special = {captioner.start_token_id, captioner.end_token_id, captioner.pad_token_id}
    unknown_id = getattr(captioner.tokenizer, "unk_token_id", None)
    unknown = 0 if unknown_id in special or unknown_id is None else sum(ids.count(unknown_id) for ids in tokens)
    facts = TokenFacts(
        n_captions=len(captions),
        tokens=(min(lengths), median(lengths), max(lengths)),
        cut=sum(length > recipe.data.max_caption_tokens for length in lengths),
        unknown=unknown,
        special_inside=sum(not special.isdisjoint(ids) for ids in tokens),
        empty=lengths.count(0),
        beyond_generation=sum(length + 1 > recipe.generate.max_new_tokens for length in lengths),
    )
    _report(recipe, facts, sum(lengths), findings)
    survived = round_trip(captioner, captions)
    if survived.changed:
        findings.warning(
            "model", survived.problem(), "choose a base model whose tokenizer knows them, or clean the text"
        )
    return facts


def _report(recipe: Recipe, facts: TokenFacts, n_tokens: int, findings: Findings) -> None:
    if facts.cut > _NOTABLE_SHARE * facts.n_captions:
        findings.warning(
            "data.max_caption_tokens",
            f"{facts.cut:,} of {facts.n_captions:,} captions are cut at {recipe.data.max_caption_tokens} tokens and "
            "end in the middle of a sentence",
            f"raise it (the longest caption has {facts.tokens[2]} tokens)",
        )
    if facts.unknown > _NOTABLE_SHARE * n_tokens:
        findings.warning(
            "model",
            f"{facts.unknown:,} of {n_tokens:,} caption tokens are unknown to the tokenizer",
            "choose a base model of the captions' language",
        )
    if facts.special_inside:
        findings.error(
            "data.source",
            f"{facts.special_inside:,} captions contain the start, end or pad token as text",
            "remove such markers from the captions; hfcap adds them itself",
        )
    if facts.empty:
        findings.error(
            "data.source",
            f"the tokenizer makes no token of {facts.empty:,} captions",
            "remove these captions, or choose a tokenizer that knows their characters",
        )
    if facts.beyond_generation > _SHARE_BEYOND_GENERATION * facts.n_captions:
        findings.warning(
            "generate.max_new_tokens",
            f"{facts.beyond_generation:,} of {facts.n_captions:,} training captions are longer than generated ones "
            f"may be ({recipe.generate.max_new_tokens} tokens); generated captions will be cut",
            "raise it",
        )
