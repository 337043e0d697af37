"""What a captioner says of being asked: prompts and decoding where nobody saved any, and styles of captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from hfcap.captioners.facts import GeneratedCaption
from hfcap.errors import OptionError, UserError
from hfcap.recipe.blocks import GenerateOptions
from hfcap.recipe.prompt_fields import as_template, with_stand_ins
from hfcap.recipe.styles import Style

CHAT_STYLES: Mapping[str, str] = {
    "short": "Describe the image in one short sentence.",
    "detailed": "Describe the image in detail.",
    "tags": "List what the image shows as tags, separated by commas. Write nothing else.",
    "alt_text": "Write alt text for the image: one plain sentence of at most 125 characters, without 'image of'.",
}
"""Style -> instruction for models that take instructions."""


class PromptDefaults:
    """The prompt, and defaults of captioners that write captions without being asked."""

    template: str = ""
    """The prompt as it was given: with fields that are filled for each image (recipe/prompt_fields.py)."""
    answers_prompts: ClassVar[bool] = False
    """Whether it takes instructions, so that each caption may answer another (`data.own_prompts`)."""
    _prompt: str = ""

    @property
    def prompt(self) -> str:
        """Text that starts every caption, never part of loss or caption; fields have their names in their places."""
        return self._prompt

    @prompt.setter
    def prompt(self, text: str) -> None:
        """Take a text as it is."""
        self.ask(as_template(text))

    def ask(self, template: str) -> None:
        """Take another prompt, perhaps one with fields.

        Raises:
            UserError: braces that are no field.
        """
        self._prompt, self.template = with_stand_ins(template), template

    def caption_states(
        self, image_states: Any, options: GenerateOptions, prompt: str | None = None
    ) -> list[list[GeneratedCaption]]:
        """Caption encoded images, all after one prompt."""
        raise NotImplementedError

    def caption_each(
        self, image_states: Any, options: GenerateOptions, prompts: Sequence[str]
    ) -> list[list[GeneratedCaption]]:
        """Caption encoded images, each after its own prompt; those with the same one are computed together."""
        groups: dict[str, list[int]] = {}
        for number, prompt in enumerate(prompts):
            groups.setdefault(prompt, []).append(number)
        found: dict[int, list[GeneratedCaption]] = {}
        for prompt, numbers in groups.items():
            found |= dict(zip(numbers, self.caption_states(image_states[numbers], options, prompt), strict=True))
        return [found[number] for number in range(len(prompts))]

    @contextmanager
    def asked(self, text: str | None) -> Iterator[None]:
        """Let another text be the prompt inside the block; None = leave it."""
        own = self.template
        if text is not None:
            self.prompt = text
        try:
            yield
        finally:
            self.ask(own)

    @classmethod
    def usual_decoding(cls, folder: Path) -> dict[str, Any]:
        """Return decoding options for a model that hfcap did not save, under those that its checkpoint gives."""
        return {}

    @property
    def thinks_first(self) -> bool:
        """Whether the prompt begins the model's thinking, which an answer then goes on with."""
        return False

    def style_prompt(self, style: str) -> str:
        """Return the prompt that asks for captions of this style (`CHAT_STYLES`).

        Raises:
            UserError: captioners of this kind cannot be asked for it.
        """
        raise UserError(f"style {style}: this captioner takes no instructions; leave the style out")

    def prompt_for(self, style: Style | None, prompt: str | None) -> str | None:
        """Return the prompt that somebody gave, or that of the style that somebody gave; None where neither is given.

        Raises:
            OptionError: both are given.
            UserError: this captioner cannot be asked for the style.
        """
        if style is None:
            return prompt
        if prompt is not None:
            raise OptionError(f"style {style}: a prompt says already what is asked; leave one of them out")
        return self.style_prompt(style)

    def take_usual_prompt(self) -> None:  # most families write captions without being asked
        """Ask for captions as the model's authors do, where nobody saved a prompt with it."""
