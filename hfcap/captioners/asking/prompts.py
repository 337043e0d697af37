"""What a captioner says of being asked: prompts and decoding where nobody saved any, and styles of captions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfcap.errors import OptionError, UserError
from hfcap.recipe.styles import Style

CHAT_STYLES: Mapping[str, str] = {
    "short": "Describe the image in one short sentence.",
    "detailed": "Describe the image in detail.",
    "tags": "List what the image shows as tags, separated by commas. Write nothing else.",
    "alt_text": "Write alt text for the image: one plain sentence of at most 125 characters, without 'image of'.",
}
"""Style -> instruction for models that take instructions."""


class PromptDefaults:
    """Defaults of captioners that write captions without being asked."""

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
