"""How long a caption may be: text models have so many positions and no more, and reading beyond them is an error."""

from __future__ import annotations

from dataclasses import dataclass

from hfcap.captioners.base import Captioner
from hfcap.errors import OptionError, UserError
from hfcap.recipe.blocks import GenerateOptions


@dataclass(frozen=True, slots=True)
class Room:
    """Positions of a text model.

    Attributes:
        positions: all of them.
        taken: those of prefix, start token and prompt.
    """

    positions: int
    taken: int

    @property
    def tokens(self) -> int:
        """Tokens of a caption that the text model can read."""
        return max(self.positions - self.taken, 0)

    @property
    def new_tokens(self) -> int:
        """Tokens that may be generated: the last one is not read again."""
        return self.tokens + (self.positions >= self.taken)


def room_for_caption(captioner: Captioner, prompt: str | None = None) -> Room | None:
    """Return the positions of a captioner's text model; None where it has no limit.

    Args:
        prompt: instead of the captioner's own.

    Raises:
        UserError: the captioner takes no prompt.
    """
    with captioner.asked(prompt):
        limit, before = captioner.max_text_tokens, captioner.positions_before_text
        start = len(captioner.start_token_ids(prompt))
    return None if limit is None else Room(limit + before, before + start)


def takes_prompt(captioner: Captioner) -> bool:
    """Whether the captioner can be told a prompt."""
    try:
        room_for_caption(captioner, "a")
    except UserError:
        return False
    return True


def require_room(captioner: Captioner, options: GenerateOptions, prompt: str | None = None) -> None:
    """Refuse a captioning whose options the captioner cannot follow, or in which captions may outgrow the text model.

    Whether one does depends on the image: without this a folder would end half way.

    Raises:
        OptionError: names max_new_tokens, and what would fit; or another option.
        UserError: the captioner takes no prompt.
    """
    captioner.check_decoding(options)
    room = room_for_caption(captioner, prompt)
    if room is None or options.max_new_tokens <= room.new_tokens:
        return
    shorter = f"set it to at most {room.new_tokens}, or " if room.new_tokens else ""
    raise OptionError(
        f"decoding options: max_new_tokens={options.max_new_tokens} does not fit into the text model: of its "
        f"{room.positions} positions {room.taken} are taken by prefix, start token and prompt; {shorter}give a "
        "shorter prompt (the model's own is in its hfcap.json)"
    )
