"""Questions about objects from Python."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from hfcap.progress import reported

if TYPE_CHECKING:
    from hfcap.probes import ProbeReport

PathLike = str | os.PathLike[str]


def probe_objects(
    model: PathLike,
    annotations: PathLike,
    images: PathLike,
    *,
    output: PathLike | None = None,
    vocabulary: PathLike | None = None,
    n_images: int = 500,
    n_questions: int = 3,
    kinds: Iterable[str] = ("random", "popular", "adversarial"),
    question: str | None = None,
    max_new_tokens: int = 16,
    batch_size: int = 16,
    n_resamples: int = 1000,
    seed: int = 0,
    revision: str | None = None,
    trust_remote_code: bool = False,
    again: bool = False,
    progress: bool = False,
) -> ProbeReport:
    """Ask a captioner whether objects are in images, as `hfcap probe-objects` does, and return how often it is right.

    Args:
        model: run directory, model folder, Hub id or address of a server; one that takes instructions.
        annotations: which objects are in which image: COCO's instances, JSON. images: their folder.
        output: folder for questions, answers and probe.json; a stopped probe goes on there.
        vocabulary: file of your own objects and their synonyms; None = COCO's 80 categories.
        n_images: images at most, drawn at random.
        n_questions: per image about what is there, and as many of each kind about what is not.
        kinds: how objects that are not there are chosen.
        question: with {object} and its article {a}; None = POPE's.
        max_new_tokens: of an answer. batch_size: questions at a time.
        n_resamples: of the bootstrap over images. seed: of it, and of the questions.
        again: forget what a stopped probe has done.
        progress: bars and warnings go to the terminal; otherwise to the logger "hfcap".

    Raises:
        UserError: a file or an argument is wrong, an image is missing, or the captioner takes no instructions.
        WorkError: the Hub, or a server, cannot be reached.
    """
    from hfcap.probes import Asking
    from hfcap.probes import probe_objects as probe
    from hfcap.probes.questions import TEMPLATE

    own = None if vocabulary is None else Path(vocabulary)
    asking = Asking(own, n_images, n_questions, tuple(kinds), question or TEMPLATE, seed, max_new_tokens)
    with reported(progress):
        return probe(
            str(model),
            Path(annotations),
            Path(images),
            None if output is None else Path(output),
            asking,
            batch_size=batch_size,
            n_resamples=n_resamples,
            revision=revision,
            trust_remote_code=trust_remote_code,
            again=again,
        )
