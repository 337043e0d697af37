"""A judge that runs here: any image-text-to-text model of transformers with a chat template."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)

from hfcap.errors import UserError
from hfcap.metrics.judging.digits import DigitTokens, digit_tokens, smoothed
from hfcap.metrics.judging.judge import Grade, JudgeOptions, Question, SeesImages
from hfcap.metrics.shared.models import loading
from hfcap.progress import track

_MOST_TOKENS = 5
"""A blank, and 0.85."""


class ForcedGrade(LogitsProcessor):
    """Lets the model write a grade from 0.0 to 1.0 and nothing else, by its own choice of digits."""

    def __init__(self, tokens: DigitTokens) -> None:
        self._tokens = tokens
        self._start: int | None = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return the scores with all tokens forbidden that make no grade: (B, V) -> (B, V)."""
        if self._start is None:  # some models hand on what is written alone, others the prompt as well
            self._start = input_ids.shape[1]
        kept = scores.clone()
        for row, written in enumerate(input_ids[:, self._start :].tolist()):
            allowed = self._tokens.allowed(written)
            if allowed is not None:
                forbidden = torch.ones(scores.shape[-1], dtype=torch.bool, device=scores.device)
                forbidden[sorted(allowed)] = False
                kept[row, forbidden] = -torch.inf
        return kept


class LocalJudge:
    """A judge whose model is loaded here.

    Raises:
        UserError: there is no such model, it reads no images, or has no chat template.
        WorkError: the Hub cannot be reached.
    """

    def __init__(self, options: JudgeOptions, block: str) -> None:
        self._block = block
        assert options.model is not None, "check_options"
        self.name = options.model
        dtype: Any = "auto" if options.dtype is None else getattr(torch, options.dtype)
        with loading(self.name, f"the judge ({block}.model)"):
            model: Any = AutoModelForImageTextToText.from_pretrained(
                self.name, revision=options.revision, dtype=dtype, use_safetensors=True
            )
            self._processor: Any = AutoProcessor.from_pretrained(self.name, revision=options.revision)
        if not getattr(self._processor, "chat_template", None) or not hasattr(self._processor, "tokenizer"):
            raise UserError(
                f"{block}.model: {self.name} has no chat template, so that it cannot be asked to judge; choose a "
                "vision-language model that takes instructions"
            )
        self.device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model: Any = model.to(self.device).eval()
        self._batch_size = options.batch_size
        tokenizer = self._processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
        special = sorted({*added, *tokenizer.all_special_tokens} - {""}, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None

    def grades(self, questions: Sequence[Question], images: SeesImages, decimals: int) -> Iterator[Grade]:
        """See Judge: the model's own next-token probabilities, where it is held to write a grade."""
        tokens = digit_tokens(self._processor.tokenizer, f"{self._block}.model: {self.name}")
        for batch in self._batches(questions):
            found = self._generate(
                batch,
                images,
                max_new_tokens=_MOST_TOKENS,
                output_logits=True,
                return_dict_in_generate=True,
                logits_processor=LogitsProcessorList([ForcedGrade(tokens)]),
            )
            n_steps = len(found.logits)
            of_digits = sorted({*tokens.first, *tokens.decimals})
            # (steps, B, digits); in float64, so that a sum of probabilities is one.
            steps = [torch.softmax(logits.double(), dim=-1)[:, of_digits].tolist() for logits in found.logits]
            for row, written in enumerate(found.sequences[:, -n_steps:].tolist()):
                places = [dict(zip(of_digits, step[row], strict=True)) for step in steps]
                score, certainty = smoothed(tokens, written, places, decimals)
                yield Grade(score, certainty, self._text(written))

    def answers(self, questions: Sequence[Question], images: SeesImages, max_new_tokens: int) -> Iterator[str]:
        """See Judge."""
        for batch in self._batches(questions):
            found = self._generate(
                batch, images, max_new_tokens=max_new_tokens, output_logits=True, return_dict_in_generate=True
            )
            n_steps = len(found.logits)
            yield from map(self._text, found.sequences[:, -n_steps:].tolist())

    def _batches(self, questions: Sequence[Question]) -> Iterator[Sequence[Question]]:
        starts = range(0, len(questions), self._batch_size)
        return (questions[start : start + self._batch_size] for start in track(starts, f"{self._block}: judging"))

    def _text(self, written: Sequence[int]) -> str:
        return str(self._processor.tokenizer.decode(written, skip_special_tokens=True))

    def _generate(self, questions: Sequence[Question], images: SeesImages, **arguments: Any) -> Any:
        """Generate greedily, whatever the model's own settings of generation are."""
        inputs = self.inputs(questions, images).to(self.device, dtype=self._model.dtype)
        config = GenerationConfig(
            max_new_tokens=arguments.pop("max_new_tokens"),
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            pad_token_id=self._processor.tokenizer.pad_token_id,
            output_logits=arguments.pop("output_logits"),
            return_dict_in_generate=arguments.pop("return_dict_in_generate"),
        )
        try:
            with torch.inference_mode():
                return self._model.generate(**inputs, generation_config=config, **arguments)
        except ValueError as error:  # so transformers refuses what a processor gives and its model does not take
            raise UserError(
                f"{self._block}.model: {self.name} cannot answer ({' '.join(str(error).split())[:160]}); choose "
                "another judge"
            ) from error

    def inputs(self, questions: Sequence[Question], images: SeesImages) -> Any:
        """Return what the processor makes of questions and images, padded on the left.

        Raises:
            UserError: it refuses them, or an image cannot be read.
        """
        texts = [self._asked(question.text) for question in questions]
        decoded = [[images.decoded(question.image_id)] for question in questions]
        # Templates begin with the start token themselves, or leave it to the tokenizer.
        begun = self._processor.tokenizer.bos_token is not None and texts[0].startswith(
            self._processor.tokenizer.bos_token
        )
        own = {"add_special_tokens": False} if begun else {}
        try:
            return self._processor(text=texts, images=decoded, padding=True, return_tensors="pt", **own)
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{self._block}.model: the processor of {self.name} cannot join an image and the question "
                f"({' '.join(str(error).split())[:160]}); choose another judge"
            ) from error

    def _asked(self, text: str) -> str:
        # A caption may hold what the tokenizer takes for an image's place or the end of a turn.
        plain = self._special.sub(" ", text) if self._special else text
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": plain}]}
        # Judges are asked for the grade alone, where they can be told not to think first.
        options = {"enable_thinking": False} if "enable_thinking" in str(self._processor.chat_template) else {}
        return str(
            self._processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False, **options)
        )
