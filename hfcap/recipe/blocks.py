"""The recipe: one YAML file that says everything about a run, checked completely before anything starts.

Key names are those of the libraries: TrainingArguments in `train`, LoraConfig in `lora`, GenerationConfig in
`generate`. The keys of `model` belong to the captioner family and those of `data` to the data source; each declares a
subclass of `ModelOptions` or `DataOptions` in its own file.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator, model_validator

from hfcap.places import LocalPath, Location, Place
from hfcap.recipe.block_base import Block, NonNegativeInt, PositiveInt, Share
from hfcap.recipe.dpo import DpoOptions
from hfcap.recipe.prompt_fields import fields_of
from hfcap.recipe.publish_fields import require_id, require_language, require_licence, size_in_bytes
from hfcap.recipe.score_options import ScoreOptions as ScoreOptions
from hfcap.recipe.scst import ScstOptions
from hfcap.recipe.styles import Style, with_room_for_style
from hfcap.recipe.training_blocks import LoraOptions as LoraOptions
from hfcap.recipe.training_blocks import TrainOptions as TrainOptions

Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"]


class TokenizerOptions(Block):
    """A small byte-level BPE tokenizer trained on the training captions, for captioners trained from scratch."""

    vocab_size: Annotated[int, Field(ge=300)] = Field(4000, description="entries of its vocabulary, at most")
    lowercase: bool = Field(True, description="captions are taught and written in small letters")


class ModelOptions(Block):
    """Keys of `model` that every captioner family has; families add theirs in a subclass."""

    pretrained: Location | None = Field(None, description="Hub id or local folder of a whole captioner to start from")
    revision: str | None = Field(None, description="commit, tag or branch of `pretrained`")
    trust_remote_code: bool = Field(False, description="run code that comes with the base model; only if you trust it")
    prompt: str = Field(
        "",
        description="text that starts every caption, in training and in generation; {name} stands for the column name "
        "of the image's table, {{ for a brace",
    )
    attn_implementation: Attention | dict[str, Attention] | None = Field(
        None, description="attention kernel by transformers' name, or one for each part: {vision: flash_attention_2}"
    )
    tokenizer: TokenizerOptions | None = Field(None, description="train a tokenizer on the training captions")

    freezing_keys: ClassVar[tuple[str, ...]] = ()
    """Keys that, once set, leave nothing to train but LoRA's weights."""

    @field_validator("prompt")
    @classmethod
    def _fields_are_names(cls, value: str) -> str:
        fields_of(value)
        return value


class DataOptions(Block):
    """Keys of `data` that every source has; sources add theirs in a subclass."""

    source: str = Field(description="where images and captions come from: a file name in hfcap/data/sources")
    train_split: str = Field("train", description="the source's name of the split that is trained on")
    validation_split: str = Field(
        "validation", description="the source's name of the split that chooses the best checkpoint"
    )
    test_split: str = Field("test", description="the source's name of the split that is scored")
    max_train_images: PositiveInt | None = Field(None, description="use only the first N images of the split")
    max_validation_images: PositiveInt | None = Field(None, description="use only the first N images of the split")
    max_test_images: PositiveInt | None = Field(None, description="use only the first N images of the split")
    max_unreadable_images: NonNegativeInt = Field(
        0, description="how many missing or corrupt images may be skipped before the run stops"
    )
    captions_per_image: PositiveInt | None = Field(
        5, description="at most N captions of an image in one training step (others each epoch); null = all"
    )
    max_caption_tokens: PositiveInt = Field(
        40, description="longer captions are cut to N tokens in training and its loss; a cut is no end"
    )
    feature_store: Literal["auto", "on", "off"] = Field(
        "auto",
        description="a frozen encoder runs once per image and its output is kept on disk: auto where that is "
        "possible; on stops where it is not",
    )
    feature_store_folder: LocalPath | None = Field(
        None, description="default: HFCAP_CACHE or ~/.cache/hfcap, features/"
    )
    image_cache: bool = Field(
        False, description="keep images at the captioner's size, uncompressed: later epochs need no decoding"
    )
    image_cache_folder: LocalPath | None = Field(None, description="default: HFCAP_CACHE or ~/.cache/hfcap, images/")

    @property
    def may_store_features(self) -> bool:
        """Whether the output of an encoder that is not trained is kept."""
        return self.feature_store != "off"

    def to_score_more(self, split: str) -> str:
        """Return what to change so that a split has more images; sources that can make it so say how."""
        return f"give more images to data.{split}_split, or score another split (score.split)"


class AugmentOptions(Block):
    """Changes to training images and captions, sampled again each epoch; never active in validation."""

    crop_scale: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="a random crop keeps at least this share of the image's area; 1 = no crop"
    )
    rotation: Annotated[float, Field(ge=0, le=45)] = Field(0.0, description="at most N degrees either way")
    brightness: Share = Field(0.0, description="factor between 1 - brightness and 1 + brightness; 0 = none")
    contrast: Share = Field(0.0, description="factor between 1 - contrast and 1 + contrast; 0 = none")
    saturation: Share = Field(0.0, description="factor between 1 - saturation and 1 + saturation; 0 = none")
    horizontal_flip: Share = Field(0.0, description="probability that an image is mirrored")
    flip_captions: Literal["swap", "skip"] = Field(
        "swap",
        description="captions with left or right: swap exchanges the words, skip leaves the image unmirrored (swap "
        "does too where the words may mean something else)",
    )
    word_dropout: Share = Field(0.0, description="probability that the decoder does not see a word it has predicted")
    synonym_replacement: Share = Field(0.0, description="probability that a word with synonyms is replaced by one")
    synonyms: Annotated[str, Place(words=("wordnet",))] = Field(
        "wordnet", description="wordnet, or a JSON file that maps words to lists of synonyms"
    )

    @property
    def changes_images(self) -> bool:
        """Whether images differ from epoch to epoch, so that a frozen encoder's output cannot be kept."""
        strengths = (self.rotation, self.brightness, self.contrast, self.saturation, self.horizontal_flip)
        return self.crop_scale < 1 or any(strengths)


SAMPLING_ONLY = ("temperature", "top_k", "top_p", "seed")
"""Keys of `generate` that say something only where captions are drawn (do_sample)."""


class GenerateOptions(Block):
    """Decoding, with the names of transformers' GenerationConfig; `style` is hfcap's own."""

    num_beams: PositiveInt = Field(3, le=1000, description="beams of the search; 1 = greedy")
    max_new_tokens: PositiveInt = Field(30, le=10_000, description="most tokens of a caption")
    min_new_tokens: NonNegativeInt = Field(0, description="fewest tokens of a caption")
    length_penalty: float = Field(1.0, description="beam search: above 1 longer captions, below 1 shorter ones")
    no_repeat_ngram_size: NonNegativeInt = Field(0, description="no N words in a row occur twice; 0 = allowed")
    repetition_penalty: Annotated[float, Field(gt=0)] = Field(
        1.0, description="above 1: tokens that were written before become less likely"
    )
    bad_words_ids: list[Annotated[list[NonNegativeInt], Field(min_length=1)]] | None = Field(
        None, description="token ids of words that are never generated, as transformers has them"
    )
    do_sample: bool = Field(False, description="draw captions at random instead of searching for the likeliest")
    temperature: Annotated[float, Field(gt=0)] = Field(1.0, description="of sampling: below 1 likelier words")
    top_k: NonNegativeInt = Field(50, description="sampling from the N likeliest tokens; 0 = from all")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="sampling from the likeliest tokens that have this share of the probability"
    )
    num_return_sequences: PositiveInt = Field(
        1, le=1000, description="n-best list or number of samples kept as candidates"
    )
    seed: NonNegativeInt = Field(0, description="of sampling; another batch size draws other captions")
    style: Style | None = Field(
        None,
        description="what captions are asked for in place of a prompt, of models that take instructions; it also sets "
        "max_new_tokens where that is not given",
    )

    @model_validator(mode="before")
    @classmethod
    def _room_for_style(cls, values: Any) -> Any:
        return with_room_for_style(values)

    @model_validator(mode="after")
    def _enough_beams(self) -> Self:
        drawn_alone = self.do_sample and self.num_beams == 1  # sampling within beams gives as many captions as beams
        if not drawn_alone and self.num_return_sequences > self.num_beams:
            otherwise = "num_beams: 1, which draws each by itself" if self.do_sample else "do_sample: true"
            raise ValueError(
                f"num_return_sequences={self.num_return_sequences} needs num_beams of at least that many, "
                f"not {self.num_beams}, or {otherwise}"
            )
        return self

    def without_effect(self, given: Container[str]) -> list[str]:
        """Return those of the keys that somebody gave which would be ignored, because captions are not sampled."""
        return [] if self.do_sample else [name for name in SAMPLING_ONLY if name in given]


class PublishOptions(Block):
    """What goes to the Hub, where, and what the card says that the run cannot know."""

    repo_id: str | None = Field(None, description="namespace/name; without it only --dry-run works")
    private: bool = Field(False, description="a new repository is private")
    merged: bool = Field(False, description="of a LoRA run: publish merged weights instead of the adapter")
    license: str | None = Field(None, description="Hub licence identifier of the published weights")
    license_name: str | None = Field(None, description="the licence's own name, where license is other")
    license_link: str | None = Field(None, description="where its text is, where license is other")
    language: str | list[str] = Field("en", description="code of the captions' language (en, de, ...), or a list")
    tags: list[str] = Field(default_factory=list, description="of the card, in addition to hfcap's")
    base_model: str | None = Field(None, description="Hub id of the base model, where the run used a local copy")
    dataset: str | None = Field(None, description="Hub id of the dataset, for the card")
    dataset_name: str | None = Field(None, description="the dataset's name as people know it, for the card")
    max_shard_size: str = Field("5GB", description="weights are split into files of at most this size")
    samples_license: str | None = Field(
        None, description="licence under which the sample images may be published; without it none is"
    )
    eval_task_id: str | None = Field(
        None, description="task of the benchmark dataset (publish.dataset) that CIDEr-D is entered for in .eval_results"
    )

    @model_validator(mode="after")
    def _named_licence(self) -> Self:
        if self.license == "other" and not self.license_name:
            raise ValueError("license: other needs license_name (and license_link); the Hub refuses the card otherwise")
        return self

    @field_validator("license", "language", "base_model", "dataset", "max_shard_size")
    @classmethod
    def _accepted_by_the_hub(cls, value: str | list[str] | None, info: ValidationInfo) -> str | list[str] | None:
        checks = {"license": require_licence, "language": require_language, "max_shard_size": size_in_bytes}
        for text in [value] if isinstance(value, str) else value or []:
            checks.get(str(info.field_name), require_id)(text)
        return value

    @field_validator("repo_id")
    @classmethod
    def _valid_repo_id(cls, value: str | None) -> str | None:
        if value is not None:
            from huggingface_hub.errors import HFValidationError
            from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, not in __all__

            try:
                validate_repo_id(value)
            except HFValidationError as error:
                raise ValueError(str(error)) from None
        return value


class ExpectOptions(Block):
    """The published score this recipe aims at, on the raw scale (CIDEr 1.333)."""

    metrics: dict[str, float] = Field(description="metric name -> published value, raw scale")
    tolerance: Annotated[float, Field(gt=0)] = Field(
        0.01, description="relative difference still counted as reproduced"
    )
    source: str = Field(description="where the numbers were published")
    reproduced: bool = Field(False, description="true only once a run of this recipe met the numbers")

    def reached(self, metrics: Mapping[str, float | None]) -> dict[str, bool]:
        """Return of each published metric that was measured whether the value is not lower by more than `tolerance`."""
        values = {name: metrics.get(name) for name in self.metrics}
        return {
            name: value >= self.metrics[name] * (1 - self.tolerance)
            for name, value in values.items()
            if value is not None
        }


class Recipe(Block):
    """A complete run: captioner, data, training, decoding, scoring and publishing."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")] = Field(
        description="name of the run directory; letters, digits, '.', '_' and '-'"
    )
    output_dir: str = Field("runs", description="the run directory is <output_dir>/<name>")
    captioner: str = Field(description="family: a file name in hfcap/captioners")
    model: SerializeAsAny[ModelOptions] = Field(
        description="where the captioner's weights come from; keys of the family"
    )
    data: SerializeAsAny[DataOptions] = Field(description="images and captions; keys of the source")
    lora: LoraOptions | None = Field(None, description="train LoRA adapters; null = all weights that are not frozen")
    augment: AugmentOptions | None = Field(None, description="changes to training images and captions; null = none")
    train: TrainOptions = Field(description="training")
    scst: ScstOptions | None = Field(None, description="self-critical training in place of cross-entropy; null = no")
    dpo: DpoOptions | None = Field(None, description="training on preferred captions instead; null = no")
    generate: GenerateOptions = Field(default_factory=GenerateOptions, description="how captions are generated")
    score: ScoreOptions = Field(default_factory=ScoreOptions, description="what is scored and how")
    publish: PublishOptions = Field(default_factory=PublishOptions, description="what goes to the Hub")
    expect: ExpectOptions | None = Field(None, description="published values that the run is compared with")

    @property
    def caption_language(self) -> str | None:
        """Language that the recipe names for the captions; None = nobody said that they are not English."""
        named = self.publish.language
        published = named if isinstance(named, str) else next(iter(named), "en")  # of several, the first
        return self.score.language or (None if published == "en" else published)

    @field_validator("generate")
    @classmethod
    def _nothing_ignored(cls, options: GenerateOptions) -> GenerateOptions:
        """Stricter than `GenerateOptions`, which also hold what strangers saved with their models."""
        usual = GenerateOptions()
        changed = {name for name in SAMPLING_ONLY if getattr(options, name) != getattr(usual, name)}
        if idle := options.without_effect(changed):
            raise ValueError(f"{' and '.join(idle)}: no effect without sampling; set do_sample: true, or leave out")
        if options.min_new_tokens > options.max_new_tokens:
            raise ValueError(
                f"min_new_tokens={options.min_new_tokens} must not be more than max_new_tokens={options.max_new_tokens}"
            )
        return options

    @model_validator(mode="after")
    def _merges_something(self) -> Self:
        if self.publish.merged and self.lora is None:
            raise ValueError("publish.merged: is for LoRA runs; this recipe trains all weights (no block lora)")
        return self

    @model_validator(mode="after")
    def _objective_fits(self) -> Self:
        if self.scst is not None and self.dpo is not None:
            raise ValueError(
                "scst and dpo: are two ways to train; remove one of the blocks, and run the other after it"
            )
        for name, block, told_by in (("scst", self.scst, "rewards come from"), ("dpo", self.dpo, "pairs are about")):
            if block is not None and isinstance(self.model, ModelOptions):  # else it is refused for itself
                self._goes_on_well(name, block.dropout, told_by)
        return self

    def _goes_on_well(self, name: str, dropout: bool, told_by: str) -> None:
        if self.model.pretrained is None:
            raise ValueError(
                f"{name}: sharpens a captioner that was trained before; name its run directory (or a model folder or "
                "Hub id) in model.pretrained"
            )
        if self.train.metric_for_best_model == "loss" and self.train.load_best_model_at_end:
            raise ValueError(
                f"{name}: makes captions better and the loss worse; set train.metric_for_best_model: cider, or "
                "train.load_best_model_at_end: false"
            )
        if self.train.label_smoothing_factor:
            raise ValueError(f"{name}: has no labels to smooth; leave train.label_smoothing_factor out")
        if self.train.gradient_checkpointing and not dropout:
            raise ValueError(
                f"{name}: without dropout layers are in evaluation mode, in which they keep everything; set "
                f"{name}.dropout: true, or train.gradient_checkpointing: false"
            )
        if self.train.dropout and not dropout:
            raise ValueError(
                f"{name}: has no dropout in its updates; set {name}.dropout: true, or leave train.dropout out"
            )
        augment = self.augment
        if augment is None:
            return
        if augment.horizontal_flip and augment.flip_captions == "swap":
            raise ValueError(
                f"{name}: {told_by} the captions of the unmirrored images; set augment.flip_captions: skip"
            )
        if augment.word_dropout or augment.synonym_replacement:
            trained = "sampled captions" if name == "scst" else "pairs of captions"
            raise ValueError(
                f"{name}: trains on {trained}; leave augment.word_dropout and augment.synonym_replacement out"
            )
