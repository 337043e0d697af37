"""What a judge is, what it is asked, and which one the options name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol

from pydantic import Field, field_validator

from hfcap.errors import UserError
from hfcap.metrics.base import MetricOptions
from hfcap.metrics.shared.models import model_signature
from hfcap.places import LocalPath, Location, Program
from hfcap.served.client import is_this_machine
from hfcap.served.images import ImageFormat
from hfcap.served.options import name_of_a_variable, possible_address

if TYPE_CHECKING:
    from PIL.Image import Image


class JudgeOptions(MetricOptions):
    """Which model judges: one that transformers loads, or with `base_url` one that a server runs."""

    model: Location | None = Field(
        None,
        description="folder or Hub id of an image-text-to-text model with a chat template; with base_url the server's "
        "name for its model (default: its only one)",
    )
    revision: str | None = Field(None, description="branch, tag or commit of the model on the Hub")
    images: LocalPath | Path | None = Field(
        None, description="folder of the images; hfcap run uses those of the scored split"
    )
    agreement: LocalPath | Path | None = Field(
        None,
        description="agreement.json of this judge, to be said next to its values; made by comparing it with people",
    )
    batch_size: Annotated[int, Field(gt=0)] = Field(8, description="captions at a time")
    device: str | None = Field(None, description="where the model runs; default: CUDA where there is one, else the CPU")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="number type of the weights; default: as they are stored"
    )
    base_url: Program | None = Field(
        None, description="address of an OpenAI-compatible server with the API's version: http://HOST:PORT/v1"
    )
    images_may_leave: bool = Field(
        False, description="images may leave this machine: needed where base_url is not on it"
    )
    api_key_env: str | None = Field(None, description="name of the environment variable that holds the server's key")
    max_concurrency: Annotated[int, Field(gt=0, le=1000)] = Field(8, description="requests at a time")
    timeout: Annotated[float, Field(gt=0)] = Field(120.0, description="seconds to wait for a server's answer")
    max_retries: Annotated[int, Field(ge=0, le=100)] = Field(5, description="repetitions of failed requests")
    max_side: Annotated[int, Field(gt=0)] | None = Field(
        2048, description="a server gets images with at most N pixels on the longer side; null = as they are"
    )
    image_format: ImageFormat = Field("jpeg", description="how a server gets images: jpeg (quality 95) or png")
    extra_body: dict[str, Any] = Field(
        default_factory=dict, description="more fields of requests to a server; null takes one out"
    )

    _possible_address = field_validator("base_url")(possible_address)
    _name_of_a_variable = field_validator("api_key_env")(name_of_a_variable)


@dataclass(frozen=True)
class Question:
    """What a judge is asked.

    Attributes:
        image_id: of the image that it sees. text: the question.
    """

    image_id: str
    text: str


class Grade(NamedTuple):
    """A grade from 0 to 1.

    Attributes:
        score: smoothed over the probabilities of digits; None where the answer is no grade.
        certainty: probability that the judge gives to a digit where one must stand: near 1 if it grades at all.
        answer: what it said, for messages.
    """

    score: float | None
    certainty: float
    answer: str


class SeesImages(Protocol):
    """Where a judge's images come from."""

    def decoded(self, image_id: str) -> Image:
        """Return an image as RGB.

        Raises:
            UserError: it is missing or cannot be read.
        """
        ...


class Judge(Protocol):
    """A model that answers questions about images."""

    @property
    def name(self) -> str:
        """Hub id, folder, or a server's name for its model."""
        ...

    def grades(self, questions: Sequence[Question], images: SeesImages, decimals: int) -> Iterator[Grade]:
        """Yield the grade that answers each question, in order.

        Args:
            decimals: 1 = the first decimal alone is smoothed; 2 = the second as well, where the judge writes one.

        Raises:
            UserError: the model or server cannot grade. WorkError: the server cannot be reached.
        """
        ...

    def answers(self, questions: Sequence[Question], images: SeesImages, max_new_tokens: int) -> Iterator[str]:
        """Yield the text that answers each question, in order, decoded greedily.

        Raises:
            UserError: the model or server refuses. WorkError: the server cannot be reached.
        """
        ...


def check_options(options: JudgeOptions, block: str) -> None:
    """Refuse options that name no judge, or exclude one another.

    Raises:
        UserError: names the option.
    """
    if options.base_url is None:
        if options.model is None:
            raise UserError(
                f"{block}.model: name the model that judges, such as llava-hf/llava-1.5-13b-hf, or the server that "
                f"runs one ({block}.base_url)"
            )
        return
    if options.revision is not None:
        raise UserError(f"{block}.revision: has no effect, because the server has the model; leave it out")
    if not options.images_may_leave and not is_this_machine(options.base_url):
        raise UserError(
            f"{block}.base_url: images would leave this machine; set {block}.images_may_leave=true if "
            f"{options.base_url} may have them"
        )


def judge_signature(options: JudgeOptions, served_name: str | None = None) -> dict[str, Any]:
    """Return which model judges: Hub id and commit, of a folder its name and hashes, of a server its name for it.

    Args:
        served_name: what a server calls its only model, once it was asked.
    """
    if options.base_url is not None:
        found = {"model": options.model or served_name or "the server's only model", "served": True}
        found |= {"max_side": options.max_side, "image_format": options.image_format}
        return found | ({"extra_body": options.extra_body} if options.extra_body else {})
    assert options.model is not None, "check_options"
    found = dict[str, Any](model_signature(options.model))
    if "weights" not in found:
        found["revision"] = _commit(options.model, options.revision) or options.revision or "main"
    return {**found, "dtype": options.dtype or "as stored"}


def _commit(model: str, revision: str | None) -> str | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(model, "config.json", revision=revision)
    except HFValidationError:  # a folder without weights, which loading refuses
        return None
    return Path(cached).parent.name if isinstance(cached, str) else None


def shown_prompt(prompt: str, usual: str, source: str) -> str:
    """Return a prompt for a signature, on one line: a paper's own by its name, others in full."""
    return source if prompt == usual else prompt.replace("\\", "\\\\").replace("\n", "\\n")


_FIELD = re.compile(r"\{(\w+)\}")


def filled(template: str, values: Mapping[str, str]) -> str:
    """Return a prompt with each {field} replaced once; braces inside the values stay as they are."""
    return _FIELD.sub(lambda found: values.get(found[1], found[0]), template)


def require_fields(template: str, fields: Sequence[str], option: str) -> None:
    """Refuse a prompt that does not show the judge what it is to judge.

    Raises:
        UserError: names the option and the missing field.
    """
    missing = [field for field in fields if f"{{{field}}}" not in template]
    if missing:
        raise UserError(
            f"{option}: the prompt shows the judge no {missing[0]}; write {{{missing[0]}}} where it must stand"
        )
