"""The blocks `lora` and `train` of a recipe: names of peft's LoraConfig and of transformers' TrainingArguments."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from hfcap.recipe.block_base import Block, NonNegativeFloat, NonNegativeInt, PositiveInt, Share

Schedule = Literal[
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
]
"""transformers' names. Those that look at a metric (reduce_lr_on_plateau, greedy) would not resume to the bit."""

Optimizer = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_torch_4bit",
    "adamw_torch_8bit",
    "adamw_torch_xla",
    "adamw_torch_npu_fused",
    "adamw_anyprecision",
    "adamw_8bit",
    "adamw_bnb_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "adafactor",
    "adagrad",
    "ademamix",
    "ademamix_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "apollo_adamw",
    "galore_adafactor",
    "galore_adamw",
    "galore_adamw_8bit",
    "grokadamw",
    "lion_32bit",
    "lion_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "rmsprop",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
    "sgd",
    "stable_adamw",
]
"""transformers' names, without those that step inside the backward pass or keep weights of their own."""

Tracker = Literal[
    "aim",
    "clearml",
    "codecarbon",
    "comet_ml",
    "dvclive",
    "mlflow",
    "swanlab",
    "tensorboard",
    "trackio",
    "wandb",
]

BelowOne = Annotated[float, Field(ge=0, lt=1)]


class LoraOptions(Block):
    """LoRA (Hu et al. 2021) with the names of peft's LoraConfig."""

    r: PositiveInt = Field(16, description="rank of the adapters: more learns more and costs more")
    lora_alpha: PositiveInt = Field(32, description="adapters are scaled by lora_alpha / r")
    lora_dropout: Share = Field(0.05, description="probability of dropout in front of the adapters")
    target_modules: str | list[str] = Field(
        "auto",
        description="auto: the captioner family's layers, of vision-language models all linear ones of the language "
        "model; all-linear, a regular expression over whole names, or a list of name endings, as in peft",
    )
    target_parameters: list[str] | None = Field(
        None, description="weights without a layer of their own, as fused experts: [experts.gate_up_proj]"
    )
    trainable_token_indices: list[NonNegativeInt] | dict[str, list[NonNegativeInt]] | None = Field(
        None, description="numbers of tokens whose embeddings are trained"
    )
    rank_pattern: dict[str, PositiveInt] = Field(default_factory=dict, description="names of layers -> another r")
    alpha_pattern: dict[str, PositiveInt] = Field(
        default_factory=dict, description="names of layers -> another lora_alpha"
    )
    modules_to_save: list[str] | None = Field(
        None, description="name endings of modules that are trained in full and saved with the adapter"
    )
    bias: Literal["none", "all", "lora_only"] = Field(
        "none", description="which biases are trained: none, all, or those of adapted layers"
    )
    use_dora: bool = Field(False, description="DoRA: magnitude and direction of the weights apart; slower")
    use_rslora: bool = Field(False, description="scale by lora_alpha / sqrt(r) instead")
    load_in_4bit: bool = Field(
        False, description="QLoRA: the frozen layers in 4 bits (NF4) while training (bitsandbytes; CUDA GPU or CPU)"
    )
    init_lora_weights: bool | Literal["gaussian", "pissa", "olora", "eva", "orthogonal"] = Field(
        True, description="how adapters begin; true = as no change"
    )

    @field_validator("target_modules")
    @classmethod
    def _readable(cls, value: str | list[str]) -> str | list[str]:
        if not value:
            raise ValueError("names no layer; give auto, all-linear or a list of name endings")
        if isinstance(value, str):
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(
                    f"{value!r} is no regular expression ({error}); give auto, all-linear or a list"
                ) from None
        return value


ONE_OF = (("num_train_epochs", "max_steps"), ("warmup_ratio", "warmup_steps"), ("bf16", "fp16", "mixed_precision"))
"""Keys of `train` that exclude each other: one given on the command line takes the place of the recipe's."""


_FEWEST_WORKERS, _MOST_WORKERS = 2, 8


def workers_here() -> int:
    """Return how many processes decode images where a recipe does not say: one for each core that this process may use.

    Processes that a launcher started together on this machine share its cores. Two also of a single core, where one
    reads a file while the other decodes.
    """
    may_use = getattr(os, "sched_getaffinity", None)  # Linux alone tells which cores a process may use
    cores = (os.cpu_count() or 1) if may_use is None else len(may_use(0))
    together = os.environ.get("LOCAL_WORLD_SIZE", "")  # set by torchrun and accelerate
    share = cores // int(together) if together.isdecimal() and int(together) else cores
    return min(_MOST_WORKERS, max(_FEWEST_WORKERS, share))


class TrainOptions(Block):
    """Training, with the names of transformers' TrainingArguments. Batch sizes count images, not captions."""

    num_train_epochs: Annotated[float, Field(gt=0)] | None = Field(
        None, description="passes over the training images; give this or max_steps"
    )
    max_steps: PositiveInt | None = Field(None, description="optimiser updates; give this or num_train_epochs")
    per_device_train_batch_size: PositiveInt = Field(16, description="images per device; each brings its captions")
    per_device_eval_batch_size: PositiveInt = Field(32, description="images per device in validation and captioning")
    gradient_accumulation_steps: PositiveInt = Field(1, description="batches whose gradients make one update")
    learning_rate: Annotated[float, Field(gt=0)] = Field(5e-5, description="highest learning rate, after the warm-up")
    learning_rates: dict[str, NonNegativeFloat] = Field(
        default_factory=dict, description="learning rate per part (vision, text, mapper); others use learning_rate"
    )
    freeze: list[str] = Field(default_factory=list, description="parts that are not trained (vision, text, mapper)")
    dropout: dict[str, Share] = Field(
        default_factory=dict,
        description="probability per part (vision, text, mapper) of the dropout layers that its model has switched on; "
        "others keep what the model's configuration says",
    )
    lr_scheduler_type: Schedule = Field("cosine", description="how the learning rate falls after the warm-up")
    lr_scheduler_kwargs: dict[str, int | float | str] = Field(
        default_factory=dict, description="what the schedule takes besides: {min_lr_rate: 0.1} of cosine_with_min_lr"
    )
    warmup_ratio: Share = Field(0.0, description="the old name of warmup_steps below 1")
    warmup_steps: NonNegativeInt | NonNegativeFloat = Field(
        0, description="updates in which the learning rate rises from 0; below 1 their share of all updates"
    )
    weight_decay: NonNegativeFloat = Field(0.05, description="the optimiser's; biases and norms have none")
    adam_beta1: BelowOne = Field(0.9, description="AdamW's decay of the mean gradient")
    adam_beta2: BelowOne = Field(0.999, description="AdamW's decay of the squared gradient")
    adam_epsilon: NonNegativeFloat = Field(1e-8, description="added to AdamW's denominator")
    max_grad_norm: NonNegativeFloat = Field(1.0, description="0 switches clipping off")
    label_smoothing_factor: Share = Field(0.0, description="share of a label's probability that all other tokens get")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        "no", description="number type of the computation; weights stay float32"
    )
    tf32: bool | None = Field(
        None,
        description="float32 products of training in TF32 (CUDA GPUs from NVIDIA's Ampere on); null = torch's choice, "
        "which is convolutions alone",
    )
    gradient_checkpointing: bool | list[str] = Field(
        False, description="true, or a list of parts whose activations are computed again instead of kept"
    )
    torch_compile: bool = Field(False, description="compile the model's layers; the first steps take minutes")
    optim: Optimizer = Field(
        "adamw_torch",
        description="as in TrainingArguments; the 8-bit ones keep a quarter of the optimiser's memory (bitsandbytes; "
        "CUDA GPU or CPU)",
    )
    optim_args: str | None = Field(None, description="what the optimiser takes besides: momentum=0.9,nesterov=true")
    optim_target_modules: str | list[str] | None = Field(
        None, description="layers whose gradients GaLore and APOLLO project; all-linear, or names"
    )
    ema_decay: Share | None = Field(
        None, description="keep an exponential moving average of the weights and publish it"
    )
    seed: NonNegativeInt = Field(42, description="of new weights, dropout, order of images and choice of captions")
    logging_steps: PositiveInt = Field(10, description="a line of log.jsonl every N updates")
    eval_steps: PositiveInt | None = Field(None, description="validate every N updates; null = each epoch")
    save_steps: PositiveInt | None = Field(None, description="checkpoint every N updates; null = as eval_steps")
    save_total_limit: Annotated[int, Field(ge=2)] = Field(
        2, description="checkpoints that are kept: the newest and the best are among them"
    )
    metric_for_best_model: Literal["loss", "cider"] = Field(
        "loss", description="what chooses the best checkpoint in validation"
    )
    load_best_model_at_end: bool = Field(True, description="keep the best weights; false = the last")
    early_stopping_patience: PositiveInt | None = Field(None, description="validations without improvement before stop")
    sample_captions: NonNegativeInt = Field(
        3, description="validation images whose captions are shown and logged at every validation; 0 = none"
    )
    dataloader_num_workers: NonNegativeInt | None = Field(
        None,
        description="processes that decode images; null = as many as cores that this process may use, 2 to 8; 0 = none "
        "but the training itself",
    )
    report_to: list[Tracker] = Field(
        default_factory=list, description="trackers of Accelerate, and codecarbon; none, or one name, as well"
    )

    @property
    def loading_workers(self) -> int:
        """How many processes decode images on this machine."""
        return workers_here() if self.dataloader_num_workers is None else self.dataloader_num_workers

    @model_validator(mode="before")
    @classmethod
    def _names_of_training_arguments(cls, values: Any) -> Any:
        """Take `bf16: true` and `fp16: true` for `mixed_precision`, and a tracker alone for a list of it."""
        if not isinstance(values, Mapping):
            return values
        given = dict(values)
        flags = {name: given.pop(name) for name in ("bf16", "fp16") if isinstance(given.get(name), bool)}
        chosen = [name for name, on in flags.items() if on]
        if len(chosen) > 1 or (chosen and given.get("mixed_precision", chosen[0]) != chosen[0]):
            raise ValueError("give one of bf16: true, fp16: true and mixed_precision")
        if chosen:
            given["mixed_precision"] = chosen[0]
        if isinstance(given.get("report_to"), str):
            given["report_to"] = [] if given["report_to"] == "none" else [given["report_to"]]
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.warmup_steps >= 1 and self.warmup_steps != int(self.warmup_steps):
            raise ValueError(f"warmup_steps: {self.warmup_steps} must be a share below 1, or a whole number of updates")
        if (self.num_train_epochs is None) == (self.max_steps is None):
            raise ValueError("give exactly one of num_train_epochs and max_steps (set the other to null)")
        if self.warmup_ratio and self.warmup_steps:
            raise ValueError("give warmup_ratio or warmup_steps, not both")
        if self.lr_scheduler_type == "constant" and (self.warmup_ratio or self.warmup_steps):
            raise ValueError(
                "lr_scheduler_type: constant has no warm-up; write constant_with_warmup, or leave warmup_ratio and "
                "warmup_steps out"
            )
        return self
