"""Ensembles: several captioners propose captions, consensus or CLIP chooses among them (late fusion)."""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, CLIPProcessor, GenerationConfig

from hfcap.captioners.adaptation.merging import require_merged
from hfcap.captioners.base import BaseModel, Captioner, CardFacts, GeneratedCaption
from hfcap.captioners.loading import earlier_base_models, is_run_directory, load_captioner, local_folder
from hfcap.captioners.published.modeling_ensemble import (
    RERANKER,
    EnsembleConfig,
    EnsembleForImageCaptioning,
    EnsembleImageProcessor,
    EnsembleProcessor,
    ngram_counts,
    ngram_key,
    rounds,
)
from hfcap.captioners.shared.custom_model import ConfigTokensMixin
from hfcap.captioners.shared.dual_encoder import DualEncoder
from hfcap.captioners.shared.nonparametric import FittingData, NonparametricCaptioner
from hfcap.captioners.shared.pretrained import TINY_VIT, whole_model
from hfcap.captioners.shared.room import room_for_caption
from hfcap.captioners.shared.tokenizers import load_tokenizer, special_token_ids, train_tokenizer
from hfcap.errors import UserError
from hfcap.places import Location
from hfcap.progress import track
from hfcap.recipe.block_base import Block, NonNegativeInt, PositiveInt
from hfcap.recipe.blocks import GenerateOptions, ModelOptions, TokenizerOptions
from hfcap.recipe.prompt_fields import fields_of
from hfcap.schema import SizedImages

_MEMBER_FOLDER = re.compile(r"member_\d+")

AutoConfig.register("caption_ensemble", EnsembleConfig, exist_ok=True)
AutoModelForImageTextToText.register(EnsembleConfig, EnsembleForImageCaptioning, exist_ok=True)


class MemberOptions(Block):
    """One captioner of an ensemble."""

    model: Location = Field(description="run directory, model folder or Hub id of a trained captioner")
    revision: str | None = Field(None, description="commit, tag or branch on the Hub")
    weight: Annotated[float, Field(gt=0)] = Field(1.0, description="what its captions count, shared by its candidates")


class EnsembleOptions(ModelOptions):
    """Keys of `model`: the members, how much they propose, and what chooses."""

    members: list[MemberOptions] | None = Field(None, description="two or more trained captioners")
    candidates: PositiveInt = Field(
        5,
        description="captions that each member proposes, by at least N beams, or as samples: with "
        "generate.do_sample 32 are better than 5",
    )
    beam_candidates: NonNegativeInt = Field(
        3, description="with generate.do_sample: N more by a beam search of each member; only samples vote"
    )
    choice: Literal["consensus", "clip"] = Field(
        "consensus", description="consensus: most similar to all candidates by CIDEr-D; clip: nearest to the image"
    )
    clip: Location | None = Field(None, description="choice: clip: Hub id or folder of a CLIP or SigLIP")
    clip_revision: str | None = Field(None, description="commit, tag or branch of `clip`")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.pretrained is None) == (self.members is None):
            raise ValueError("give exactly one of pretrained and members")
        if self.members is not None and len(self.members) < 2:
            raise ValueError("members: an ensemble needs at least two")
        if self.pretrained is None and (self.choice == "clip") != (self.clip is not None):
            raise ValueError("choice: clip needs the key clip, and clip needs choice: clip")
        if self.prompt.strip():
            raise ValueError("prompt: the members have their own prompts; leave prompt empty")
        return self


class Ensemble(NonparametricCaptioner, ConfigTokensMixin):
    """An EnsembleForImageCaptioning over captioners of any family. Part: members."""

    options_class = EnsembleOptions
    parts = ("members",)
    keeps_features = False
    sees_one_image = False
    publishing_limits: ClassVar = {
        "pipeline": "its processor joins those of its members; the pipeline wants one model's"
    }
    model_types = ("caption_ensemble",)
    card_facts = CardFacts(
        title="Ensemble",
        summary=(
            "Several captioners propose captions; the one that agrees most with all of them, or fits the image best, "
            "is chosen."
        ),
        paper_title="Minimum Bayes-Risk Decoding for Statistical Machine Translation",
        paper_url="https://aclanthology.org/N04-1022",
        bibtex="""@inproceedings{kumar2004minimum,
  title     = {Minimum {B}ayes-Risk Decoding for Statistical Machine Translation},
  author    = {Kumar, Shankar and Byrne, William},
  booktitle = {Proceedings of HLT-NAACL},
  pages     = {169--176},
  year      = {2004}
}""",
    )

    members: Sequence[Captioner] = ()
    reranker: DualEncoder | None = None
    member_facts: Sequence[dict[str, Any]] = ()

    @classmethod
    def build(cls, options: EnsembleOptions, training_captions: Iterable[str]) -> Self:
        """Load the members; document frequencies are counted by `fit`."""
        if options.pretrained is not None:
            return cls.from_pretrained(options)
        assert options.members is not None
        trust = options.trust_remote_code
        members = [_load_member(member, trust) for member in options.members]
        reranker = None
        if options.clip is not None:
            reranker = DualEncoder(options.clip, "model.clip", options.clip_revision, trust)
        parts = [member.image_processor for member in members]
        parts += [] if reranker is None else [reranker.image_processor]
        tokenizer = train_tokenizer(
            options.tokenizer or TokenizerOptions(vocab_size=8000, lowercase=False), training_captions
        )
        config = EnsembleConfig(
            members=[
                {
                    "folder": f"member_{number}",
                    "model_type": captioner.model.config.model_type,
                    "prompt": captioner.prompt.strip(),
                    "weight": member.weight,
                }
                for number, (captioner, member) in enumerate(zip(members, options.members, strict=True))
            ],
            candidates=options.candidates,
            beam_candidates=options.beam_candidates,
            choice=options.choice,
            pixel_shapes=[_pixel_shape(part, number) for number, part in enumerate(parts)],
            **special_token_ids(tokenizer),
        )
        captioner = cls._joined(EnsembleForImageCaptioning(config), members, reranker, tokenizer)
        captioner.base_models = [base for member in options.members for base in _base_models(member)]
        captioner.member_facts = [
            {**_facts(member), "captioner": loaded.sidecar()["captioner"], "weight": member.weight}
            for member, loaded in zip(options.members, members, strict=True)
        ]
        if options.clip is not None:
            captioner.base_models.append(BaseModel(options.clip, options.clip_revision, "reranker"))
        captioner.assembled = True
        return captioner

    @classmethod
    def effective_decoding(cls, options: EnsembleOptions, generate: GenerateOptions) -> GenerateOptions:
        """Return how each member decodes."""
        return _for_members(generate, options.candidates, 0)[0]

    @classmethod
    def from_folder(cls, location: str, revision: str | None, trust_remote_code: bool) -> Self:
        """Load a saved ensemble with its members; members with own code need `trust_remote_code`."""
        model = whole_model(EnsembleForImageCaptioning, location, revision, with_members=False)
        folder, names = local_folder(location, revision), [member["folder"] for member in model.config.members]
        for name in names:
            if not _MEMBER_FOLDER.fullmatch(str(name)):
                raise UserError(f"{location}: config.json names a member folder {name!r}; expected member_<number>")
        members = [load_captioner(str(folder / name), trust_remote_code=trust_remote_code) for name in names]
        reranker = None
        if model.config.choice == "clip":
            reranker = DualEncoder(str(folder / RERANKER), "model.pretrained", None, trust_remote_code)
        tokenizer = load_tokenizer(location, "model.pretrained", revision, trust_remote_code)
        return cls._joined(model, members, reranker, tokenizer)

    @classmethod
    def _joined(
        cls,
        model: EnsembleForImageCaptioning,
        members: Sequence[Captioner],
        reranker: DualEncoder | None,
        tokenizer: Any,
    ) -> Self:
        parts = [member.image_processor for member in members]
        model.members.extend([member.model for member in members])
        model.member_processors = [member.processor for member in members]
        if reranker is not None:
            parts.append(reranker.image_processor)
            model.reranker = reranker.model
            model.reranker_processor = CLIPProcessor(reranker.image_processor, reranker.tokenizer)
        model.tokenizer = tokenizer
        captioner = cls(model, EnsembleProcessor(EnsembleImageProcessor(parts), tokenizer))
        captioner.members, captioner.reranker = members, reranker
        return captioner

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Two prefix captioners of random weights, saved to a temporary folder that goes with the process."""
        return {
            "members": [{"model": str(folder)} for folder in _tiny_members()],
            "candidates": 2,
            "tokenizer": {"vocab_size": 400, "lowercase": False},
        }

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """Members and reranker."""
        return {"members": [*self.model.members, *([] if self.reranker is None else [self.reranker.model])]}

    @property
    def max_text_tokens(self) -> int | None:
        """Tokens for the member with the least room for captions, after one start token."""
        rooms = [room for member in self.members if (room := room_for_caption(member)) is not None]
        return min(room.tokens for room in rooms) + 1 if rooms else None

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the joined pixel values (B, P) as (B, 1, P): each member encodes its own."""
        return pixel_values.flatten(1)[:, None]

    def plain_generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Choose captions by plain transformers alone, as the published model does."""
        return self.model.generate(image_states[:, 0], generation_config=config)

    @torch.inference_mode()
    def caption_states(
        self, image_states: torch.Tensor, options: GenerateOptions, prompt: str | None = None
    ) -> list[list[GeneratedCaption]]:
        """Let every member caption in its own way, and rank; scores are expected CIDEr-D, or cosines.

        Raises:
            UserError: a prompt is given.
        """
        if prompt is not None and prompt.strip():
            raise UserError("prompt: an ensemble takes none, because its members have their own; leave it out")
        config = self.model.config
        for_members = _for_members(options, config.candidates, config.beam_candidates)
        proposals: list[list[list[list[str]]]] = [[[] for _ in for_members] for _ in range(len(image_states))]
        parts = self.model.pixels_of_parts(image_states[:, 0])
        for member, pixels in zip(self.members, parts, strict=False):
            states = member.encode(pixels)
            for number, how in enumerate(for_members):
                for of_image, captions in zip(proposals, member.caption_states(states, how), strict=True):
                    of_image[number].append([caption.text for caption in captions])
        ranked = self.model.rank(proposals, None if self.reranker is None else parts[-1])
        return [
            [
                GeneratedCaption(*of_image[min(place, len(of_image) - 1)])
                for place in range(options.num_return_sequences)
            ]
            for of_image in ranked
        ]

    def fit(self, data: FittingData) -> None:
        """Count in how many images' captions each n-gram occurs; the members stay as they are."""
        counts: Counter[int] = Counter()
        for record in track(data.records, "Counting n-grams"):
            counts.update({ngram_key(ngram) for caption in record.captions for ngram in ngram_counts(caption)})
        # What one image holds weighs as much as what none does: CIDEr-D counts at least one.
        kept = sorted(key for key, count in counts.items() if count > 1)
        frequency = torch.tensor([counts[key] for key in kept], dtype=torch.float64)
        n_documents = len(data.records)
        self.model.config.n_documents, self.model.config.n_ngrams = n_documents, len(kept)
        self.model.register_buffer("ngram_keys", torch.tensor(kept, dtype=torch.int64, device=self.device))
        idf = (torch.tensor(float(n_documents), dtype=torch.float64).log() - frequency.log()).float()
        self.model.register_buffer("ngram_idf", idf.to(self.device))

    def fitted_facts(self) -> dict[str, Any]:
        """Return what the card says about the members."""
        return {"members": list(self.member_facts)}

    def sidecar(self) -> dict[str, str]:
        """Return the values of `Captioner.sidecar`, and why the ensemble cannot be published, if it cannot."""
        unable = [
            f"member {number} ({member.sidecar()['captioner']}, {type(member.model).__name__})"
            for number, member in enumerate(self.members)
            if not member.captions_from_pixels
        ]
        if not unable:
            return super().sidecar()
        return super().sidecar() | {
            "unpublishable": f"{' and '.join(unable)}: such a model captions only from a prompt made by its own "
            "processor, which the published code of an ensemble cannot do; leave the member out, or publish the "
            "members one by one"
        }

    def save(self, folder: Path, options: GenerateOptions) -> None:
        """Save as `Captioner.save`, and every member and the reranker as models of their own in subfolders."""
        EnsembleConfig.register_for_auto_class()
        EnsembleForImageCaptioning.register_for_auto_class("AutoModelForImageTextToText")
        super().save(folder, options)
        for facts, member in zip(self.model.config.members, self.members, strict=True):
            member.save(folder / facts["folder"], options)
        if self.reranker is not None:
            self.reranker.save(folder / RERANKER)


def _for_members(options: GenerateOptions, candidates: int, beam_candidates: int) -> list[GenerateOptions]:
    """How every member decodes, round by round (see `rounds`)."""
    changes = rounds(options.model_dump(), candidates, beam_candidates)
    return [options.model_copy(update=change) for change in changes]


def _load_member(member: MemberOptions, trust_remote_code: bool) -> Captioner:
    try:
        captioner = load_captioner(member.model, member.revision, trust_remote_code)
        require_merged(captioner, member.model)
        if fields_of(captioner.template):
            raise UserError(
                f"asks {captioner.template!r}, and the members of an ensemble ask the same of every image; choose one "
                "whose prompt has no fields"
            )
        return captioner
    except UserError as error:
        raise UserError(f"model.members: {member.model}: {error}") from error


def _pixel_shape(image_processor: Any, number: int) -> list[int]:
    given = [
        image_processor(images=Image.new("RGB", size), return_tensors="pt")["pixel_values"]
        for size in ((60, 40), (40, 60), (300, 300))
    ]
    shapes = {tuple(values[0].shape) for values in given}
    if len(shapes) > 1 or any(isinstance(values, SizedImages) for values in given):
        raise UserError(
            f"model.members: member {number} keeps the proportions of images, so that they have different sizes; "
            "an ensemble needs members that resize to one size"
        )
    return list(shapes.pop())


def _base_models(member: MemberOptions) -> list[BaseModel]:
    if is_run_directory(member.model):
        return earlier_base_models(member.model)
    return [BaseModel(member.model, _commit(member), "member")]


def _commit(member: MemberOptions) -> str | None:
    """The commit that a member from the Hub was loaded from, which its place in the cache tells."""
    folder = local_folder(member.model, member.revision)
    return folder.name if folder.parent.name == "snapshots" else member.revision


def _facts(member: MemberOptions) -> dict[str, Any]:
    """Name (no path of this machine), revision and licence of a member, as far as it says."""
    path = Path(member.model)
    if not path.is_dir():
        folder = local_folder(member.model, member.revision)
        return {"name": member.model, "revision": _commit(member), "license": _licence(folder)}
    return {"name": path.resolve().name, "revision": None, "license": _licence(path)}


def _licence(folder: Path) -> str | None:
    """The licence that the card of a folder names."""
    from huggingface_hub import ModelCard

    card = folder / "README.md"
    if not card.is_file():
        return None
    try:
        licence = ModelCard.load(card, ignore_metadata_errors=True).data.license
    except ValueError:
        return None
    return licence if isinstance(licence, str) else None


@cache
def _tiny_members() -> tuple[Path, ...]:
    from hfcap.captioners.clip_prefix import ClipPrefix

    folder = Path(tempfile.mkdtemp(prefix="hfcap-tiny-ensemble-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    captions = ["a red cat sits on a mat", "two dogs run over the green grass"] * 4
    for number in range(2):
        torch.manual_seed(number)
        options = {**ClipPrefix.tiny(), "vision_config": {**TINY_VIT, "initializer_range": 0.5}}
        member = ClipPrefix.build(ClipPrefix.options_class(**options), captions)
        member.save(folder / str(number), GenerateOptions())
    return tuple(sorted(folder.iterdir()))


REGISTERED = Ensemble
