"""Captions that a person should look at: improbable ones, and ones that do not fit their image according to CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from hfcap.captioning.forbidden import held_words
from hfcap.data.images import decode_image
from hfcap.errors import UserError
from hfcap.metrics.clip_score import DEFAULT_MODEL, clip_score
from hfcap.metrics.clip_score.encoder import ClipEncoder
from hfcap.metrics.shared.images import DecodedImages
from hfcap.recipe.blocks import GenerateOptions
from hfcap.schema import CaptionedImage, Prediction


@dataclass(frozen=True)
class QualityGate:
    """Below which values a caption is marked for review; nothing is left out.

    Attributes:
        min_score: log-probability as beam search ranks by; None = not looked at.
        min_clip_score: CLIPScore (0 to 2.5); None = not looked at.
        clip_model: folder or Hub id of the CLIP model.
        forbidden: words that captions should not hold.
    """

    min_score: float | None = None
    min_clip_score: float | None = None
    clip_model: str = DEFAULT_MODEL
    forbidden: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.min_score is not None or self.min_clip_score is not None or bool(self.forbidden)

    def require_scores(self, options: GenerateOptions) -> None:
        """Refuse to compare with scores that there are not.

        Raises:
            UserError: captions are greedy or sampled, and `min_score` is given.
        """
        if self.min_score is not None and (options.num_beams == 1 or options.do_sample):
            raise UserError(
                "--review-below-score: greedy and sampled captions have no score; use beam search (--num-beams 3, "
                "without --sample), or --review-below-clip-score"
            )

    def examined(self, records: Sequence[CaptionedImage], predictions: Sequence[Prediction]) -> list[Prediction]:
        """Return the predictions of these images with the reasons why they should be reviewed.

        Raises:
            UserError: the CLIP model cannot be loaded.
        """
        if not self or not predictions:
            return list(predictions)
        fits = self._clip_scores(records, predictions)
        return [
            replace(one, review="; ".join(self._reasons(one, fit)), clip_score=fit)
            for one, fit in zip(predictions, fits, strict=True)
        ]

    def _reasons(self, prediction: Prediction, fit: float | None) -> list[str]:
        reasons = []
        if self.min_score is not None and (prediction.score is None or prediction.score < self.min_score):
            found = "no score" if prediction.score is None else f"score {prediction.score:.3f}"
            reasons.append(f"{found} is below {self.min_score:g}")
        if fit is not None and self.min_clip_score is not None and fit < self.min_clip_score:
            reasons.append(f"CLIPScore {fit:.3f} is below {self.min_clip_score:g}")
        return reasons + [f"holds {word!r}" for word in held_words(prediction.caption, self.forbidden)]

    def _clip_scores(
        self, records: Sequence[CaptionedImage], predictions: Sequence[Prediction]
    ) -> Sequence[float | None]:
        if self.min_clip_score is None:
            return [None] * len(predictions)
        # Numbers in the place of ids: two names that are not UTF-8 may look the same.
        numbers = [str(number) for number in range(len(records))]
        by_number = dict(zip(numbers, (record.image for record in records), strict=True))
        images = DecodedImages(by_number, decode_image, bar=False)
        vectors = self._encoder.images(images, numbers)
        scores: Any = clip_score(vectors, self._encoder.texts([one.caption for one in predictions]))
        return [float(score) for score in scores]

    @cached_property
    def _encoder(self) -> ClipEncoder:
        return ClipEncoder(self.clip_model)
