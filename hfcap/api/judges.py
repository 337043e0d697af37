"""Captioners ranked by a judge from Python, and what the judge is worth."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from hfcap.errors import UserError, shown
from hfcap.metrics.shared.caption_files import warn_on_terminal
from hfcap.progress import reported
from hfcap.registry import did_you_mean

if TYPE_CHECKING:
    from hfcap.arena import Ranking
    from hfcap.arena.questions import PairwiseOptions
    from hfcap.judgments import AgreementReport

PathLike = str | os.PathLike[str]


def judge(
    systems: Iterable[PathLike],
    *,
    images: PathLike | None = None,
    output: PathLike | None = None,
    agreement: PathLike | None = None,
    n_images: int | None = None,
    split: str | None = None,
    allow_missing: bool = False,
    n_resamples: int = 1000,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> Ranking:
    """Let a vision-language model rank captioners, as `hfcap judge` does: every pair, every image, both orders.

    Args:
        systems: two or more run directories or prediction files.
        images: folder of the images; None = those of the first run's data.
        output: folder for answers.jsonl (where a stopped comparison goes on), ranking.json and ranking.md.
        agreement: agreement.json of this judge, which `measure_judge` writes.
        n_images: how many images are drawn at random; None = all.
        split: of runs; None = the one that their recipe scores.
        allow_missing: compare on the images that all systems have captions of.
        n_resamples: of the bootstrap over images, at least 100. seed: of it, and of the draw of images.
        progress: bars and warnings go to the terminal; otherwise to the logger "hfcap".
        options: the judge: model, revision, base_url, dtype, device, batch_size, prompt, max_new_tokens, ...

    Raises:
        UserError: a system, image or option is wrong, or the model cannot judge.
        WorkError: Hub or server cannot be reached, or most answers say nothing.
    """
    from hfcap.arena import rank_systems, write_ranking
    from hfcap.arena.contestants import read_contestants

    asked = _options(options, agreement=agreement)
    with reported(progress):
        contestants = read_contestants(
            [Path(system) for system in systems],
            images=None if images is None else Path(images),
            split=split,
            n_images=n_images,
            seed=seed,
            allow_missing=allow_missing,
            warn=warn_on_terminal,
        )
        ranking = rank_systems(contestants, asked, answers=_answers(output), n_resamples=n_resamples, seed=seed)
        if output is not None:
            write_ranking(ranking, Path(output))
    return ranking


def measure_judge(
    people: PathLike,
    *,
    images: PathLike | None = None,
    output: PathLike | None = None,
    split: str | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> AgreementReport:
    """Find out how often a judge prefers the caption that people preferred, as `hfcap judge --people` does.

    Args:
        people: file, folder or Hub id of preferences; docs/scoring.md describes the layouts.
        images: folder of the images, where the judgments hold none.
        output: folder for answers.jsonl, agreement.json and agreement.html.
        split: of a dataset.
        n_resamples: of the bootstrap over images. seed: of it.
        progress: bars and warnings go to the terminal; otherwise to the logger "hfcap".
        options: the judge; see `judge`.

    Raises:
        UserError: the judgments cannot be read or are ratings, images are missing, or the model cannot judge.
        WorkError: Hub or server cannot be reached, or most answers say nothing.
    """
    from hfcap.arena import people_agreement
    from hfcap.judgments import read_judgments, write_agreement

    asked = _options(options, images=images)
    with reported(progress):
        judgments = read_judgments(os.fspath(people), split=split)
        report = people_agreement(judgments, asked, answers=_answers(output), n_resamples=n_resamples, seed=seed)
        if output is not None:
            write_agreement(report, Path(output))
    return report


def _answers(output: PathLike | None) -> Path | None:
    return None if output is None else Path(output) / "answers.jsonl"


def _options(given: dict[str, Any], **files: PathLike | None) -> PairwiseOptions:
    from hfcap.arena.questions import PairwiseOptions
    from hfcap.metrics.judging.judge import check_options, require_fields

    paths = {name: os.fspath(path) for name, path in files.items() if path is not None}
    try:
        options = PairwiseOptions.model_validate({**given, **paths})
    except ValidationError as error:
        problems = []
        for detail in error.errors(include_url=False):
            key = str(detail["loc"][0])
            if detail["type"] == "extra_forbidden":
                problems.append(f"unknown option {key!r}{did_you_mean(key, PairwiseOptions.model_fields)}")
            else:
                problems.append(f"option {key!r}: {detail['msg']}, not {shown(detail['input'])}")
        raise UserError("\n".join(f"judge: {problem}" for problem in problems)) from None
    check_options(options, "judge")
    require_fields(options.prompt, ("caption_1", "caption_2"), "judge.prompt")
    return options
