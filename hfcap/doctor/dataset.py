"""Facts about images and captions: counts, lengths, repetitions, and images that two splits share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from hfcap.data.images import CheckableImage
from hfcap.data.traps import caption_traps, repeated_in_images
from hfcap.doctor.findings import Findings
from hfcap.doctor.near_duplicates import near_duplicates
from hfcap.metrics.shared.languages import CODES
from hfcap.metrics.shared.scripts import unspaced_language
from hfcap.schema import CaptionedImage
from hfcap.store.image_hashes import image_hashes
from hfcap.text import counted, printable

MAX_COMPARED_IMAGES = 10_000
"""Up to so many images are read to find the same bytes in two splits; beyond, only names are compared."""

_SHARE_OF_REPETITION = 0.05
_FEWEST_REPETITIONS = 10
_SHARE_OF_FEW = 0.2
"""Fewer repetitions than that alarm only from this share on: two of forty people may say the same."""
_SHOWN_PROMPT = 60
_N_FREQUENT = 5


@dataclass(frozen=True, slots=True)
class SplitFacts:
    """One split.

    Attributes:
        captions_per_image: number of captions -> images that have so many.
        words: fewest, median and most words of a caption.
        one_word_captions: captions of one word.
        repeated_captions: captions that the same image already has.
    """

    n_images: int
    n_captions: int
    captions_per_image: dict[int, int]
    words: tuple[int, float, int]
    one_word_captions: int
    repeated_captions: int


@dataclass(frozen=True, slots=True)
class SharedImages:
    """Images of another split that the training split has too; `same_bytes` is None where it was not compared."""

    same_id: int
    same_file_name: int
    same_bytes: int | None


@dataclass(frozen=True, slots=True)
class DataFacts:
    """All splits that the run reads.

    Attributes:
        most_frequent: the most frequent training captions (case and spacing ignored) and how often they occur.
        distinct_captions: number of different training captions.
        shared_with_train: split -> images that the training split has too.
        different_images: training images that differ in their bytes; None where it was not compared.
        unspaced_language: that of the captions, if it puts no spaces between words.
    """

    splits: dict[str, SplitFacts]
    most_frequent: list[tuple[str, int]]
    distinct_captions: int
    shared_with_train: dict[str, SharedImages]
    different_images: int | None
    unspaced_language: str | None


def examine_data(
    splits: Mapping[str, Sequence[CaptionedImage]], findings: Findings, language: str | None = None
) -> DataFacts:
    """Count what the splits hold; `splits` has at least "train", `language` is the one that the recipe names."""
    train = splits["train"]
    counts = Counter(" ".join(text.lower().split()) for record in train for text in record.captions)
    hashes = _hashes(splits)
    facts = DataFacts(
        {name: _split_facts(records) for name, records in splits.items()},
        counts.most_common(_N_FREQUENT),
        len(counts),
        {name: _shared(train, records, hashes, name) for name, records in splits.items() if name != "train"},
        None if hashes is None else len(hashes["train"]),
        unspaced_language(text for record in train for text in record.captions),
    )
    if facts.unspaced_language is not None and language is None:
        findings.warning(
            "score.language",
            f"the captions look {facts.unspaced_language}, and nothing says so; that is found out again at every "
            "scoring, and rewards and validation take them for English",
            f"set score.language: {CODES[facts.unspaced_language]}",
        )
    _report(facts, findings)
    if hashes is not None:
        _report_near_duplicates(splits, findings)
    _report_traps(train, findings)
    _report_selection(splits, findings)
    return facts


def _report_near_duplicates(splits: Mapping[str, Sequence[CaptionedImage]], findings: Findings) -> None:
    for name, pairs in near_duplicates(splits).items():
        if pairs:
            examples = " and ".join(f"{pair.image!r} like {pair.of_train!r}" for pair in pairs[:2])
            findings.warning(
                f"data.{name}_split",
                f"{len(pairs):,} of {counted(len(splits[name]), 'image')} of {name} look like training images, for "
                f"example {examples}; if they show the same, scores will be too good",
                "look at them; put images of one series into the same split, by a column split",
            )


def _report_traps(train: Sequence[CaptionedImage], findings: Findings) -> None:
    captions = [text for record in train for text in record.captions]
    for trap in (*caption_traps(captions), repeated_in_images([record.captions for record in train])):
        if trap is not None:
            findings.warning("data.source", f"{trap.sentence(len(captions))}; the captioner will learn it", trap.remedy)


def report_prompts(
    train: Sequence[CaptionedImage], prompt: str, takes_one: bool, answers: bool, findings: Findings
) -> None:
    """Say of captions that answer prompts which of these the captioner is not told, in training or after.

    Args:
        prompt: the captioner's own, which all its captions answer. takes_one: whether it can be told one. answers:
            whether each caption may answer its own.
    """
    answered = Counter(" ".join(text.split()) for record in train for text in record.prompts)
    untold = {text: count for text, count in answered.items() if text != " ".join(prompt.split())}
    if not untold:
        return
    text = max(untold, key=lambda one: untold[one])
    told = f"the captioner is told {printable(prompt)!r} instead" if prompt else "the captioner is told none of them"
    one = f"set model.prompt to it{'' if len(answered) == 1 else ', and leave the other captions out with data.filter'}"
    one = "set data.own_prompts: true, which trains each after its own, or " + one if answers else one
    none = "this captioner takes no prompt: leave out captions that answer questions, with data.filter"
    findings.warning(
        "model.prompt",
        f"captions of {counted(sum(untold.values()), 'image')} answer {counted(len(untold), 'prompt')} of the dataset, "
        f"most often {printable(text[:_SHOWN_PROMPT])!r}, and {told}; it learns to give the answers unasked",
        one if takes_one else none,
    )


def _report_selection(splits: Mapping[str, Sequence[CaptionedImage]], findings: Findings) -> None:
    """Warn where the best checkpoint is chosen on images that are scored afterwards."""
    chosen_on = {record.image_id for record in splits.get("validation", ())}
    for name, records in splits.items():
        both = 0 if name in ("train", "validation") else sum(record.image_id in chosen_on for record in records)
        if both:
            findings.warning(
                f"data.{name}_split",
                f"{both:,} of {len(records):,} scored images are validation images too: the best checkpoint is "
                "chosen on them, so scores will be a little too good",
                "score a split that training never looks at",
            )


def _split_facts(records: Sequence[CaptionedImage]) -> SplitFacts:
    lengths = [len(text.split()) for record in records for text in record.captions]
    per_image = Counter(len(record.captions) for record in records)
    return SplitFacts(
        n_images=len(records),
        n_captions=len(lengths),
        captions_per_image=dict(sorted(per_image.items())),
        words=(min(lengths), median(lengths), max(lengths)),
        one_word_captions=sum(length == 1 for length in lengths),
        repeated_captions=sum(len(record.captions) - len(set(record.captions)) for record in records),
    )


def _hashes(splits: Mapping[str, Sequence[CaptionedImage]]) -> dict[str, set[str]] | None:
    """Return hashes of every split's images, or None where reading them all would take too long."""
    everything = [record for records in splits.values() for record in records]
    # Generated images have no file that could have been copied.
    if len(everything) > MAX_COMPARED_IMAGES or not all(isinstance(r.image, CheckableImage) for r in everything):
        return None
    return {name: set(image_hashes(records)) for name, records in splits.items()}


def _shared(
    train: Sequence[CaptionedImage],
    others: Sequence[CaptionedImage],
    hashes: Mapping[str, set[str]] | None,
    name: str,
) -> SharedImages:
    ids = {record.image_id for record in train}
    names = {record.file_name for record in train}
    return SharedImages(
        same_id=sum(record.image_id in ids for record in others),
        same_file_name=sum(record.file_name in names for record in others),
        same_bytes=None if hashes is None else len(hashes["train"] & hashes[name]),
    )


def _report(facts: DataFacts, findings: Findings) -> None:
    for name, shared in facts.shared_with_train.items():
        found = {"id": shared.same_id, "file name": shared.same_file_name, "content": shared.same_bytes or 0}
        leaks = [f"{count:,} by {what}" for what, count in found.items() if count]
        if leaks:
            findings.warning(
                f"data.{name}_split",
                f"images of {name} are in the training split too ({', '.join(leaks)}); scores will be too good",
                "take them out of one of the two splits",
            )
    train = facts.splits["train"]
    if facts.different_images is not None and 2 * facts.different_images <= train.n_images > 1:
        findings.warning(
            "data.source",
            f"{train.n_images:,} training images are {facts.different_images:,} different ones: one row per caption, "
            "or copies",
            "join the captions of an image by data.group_by: content, data.image_id_column, or the same file_name",
        )
    text, count = facts.most_frequent[0]
    many = count >= _FEWEST_REPETITIONS or count > _SHARE_OF_FEW * train.n_captions
    if many and count > _SHARE_OF_REPETITION * train.n_captions and train.n_captions >= 20:
        findings.warning(
            "data.source",
            f"{count:,} of {train.n_captions:,} training captions are {text!r}; the captioner will learn "
            "to say just that",
            "remove placeholder captions from the dataset",
        )
    if facts.unspaced_language is None and train.one_word_captions > _SHARE_OF_REPETITION * train.n_captions:
        findings.warning(
            "data.source",
            f"{train.one_word_captions:,} of {train.n_captions:,} training captions are a single word",
            "use sentences if the captioner is to write sentences",
        )
