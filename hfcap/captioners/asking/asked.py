"""What a captioner is asked about each image: its prompt, whose fields the image's own columns fill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hfcap.recipe.prompt_fields import fields_of, filled, with_stand_ins
from hfcap.schema import CaptionedImage

if TYPE_CHECKING:
    from hfcap.captioners.base import Captioner

Prompts = str | list[str] | None
"""One prompt for all images, or one for each; None = the captioner's own for all."""


def has_fields(captioner: Captioner, template: str | None = None) -> bool:
    """Whether a prompt asks each image something else; None = the captioner's own."""
    return bool(fields_of(captioner.template if template is None else template))


def prompt_of(captioner: Captioner, template: str | None, record: CaptionedImage) -> str:
    """Return what is asked about one image.

    Args:
        template: in place of the captioner's own prompt, perhaps with fields; None = the captioner's own.

    Raises:
        UserError: the image has no value for a field.
    """
    template = captioner.template if template is None else template
    return filled(template, record.columns, record.file_name, _special(captioner))


def prompts_of(captioner: Captioner, template: str | None, records: Sequence[CaptionedImage]) -> Prompts:
    """Return what is asked about the images; see `prompt_of`."""
    if not has_fields(captioner, template):
        return None if template is None else with_stand_ins(template)
    return [prompt_of(captioner, template, record) for record in records]


def require_columns(template: str, records: Sequence[CaptionedImage], split: str) -> None:
    """Refuse a recipe whose prompt asks for what images of a split do not have.

    Raises:
        UserError: names the field, the first image and its columns.
    """
    if fields_of(template):
        for record in records:
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


def _special(captioner: Captioner) -> tuple[str, ...]:
    """Return what the tokenizer takes for more than text: images' places, turns of a chat, ends."""
    tokenizer = getattr(captioner.processor, "tokenizer", None)
    if tokenizer is None:
        return ()
    added = getattr(tokenizer, "added_tokens_decoder", {})  # of tokenizers that are none of transformers'
    return tuple(sorted({*map(str, added.values()), *tokenizer.all_special_tokens}, key=len, reverse=True))
