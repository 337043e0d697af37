"""The blocks `lora` and `train` of a recipe: names of peft's LoraConfig and of transformers' TrainingArguments."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from hfcap.recipe.block_base import Block, NonNegativeFloat, NonNegativeInt, PositiveInt, Share

BelowOne = Annotated[float, Field(ge=0, lt=1)]


class LoraOptions(Block):
    """LoRA (Hu et al. 2021) with the names of peft's LoraConfig."""

    r: PositiveInt = 16
    lora_alpha: PositiveInt = 32
    lora_dropout: Share = 0.05
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
    modules_to_save: list[str] | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    use_dora: bool = False
    use_rslora: bool = False
    load_in_4bit: bool = Field(
        False, description="QLoRA: the frozen layers in 4 bits (NF4) while training (bitsandbytes; CUDA GPU or CPU)"
    )
    init_lora_weights: bool | Literal["gaussian", "pissa", "olora", "eva", "orthogonal"] = True

    @field_validator("target_modules")
    @classmethod
    def _readable(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, str):
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(
                    f"{value!r} is no regular expression ({error}); give auto, all-linear or a list"
                ) from None
        return value


class TrainOptions(Block):
    """Training, with the names of transformers' TrainingArguments. Batch sizes count images, not captions."""

    num_train_epochs: Annotated[float, Field(gt=0)] | None = None
    max_steps: PositiveInt | None = Field(None, description="optimiser updates; give this or num_train_epochs")
    per_device_train_batch_size: PositiveInt = Field(16, description="images per device; each brings its captions")
    per_device_eval_batch_size: PositiveInt = 32
    gradient_accumulation_steps: PositiveInt = 1
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    learning_rates: dict[str, NonNegativeFloat] = Field(
        default_factory=dict, description="learning rate per part (vision, text, mapper); others use learning_rate"
    )
    freeze: list[str] = Field(default_factory=list, description="parts that are not trained (vision, text, mapper)")
    dropout: dict[str, Share] = Field(
        default_factory=dict,
        description="probability per part (vision, text, mapper) of the dropout layers that its model has switched on; "
        "others keep what the model's configuration says",
    )
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "cosine"
    warmup_ratio: Share = 0.0
    warmup_steps: NonNegativeInt = 0
    weight_decay: NonNegativeFloat = 0.05
    adam_beta1: BelowOne = 0.9
    adam_beta2: BelowOne = 0.999
    adam_epsilon: NonNegativeFloat = 1e-8
    max_grad_norm: NonNegativeFloat = Field(1.0, description="0 switches clipping off")
    label_smoothing_factor: Share = 0.0
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool | list[str] = Field(
        False, description="true, or a list of parts whose activations are computed again instead of kept"
    )
    torch_compile: bool = Field(False, description="compile the model's layers; the first steps take minutes")
    optim: Literal["adamw_torch", "adamw_bnb_8bit", "paged_adamw_8bit"] = Field(
        "adamw_torch",
        description="the 8-bit ones keep a quarter of the optimiser's memory (bitsandbytes; CUDA GPU or CPU)",
    )
    ema_decay: Share | None = Field(
        None, description="keep an exponential moving average of the weights and publish it"
    )
    seed: NonNegativeInt = 42
    logging_steps: PositiveInt = 10
    eval_steps: PositiveInt | None = Field(None, description="validate every N updates; null = each epoch")
    save_steps: PositiveInt | None = Field(None, description="checkpoint every N updates; null = as eval_steps")
    save_total_limit: Annotated[int, Field(ge=2)] = 2
    metric_for_best_model: Literal["loss", "cider"] = "loss"
    load_best_model_at_end: bool = True
    early_stopping_patience: PositiveInt | None = Field(None, description="validations without improvement before stop")
    dataloader_num_workers: NonNegativeInt = 2
    report_to: list[Literal["tensorboard", "wandb", "trackio", "codecarbon"]] = Field(default_factory=list)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
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
