"""Options of captioning that a person gave, checked: known, in their range, and with an effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from hfcap.errors import OptionError
from hfcap.recipe.blocks import GenerateOptions
from hfcap.registry import nearest

_BEAMS_OF_SEVERAL = 3
_INSTEAD = {"max_length": "max_new_tokens", "min_length": "min_new_tokens"}
"""Options of transformers that count the prompt, too -> those to use."""


def decoding_options(values: Mapping[str, Any]) -> GenerateOptions:
    """Check decoding options that a person gave.

    Raises:
        OptionError: one is unknown (the message names the known ones) or out of its range.
    """
    known = list(GenerateOptions.model_fields)
    for name in values:
        if name not in known:
            close = nearest(name, known)
            hint = f"; use {_INSTEAD[name]}" if name in _INSTEAD else f"; did you mean {close}?" if close else ""
            raise OptionError(f"decoding options: unknown option {name!r}{hint} (known: {', '.join(known)})")
    try:
        return GenerateOptions(**values)
    except ValidationError as error:
        problems = [
            ": ".join([*map(str, problem["loc"]), problem["msg"].removeprefix("Value error, ")])
            for problem in error.errors()
        ]
        raise OptionError(f"decoding options: {'; '.join(problems)}") from None


def with_enough_beams(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with beams for the captions asked for, where nothing is said of beams.

    Samples are drawn instead of a beam search; several captions are searched with as many beams, at least three.
    """
    if "num_beams" in given:
        return dict(given)
    if given.get("do_sample"):
        return {**given, "num_beams": 1}
    count = given.get("num_return_sequences")
    if not isinstance(count, int) or count == 1:
        return dict(given)
    return {**given, "num_beams": max(count, _BEAMS_OF_SEVERAL)}
