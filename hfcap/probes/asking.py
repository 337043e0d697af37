"""From annotations and a captioner to a report: questions, answers that a stop does not lose, values."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hfcap import __version__
from hfcap.captioners.facts import shown_model
from hfcap.captioning import caption_images
from hfcap.data.images import FileImage
from hfcap.data.web.image_stream import listed_images
from hfcap.errors import UserError
from hfcap.files import write_json, write_json_lines
from hfcap.metrics.objects.annotations import read_annotations
from hfcap.metrics.shared.caption_files import read_file_names
from hfcap.metrics.shared.coco_objects import coco_vocabulary
from hfcap.metrics.shared.images import image_files
from hfcap.metrics.shared.object_words import ObjectVocabulary, read_vocabulary
from hfcap.probes.questions import KINDS, TEMPLATE, Question, object_questions
from hfcap.probes.values import ProbeReport, probe_values
from hfcap.registry import did_you_mean
from hfcap.schema import CaptionedImage

QUESTIONS, ANSWERS, REPORT = "questions.jsonl", "answers.jsonl", "probe.json"
"""Files of the output folder."""

MOST_TOKENS = 16
"""Of an answer, where nobody says otherwise."""

GREEDY: dict[str, Any] = {
    **{"num_beams": 1, "do_sample": False, "num_return_sequences": 1, "min_new_tokens": 0},
    **{"repetition_penalty": 1.0, "no_repeat_ngram_size": 0},
}
"""Whatever decoding is saved with the model: Qwen-VL's, for one, samples."""


@dataclass(frozen=True)
class Asking:
    """What is asked; see `object_questions`.

    Attributes:
        vocabulary: file of the objects, where they are not COCO's 80.
        n_images, n_questions, kinds, seed: see there. question: its template.
        max_new_tokens: of an answer.
    """

    vocabulary: Path | None = None
    n_images: int = 500
    n_questions: int = 3
    kinds: Sequence[str] = KINDS
    question: str = TEMPLATE
    seed: int = 0
    max_new_tokens: int = MOST_TOKENS


def probe_objects(
    model: str,
    annotations: Path,
    images: Path,
    output: Path | None = None,
    asking: Asking | None = None,
    *,
    batch_size: int = 16,
    n_resamples: int = 1000,
    revision: str | None = None,
    trust_remote_code: bool = False,
    again: bool = False,
) -> ProbeReport:
    """Ask a captioner which objects are in images, and return how often it is right; decoding is greedy.

    Args:
        model: run directory, model folder, Hub id or address of a server; one that takes instructions.
        annotations: which objects are in which image, in the layouts of `read_annotations`.
        images: their folder.
        output: folder for questions, answers and probe.json; a stopped probe goes on there.
        again: forget what a stopped probe has done.

    Raises:
        UserError: a file or an argument is wrong, an image is missing, or the captioner takes no instructions.
        WorkError: the Hub, or a server, cannot be reached.
    """
    asking = asking or Asking()
    words = coco_vocabulary() if asking.vocabulary is None else read_vocabulary(asking.vocabulary)
    questions = _questions(annotations, words, asking)
    records = _records(questions, annotations, images)
    with tempfile.TemporaryDirectory(prefix="hfcap-probe-") as temporary:
        folder = Path(temporary) if output is None else output
        folder.mkdir(parents=True, exist_ok=True)
        write_json_lines(folder / QUESTIONS, ({"key": one.key, **asdict(one)} for one in questions))
        predictions = caption_images(
            model,
            listed_images(records),
            folder / ANSWERS,
            overrides=GREEDY | {"max_new_tokens": asking.max_new_tokens},
            batch_size=batch_size,
            revision=revision,
            trust_remote_code=trust_remote_code,
            again=again,
        )
        answers = {one.image_id: one.caption for one in predictions}
        signature = _signature(model, revision, words, asking)
        report = probe_values(questions, answers, signature, n_resamples=n_resamples, seed=asking.seed)
        write_json(folder / REPORT, report.as_json())
    return report


def _questions(annotations: Path, words: ObjectVocabulary, asking: Asking) -> list[Question]:
    kinds = tuple(dict.fromkeys(asking.kinds))
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(f"kinds: unknown kind {unknown[0]!r}{did_you_mean(unknown[0], KINDS)}")
    return object_questions(
        read_annotations([annotations], words),
        words.names,
        n_images=asking.n_images,
        n_questions=asking.n_questions,
        kinds=kinds,
        template=asking.question,
        seed=asking.seed,
    )


def _records(questions: Sequence[Question], annotations: Path, images: Path) -> list[CaptionedImage]:
    """Return a record for each question: its image, and what is asked of it."""
    image_ids = list(dict.fromkeys(one.image_id for one in questions))
    names = read_file_names(annotations) if annotations.suffix == ".json" else {}
    files = image_files(images, image_ids, {key: names[key] for key in image_ids if key in names})
    return [
        CaptionedImage(one.key, files[one.image_id].as_posix(), (), FileImage(files[one.image_id]), asked=(one.text,))
        for one in questions
    ]


def _signature(model: str, revision: str | None, words: ObjectVocabulary, asking: Asking) -> dict[str, Any]:
    questions = {"template": asking.question, "per_image": asking.n_questions, "n_images": asking.n_images}
    return {
        "hfcap": __version__,
        "model": shown_model(model),
        "revision": revision,
        "objects": words.source,
        "vocabulary": words.sha256(),
        "questions": {**questions, "kinds": list(asking.kinds), "seed": asking.seed},
        "decoding": "greedy",
        "max_new_tokens": asking.max_new_tokens,
    }
