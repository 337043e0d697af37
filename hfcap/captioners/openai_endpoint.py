"""Captioners that a server runs: vLLM, SGLang, llama.cpp's server, `transformers serve`, or a service on the internet.

Nothing is loaded here, and nothing is trained: each image goes to the server with a prompt, and what it answers is the
caption.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import threading
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field, ValidationError, field_validator, model_validator
from torch import nn
from transformers import GenerationConfig

from hfcap.captioners.asking.prompts import CHAT_STYLES
from hfcap.captioners.base import BaseModel, CardFacts, GeneratedCaption
from hfcap.captioners.endpoint.answers import added, caption_of
from hfcap.captioners.endpoint.images import EndpointProcessor, SentImages
from hfcap.captioners.shared.nonparametric import FittingData, NonparametricCaptioner
from hfcap.errors import OptionError, UserError, WorkError
from hfcap.files import read_json_object, write_json
from hfcap.recipe.block_base import NonNegativeInt, PositiveInt
from hfcap.recipe.blocks import SAMPLING_ONLY, GenerateOptions, ModelOptions
from hfcap.schema import SizedImages
from hfcap.served.client import Client, address_problem, is_this_machine
from hfcap.served.images import ImageFormat
from hfcap.served.options import name_of_a_variable, possible_address
from hfcap.served.threads import all_of

MODEL_TYPE = "openai_endpoint"
_FOLLOWED = {"max_new_tokens", "do_sample", "temperature", "top_p", "num_return_sequences", "seed"}
"""Keys of `generate` that every server has a name for."""
_USUAL_TOKENS = 128
"""Room for a sentence or two, where nobody says how long captions may be."""
_OURS = ("model", "messages", "stream", "n")


class OpenAIEndpointOptions(ModelOptions):
    """Keys of `model`: where the server is, what it is asked, and how many questions at a time."""

    base_url: str | None = Field(None, description="address of the server with the API's version: http://HOST:PORT/v1")
    model: str | None = Field(None, description="name that the server has for the model; null = its only one")
    prompt: str = Field(CHAT_STYLES["short"], description="what the model is told next to each image")
    api_key_env: str | None = Field(
        None, description="name of the environment variable that holds the key; the key itself is never written"
    )
    trust_remote_code: bool = Field(
        False, description="images may leave this machine: needed where base_url is not on it; only if you trust it"
    )
    max_concurrency: PositiveInt = Field(8, le=1000, description="requests at a time, at most those of a batch")
    timeout: Annotated[float, Field(gt=0)] = Field(120.0, description="seconds to wait for an answer")
    max_retries: NonNegativeInt = Field(
        5, le=100, description="repetitions, with growing pauses, of requests that failed for load or the network"
    )
    max_side: PositiveInt | None = Field(
        2048, description="images are sent with at most N pixels on the longer side; null = as they are"
    )
    image_format: ImageFormat = Field("jpeg", description="how images are sent: jpeg (quality 95), or png (no loss)")
    extra_body: dict[str, Any] = Field(
        default_factory=dict,
        description="more fields of requests, e.g. {top_k: 20}; null takes one out, e.g. {temperature: null}",
    )

    _possible_address = field_validator("base_url")(possible_address)
    _name_of_a_variable = field_validator("api_key_env")(name_of_a_variable)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.base_url is None) == (self.pretrained is None):
            raise ValueError("give exactly one of base_url and pretrained (a run of this family)")
        for name in ("revision", "attn_implementation", "tokenizer"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name}: has no effect, because the server has the model; leave it out")
        if taken := [name for name in _OURS if name in self.extra_body]:
            raise ValueError(f"extra_body: {taken[0]} is set by hfcap; leave it out")
        if self.base_url is not None and not self.trust_remote_code and not is_this_machine(self.base_url):
            raise ValueError(
                f"base_url: images would leave this machine; set trust_remote_code: true if {self.base_url} may have "
                "them"
            )
        return self


class OpenAIEndpoint(NonparametricCaptioner):
    """A model that a server with OpenAI's chat completions runs. It has no parts: nothing of it is here."""

    options_class = OpenAIEndpointOptions
    answers_prompts = True
    parts = ()
    keeps_features = False
    sees_one_image = False
    own_shapes = True
    publishing_limits: ClassVar = {
        "publish": "its weights are not here, but where the server is",
        "pipeline": "its weights are not here, but where the server is",
    }
    model_types = (MODEL_TYPE,)
    card_facts = CardFacts(
        title="Served model",
        summary="A model that an OpenAI-compatible server runs (vLLM, SGLang, llama.cpp, transformers serve) is sent "
        "each image with a prompt.",
        paper_title="Visual Instruction Tuning",
        paper_url="https://arxiv.org/abs/2304.08485",
        bibtex="""@inproceedings{liu2023llava,
  title     = {Visual Instruction Tuning},
  author    = {Liu, Haotian and Li, Chunyuan and Wu, Qingyang and Lee, Yong Jae},
  booktitle = {NeurIPS},
  year      = {2023}
}""",
        paper_model_types=("llava",),
    )

    def __init__(self, options: OpenAIEndpointOptions) -> None:
        assert options.base_url is not None
        model: Any = nn.Module()
        model.config = SimpleNamespace(model_type=MODEL_TYPE)
        processor = EndpointProcessor(SentImages(options.max_side, options.image_format))
        super().__init__(model, processor, options.prompt)
        self.options = options
        self.base_models = [BaseModel(options.model or options.base_url, None, "served model")]
        self.client = Client(options.base_url, options.api_key_env, options.timeout, options.max_retries)
        self._name = options.model

    # ---- building and saving -----------------------------------------------------------------------------------

    @classmethod
    def build(cls, options: OpenAIEndpointOptions, training_captions: Iterable[str]) -> Self:
        """Take the options; the server is asked for nothing yet."""
        return cls.from_pretrained(options) if options.pretrained is not None else cls(options)

    @classmethod
    def from_folder(cls, location: str, revision: str | None, trust_remote_code: bool) -> Self:
        """Read what `save` wrote.

        Raises:
            UserError: it is damaged, or images would leave this machine and nobody said that they may.
        """
        path = Path(location) / "config.json"
        values = read_json_object(path, "configuration of the model")
        values.pop("model_type", None)
        try:
            options = OpenAIEndpointOptions(**{**values, "trust_remote_code": True})
        except ValidationError as error:
            problem = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(map(str, problem["loc"]))
            raise UserError(f"{path}: {place}: {problem['msg']}; correct it, or run the recipe again") from None
        if not trust_remote_code and not is_this_machine(str(options.base_url)):
            key = f", with the key in {options.api_key_env}" if options.api_key_env else ""
            raise UserError(
                f"{location}: captions by sending images to {options.base_url}{key}; give --trust-remote-code "
                "(trust_remote_code=True) if they may leave this machine"
            )
        return cls(options.model_copy(update={"trust_remote_code": trust_remote_code}))

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Return an address of this machine; whoever captions needs a server there."""
        return {"base_url": "http://127.0.0.1:9/v1", "model": "tiny"}

    @staticmethod
    @cache
    def folder_for(base_url: str) -> Path:
        """Return a folder, kept as long as this process, of a captioner that asks the only model of a server.

        Raises:
            UserError: it is no possible address.
        """
        if problem := address_problem(base_url):
            raise UserError(f"{base_url.rpartition('@')[2].partition('?')[0]}: {problem}")
        folder = Path(tempfile.mkdtemp(prefix="hfcap-server-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        options = OpenAIEndpointOptions(base_url=base_url, trust_remote_code=True)
        OpenAIEndpoint(options).save(folder, GenerateOptions(num_beams=1, max_new_tokens=_USUAL_TOKENS))
        return folder

    def save(self, folder: Path, options: GenerateOptions) -> None:
        """Write where the server is and what it is asked, and the decoding defaults; no key."""
        self.check_decoding(options)
        values = self.options.model_dump(mode="json", exclude={"trust_remote_code", "pretrained"})
        write_json(folder / "config.json", {"model_type": MODEL_TYPE, **values, "prompt": self.template})
        written = _FOLLOWED - (set() if options.do_sample else set(SAMPLING_ONLY)) | {"num_beams"}
        write_json(folder / "generation_config.json", options.model_dump(mode="json", include=written))
        self.save_processor(folder)

    def sidecar(self) -> dict[str, str]:
        """Return family and prompt, and that there is nothing to publish."""
        return {
            "captioner": self.family,
            "prompt": self.template,
            "unpublishable": "its weights are where the server is",
            "needs_hfcap": "true",
        }

    def style_prompt(self, style: str) -> str:
        """Return the instruction: every served model takes some."""
        return CHAT_STYLES[style]

    def identity(self) -> str:
        """Return server, model, fields of requests and form of images, on which captions depend."""
        names = {"base_url", "model", "extra_body", "max_side", "image_format"}
        return self.options.model_dump_json(include=names)

    # ---- captions ----------------------------------------------------------------------------------------------

    def check_decoding(self, options: GenerateOptions) -> None:
        """Refuse what servers have no common name for, and to begin without the key.

        Raises:
            OptionError: names the option.
            UserError: the environment does not hold the key.
        """
        usual = GenerateOptions()
        for name in GenerateOptions.model_fields:
            value = getattr(options, name)
            if name == "num_beams":
                if value > 1:
                    raise OptionError(
                        f"decoding options: num_beams={value}: a served model has no beam search; set num_beams: 1 "
                        "(--num-beams 1), and --sample for several captions an image"
                    )
            elif name not in {*_FOLLOWED, "style"} and value != getattr(usual, name):
                raise OptionError(
                    f"decoding options: {name}: servers have no common field for it; leave it out, and put the "
                    "server's own field into model.extra_body"
                )
        self.client.require_key()

    def encode(self, pixel_values: Any) -> Any:
        """Return the bytes of images as they are: the server has the encoder."""
        return pixel_values

    def caption_states(
        self, image_states: Any, options: GenerateOptions, prompt: str | None = None
    ) -> list[list[GeneratedCaption]]:
        """Ask the server about each image, several at a time; scores are not known.

        Raises:
            UserError: the server refuses.
            WorkError: it cannot be reached, or answers no captions.
        """
        text = self.prompt if prompt is None else prompt
        return self.caption_each(image_states, options, [text] * len(image_states))

    def caption_each(
        self, image_states: Any, options: GenerateOptions, prompts: Sequence[str]
    ) -> list[list[GeneratedCaption]]:
        """Ask the server about each image with its own prompt; see `caption_states`."""
        self.check_decoding(options)
        assert isinstance(image_states, SizedImages)
        processor: SentImages = self.image_processor
        bodies = []
        for values, size, text in zip(image_states.values, image_states.sizes, prompts, strict=True):
            asked = self._body(processor.data_url(values, size), text, options)
            # One request for each sample: not every server gives several answers to one.
            bodies += [asked | self._drawn(options) for _ in range(options.num_return_sequences)]
        found = all_of(self._caption, bodies, self.options.max_concurrency)
        if not any(caption.text or caption.cut for caption in found):
            raise WorkError(
                f"{self.client.base_url}: the model answers without text; check that it reads images, and change "
                "model.prompt"
            )
        n = options.num_return_sequences
        return [_together(found[first : first + n]) for first in range(0, len(found), n)]

    def _caption(self, body: dict[str, Any], stopping: threading.Event) -> GeneratedCaption:
        return caption_of(self.client.request("/chat/completions", body, stopping), self.client.base_url)

    def _body(self, image: str, text: str, options: GenerateOptions) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": image}}]
        content += [{"type": "text", "text": text.strip()}] if text.strip() else []
        body = {
            "model": self._model_name(),
            "messages": [{"role": "user", "content": content}],
            "max_tokens": options.max_new_tokens,
            "temperature": options.temperature if options.do_sample else 0.0,
            **({"top_p": options.top_p} if options.do_sample else {}),
            **self.options.extra_body,
        }
        return {name: value for name, value in body.items() if value is not None}

    def _drawn(self, options: GenerateOptions) -> dict[str, int]:
        # From torch's random state, which is that of this batch: what goes on after a stop draws the same.
        return {"seed": int(torch.randint(0, 2**31, ()))} if options.do_sample else {}

    def _model_name(self) -> str:
        if self._name is None:
            names = self.client.models()
            if len(names) != 1:
                which = f"has {', '.join(names[:10])}" if names else "names no model"
                raise UserError(f"{self.client.base_url}: {which}; set model.model to the one that is to caption")
            self._name = names[0]
        return self._name

    # ---- what a model somewhere else does not have ----------------------------------------------------------------

    def fit(self, data: FittingData) -> None:
        """Learn nothing: the server has the model."""

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """Nothing is here."""
        return {}

    def plain_generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Not there: `caption_states` asks the server."""
        raise AssertionError("a served model generates at the server")

    def start_token_ids(self, prompt: str | None = None) -> list[int]:
        """Return nothing: the server has the tokens."""
        return []

    def caption_token_ids(self, captions: Sequence[str], max_tokens: int) -> list[list[int]]:
        """Not there: the server has the tokenizer."""
        raise AssertionError("a served model has its tokenizer at the server")

    @property
    def start_token_id(self) -> int:
        """Not there.

        Raises:
            UserError: always; whoever asks wants to look inside.
        """
        raise UserError(
            f"{self.client.base_url}: only the server can look inside its model; use a model on this machine instead"
        )

    end_token_id = pad_token_id = start_token_id

    @property
    def max_text_tokens(self) -> int | None:
        """The server says whether a text is too long."""
        return None

    @property
    def captions_from_pixels(self) -> bool:
        """Plain transformers has no model to caption with."""
        return False

    @property
    def device(self) -> torch.device:
        """Images are encoded on the CPU."""
        return torch.device("cpu")

    @property
    def states_dtype(self) -> torch.dtype:
        """That of what stands for pixels."""
        return torch.float32


def _together(captions: list[GeneratedCaption]) -> list[GeneratedCaption]:
    """Candidates of one image; the first one carries what all cost."""
    first = captions[0]
    return [GeneratedCaption(first.text, None, first.cut, added([one.usage for one in captions])), *captions[1:]]


REGISTERED = OpenAIEndpoint
