"""FLEUR and RefFLEUR (Lee et al. 2024, arXiv:2406.06004): a vision-language model grades captions from 0.0 to 1.0."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hfcap.errors import UserError, WorkError
from hfcap.metrics.base import CaptionMetric, CaptionSet
from hfcap.metrics.judging.agreement import measured, read_agreement
from hfcap.metrics.judging.build import build_judge
from hfcap.metrics.judging.judge import (
    Grade,
    Judge,
    JudgeOptions,
    Question,
    SeesImages,
    check_options,
    filled,
    judge_signature,
    require_fields,
    shown_prompt,
)
from hfcap.metrics.shared.caption_files import warn_on_terminal
from hfcap.metrics.shared.images import DecodedImages, FileBytes, image_files
from hfcap.text import printable

_CRITERIA = (
    "Grading Criteria:\n\n0.0: The caption does not describe the image at all.\n"
    "1.0: The caption accurately and clearly describes the image.\n\n"
)
PROMPT = (
    "Your task is to evaluate and rate the caption on a scale of 0.0 to 1.0 based on the given Grading Criteria. "
    f"(Print Real Number Score ONLY)\n\n{_CRITERIA}"
    "Caption: {caption}\n\nScore(Choose a rating from 0.0 to 1.0):"
)
"""The paper's, as its authors published it."""

PROMPT_WITH_REFERENCES = (
    "Your task is to evaluate and rate the candidate caption on a scale of 0.0 to 1.0 based on the given Grading "
    f"Criteria. (Print Real Number Score ONLY)\n\n{_CRITERIA}"
    "Reference Captions: {references}\n\nCandidate Caption: {caption}\n\nScore(Choose a rating from 0.0 to 1.0):"
)
"""RefFLEUR's."""

_SURE = 0.5
"""A judge that gives digits less probability on average does not grade, whatever the numbers are."""


class FleurOptions(JudgeOptions):
    """Options of FLEUR."""

    prompt: str = Field(PROMPT, description="what is asked of each caption; {caption} stands for it")
    prompt_with_references: str = Field(
        PROMPT_WITH_REFERENCES, description="the same of RefFLEUR, with {caption} and {references} (one a line)"
    )
    decimals: Literal[1, 2] = Field(
        2, description="smooth the first decimal alone, or also the second, where the judge writes one"
    )


class Fleur(CaptionMetric):
    """FLEUR, and RefFLEUR, whose judge is shown the human captions too: means over images of smoothed grades.

    Values depend on the judge and the prompt; only those of one may be compared. What a judge is worth is not known
    before it is compared with people (`hfcap judge-metrics`).

    Args:
        image_source: the images, in place of the folder that the option `images` names.

    Raises:
        UserError: no images, one is missing or broken, a prompt without its fields, or the judge cannot be asked.
    """

    name = "fleur"
    outputs = ("fleur", "ref_fleur")
    looks_at_images = True
    summary = "FLEUR and RefFLEUR (Lee et al. 2024): grades by a vision-language model; needs images"
    citation = (
        "Lee et al. (2024): FLEUR: An Explainable Reference-Free Evaluation Metric for Image Captioning Using a Large "
        "Multimodal Model. ACL"
    )

    options_class = FleurOptions

    def __init__(self, options: FleurOptions | None = None, *, image_source: SeesImages | None = None) -> None:
        self._options = options or FleurOptions()
        if image_source is None and self._options.images is None:
            raise UserError("metric 'fleur' looks at the images: give its option images, the folder of the images")
        check_options(self._options, self.name)
        require_fields(self._options.prompt, ("caption",), "fleur.prompt")
        require_fields(self._options.prompt_with_references, ("caption", "references"), "fleur.prompt_with_references")
        if self._options.agreement is not None:
            read_agreement(Path(self._options.agreement))  # what is wrong with it is better known before the work
        self._image_source = image_source
        self._served_name: str | None = None

    def statistics(self, captions: CaptionSet) -> NDArray[np.float64]:
        """Return FLEUR and RefFLEUR of each image, (N, 2)."""
        images = self._images_of(captions.image_ids)
        judge = build_judge(self._options, self.name)
        alone = [
            Question(image_id, filled(self._options.prompt, {"caption": caption}))
            for image_id, caption in zip(captions.image_ids, captions.candidates, strict=True)
        ]
        with_references = [
            Question(
                image_id,
                filled(self._options.prompt_with_references, {"caption": caption, "references": "\n".join(group)}),
            )
            for image_id, caption, group in zip(
                captions.image_ids, captions.candidates, captions.references, strict=True
            )
        ]
        rows = np.stack([self._scores(judge, images, each) for each in (alone, with_references)], axis=1)
        self._served_name = judge.name
        return rows

    def _images_of(self, image_ids: Sequence[str]) -> SeesImages:
        if self._image_source is not None:
            return self._image_source
        files = image_files(Path(self._options.images or ""), image_ids)
        return DecodedImages({image_id: FileBytes(path) for image_id, path in files.items()})

    def _scores(self, judge: Judge, images: SeesImages, questions: Sequence[Question]) -> NDArray[np.float64]:
        grades = list(judge.grades(questions, images, self._options.decimals))
        _warn_of_doubt(grades)
        return np.asarray([0.0 if grade.score is None else grade.score for grade in grades])

    def signature(self) -> dict[str, Any]:
        """Return the judge (name, commit or hash), the prompts and how grades are smoothed."""
        return {
            **judge_signature(self._options, self._served_name),
            "prompt": shown_prompt(self._options.prompt, PROMPT, "FLEUR (Lee et al. 2024)"),
            "prompt_with_references": shown_prompt(
                self._options.prompt_with_references, PROMPT_WITH_REFERENCES, "RefFLEUR (Lee et al. 2024)"
            ),
            "decimals": self._options.decimals,
        }

    def agreement(self) -> dict[str, str]:
        """Return how well FLEUR and RefFLEUR of this judge agree with people; see the option `agreement`."""
        path = None if self._options.agreement is None else Path(self._options.agreement)
        return measured(path, self.name, self.signature(), self.outputs, "hfcap judge-metrics DATASET --metrics fleur")


def _warn_of_doubt(grades: Sequence[Grade]) -> None:
    """Say where a judge does not grade.

    Raises:
        WorkError: it answers most questions with something else.
    """
    missed = [grade for grade in grades if grade.score is None]
    if 2 * len(missed) > len(grades):
        raise WorkError(
            f"fleur: the judge answers {len(missed):,} of {len(grades):,} questions with no grade from 0.0 to 1.0, for "
            f"example {printable(missed[0].answer)[:120]!r}; choose another judge, or change fleur.prompt"
        )
    if missed:
        warn_on_terminal(
            f"fleur: {len(missed):,} of {len(grades):,} answers are no grade and count as 0, for example "
            f"{printable(missed[0].answer)[:120]!r}"
        )
    certainty = float(np.mean([grade.certainty for grade in grades if grade.score is not None]))
    if certainty < _SURE:
        warn_on_terminal(
            f"fleur: the judge gives only {certainty:.0%} of its probability to digits where one must stand: it does "
            "not grade, and the values mean nothing; choose a model that follows instructions"
        )


REGISTERED = Fleur
