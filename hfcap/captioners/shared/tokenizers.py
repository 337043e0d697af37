"""Tokenizers: loaded, or trained on the captions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from hfcap.captioners.shared.pretrained import loading_problem, unreadable_files
from hfcap.errors import UserError, shown
from hfcap.recipe.blocks import TokenizerOptions

START, END, PAD = "<start>", "<end>", "<pad>"


def token_number(value: Any, name: str) -> int:
    """Return the number of a special token that a configuration or tokenizer names.

    Raises:
        UserError: it names none; the message says which.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(
            f"{name} of the model must be the number of a token, not {shown(value)}; correct its "
            "generation_config.json or config.json"
        )
    return value


def load_tokenizer(location: str, key: str, revision: str | None, trust_remote_code: bool, **arguments: Any) -> Any:
    """Load a tokenizer that has start, end and pad token.

    Where it has no pad token the end token pads, which is safe because packing labels only real end tokens.
    """
    with unreadable_files(lambda error: f"{key}: no tokenizer in {location}: {loading_problem(error)}"):
        tokenizer = AutoTokenizer.from_pretrained(
            location, revision=revision, trust_remote_code=trust_remote_code, **arguments
        )
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        # Where the files are missing, transformers makes a tokenizer of the model's kind that knows no words.
        raise UserError(
            f"{key}: no tokenizer in {location}: its files are missing or hold no words; save it there again"
        )
    # How the tokenizer was found says nothing about it, and would be published with it.
    for name in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(name, None)
    # BERT-like tokenizers call their start and end differently.
    tokenizer.bos_token = tokenizer.bos_token or tokenizer.cls_token or tokenizer.eos_token
    tokenizer.eos_token = tokenizer.eos_token or tokenizer.sep_token
    if tokenizer.eos_token is None:
        raise UserError(
            f"{key}: the tokenizer of {location} has no end token, so that captions could never stop; choose "
            "another tokenizer"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def train_tokenizer(options: TokenizerOptions, captions: Iterable[str]) -> Any:
    """Train a byte-level BPE tokenizer on captions; no text is ever out of its vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    steps: list[Any] = [normalizers.NFC()]
    if options.lowercase:
        steps.append(normalizers.Lowercase())
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=options.vocab_size,
            special_tokens=[PAD, START, END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token=PAD, model_max_length=512
    )


def wrap_texts(tokenizer: Any, start: bool, end: bool) -> None:
    """Make calling the tokenizer on a text add its start and end token; `generate` of plain transformers expects that.

    BLIP's `generate` overwrites the first and drops the last token of a prompt; a VisionEncoderDecoder cannot start
    from no token at all, which is what GPT-2's tokenizer makes of an empty text.
    """
    wrapped = [tokenizer.bos_token] * start + ["$A"] + [tokenizer.eos_token] * end
    special = {token: tokenizer.convert_tokens_to_ids(token) for token in (tokenizer.bos_token, tokenizer.eos_token)}
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=wrapped, special_tokens=list(special.items())
    )


def special_token_ids(tokenizer: Any) -> dict[str, Any]:
    """Return the fields of a config that name the tokenizer's start, end and padding token."""
    return {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
