"""What a captioner is asked about each image: its prompt, whose fields the image's columns fill, or the data's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from hfcap.data.kept.table import values_of_records
from hfcap.errors import UserError
from hfcap.recipe.prompt_fields import fields_of, filled, with_stand_ins, without_marks
from hfcap.schema import CaptionedImage

if TYPE_CHECKING:
    from hfcap.captioners.base import Captioner

Prompts = str | list[str] | None
"""One prompt for all images, or one for each; None = the captioner's own for all."""

_special_texts: WeakKeyDictionary[Any, tuple[str, ...]] = WeakKeyDictionary()


def has_fields(captioner: Captioner, template: str | None = None) -> bool:
    """Whether a prompt asks each image something else; None = the captioner's own."""
    return bool(fields_of(captioner.template if template is None else template))


def prompt_of(captioner: Captioner, template: str | None, record: CaptionedImage) -> str:
    """Return what is asked about one image.

    Args:
        template: in place of what else is asked, perhaps with fields; None = the first prompt that the data have for
            the image, or else the captioner's own.

    Raises:
        UserError: the image has no value for a field.
    """
    if template is None and record.asked:
        return without_marks(record.asked[0], _special(captioner))
    template = captioner.template if template is None else template
    return filled(template, record.columns, record.file_name, _special(captioner))


def prompts_of(captioner: Captioner, template: str | None, records: Sequence[CaptionedImage]) -> Prompts:
    """Return what is asked about the images; see `prompt_of`."""
    if not has_fields(captioner, template) and not (template is None and any(values_of_records(records, "asked"))):
        return None if template is None else with_stand_ins(template)
    return [prompt_of(captioner, template, record) for record in records]


def prompts_of_captions(captioner: Captioner, records: Sequence[CaptionedImage]) -> list[list[str]] | None:
    """Return what each caption of each image answers; None where all answer the captioner's prompt.

    Raises:
        UserError: an image has no value for a field of the prompt.
    """
    if not has_fields(captioner) and not any(values_of_records(records, "asked")):
        return None
    return [
        [without_marks(text, _special(captioner)) for text in record.asked]
        or [prompt_of(captioner, None, record)] * len(record.captions)
        for record in records
    ]


def require_askable(
    family: type[Captioner], name: str, template: str, records: Sequence[CaptionedImage], split: str
) -> None:
    """Refuse a recipe that asks for what images of a split do not have, or what its captioner cannot be asked.

    Args:
        name: of the family. template: the recipe's prompt.

    Raises:
        UserError: names the field, the first image and its columns; or the key and the family.
    """
    if not family.answers_prompts and any(values_of_records(records, "asked")):
        raise UserError(
            f"data.own_prompts: captioner {name} takes no instructions, so that its captions cannot answer the prompts "
            "of the data; choose captioner image_text_to_text, or leave the key out"
        )
    if fields_of(template):
        for record in records:
            if not record.asked:
                filled(template, record.columns, f"image {record.file_name} of {split}")


def longest(captioner: Captioner, prompts: Prompts) -> str | None:
    """Return the prompt of the most tokens; None = the captioner's own."""
    if not isinstance(prompts, list):
        return prompts
    distinct = list(dict.fromkeys(prompts))
    tokenizer = getattr(captioner.processor, "tokenizer", None)  # that of a served model is at the server
    if tokenizer is None:
        return max(distinct, key=len)
    lengths = [len(ids) for ids in tokenizer(distinct, add_special_tokens=False)["input_ids"]]
    return distinct[max(range(len(distinct)), key=lengths.__getitem__)]


def longest_of_captions(captioner: Captioner, splits: Iterable[Sequence[CaptionedImage]]) -> str | None:
    """Return the longest prompt that any caption of the splits answers; None = all answer the captioner's own."""
    asked = prompts_of_captions(captioner, [record for records in splits for record in records])
    return None if asked is None else longest(captioner, [text for of_image in asked for text in of_image])


def _special(captioner: Captioner) -> tuple[str, ...]:
    """Return what the tokenizer takes for more than text: images' places, turns of a chat, ends."""
    if captioner not in _special_texts:
        tokenizer = getattr(captioner.processor, "tokenizer", None)
        added = getattr(tokenizer, "added_tokens_decoder", {})  # of tokenizers that are none of transformers'
        named = getattr(tokenizer, "all_special_tokens", [])
        _special_texts[captioner] = tuple(sorted({*map(str, added.values()), *named}, key=len, reverse=True))
    return _special_texts[captioner]
