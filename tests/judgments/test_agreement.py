"""Metrics against human judgments: values, intervals, tests between metrics, and what is shown of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import hfcap
from hfcap.errors import UserError
from hfcap.judgments import Judgments, agreement_table, judge_metrics, read_judgments, write_agreement
from hfcap.judgments.agreement import _p_value
from hfcap.judgments.kendall import RankAgreement
from hfcap.judgments.published import KNOWN_SETS
from hfcap.judgments.records import JudgedCaption, Rating
from hfcap.metrics.shared.bootstrap import resample_weights
from hfcap.metrics.suite import CaptionSuite
from tests.captioners.clip_folder import write_clip
from tests.captioners.helpers import write_image
from tests.judgments import imitations
from tests.metrics.random_captions import random_captions
from tests.shared_data import SHARED, requires_shared


def silent(_: str) -> None:
    pass


def made_up(n_images: int = 40, each: int = 3, noise: float = 0.5) -> Judgments:
    """Candidates that repeat more or fewer words of a human caption; people's scores follow that, with noise."""
    generator = np.random.default_rng(3)
    _, references = random_captions(n_images, 30)
    captions, ratings = [], []
    for image, group in references.items():
        words = group[0].split()
        for _ in range(each):
            kept = int(generator.integers(0, len(words) + 1))
            captions.append(JudgedCaption(image, " ".join([*words[:kept], "zebra"]), tuple(group)))
            ratings.append(Rating(len(captions) - 1, round(kept / len(words) + noise * generator.normal(), 1)))
    return Judgments("ratings", tuple(captions), tuple(ratings))


def test_values_are_those_of_the_suite_and_metrics_are_ordered() -> None:
    judgments = made_up()
    report = judge_metrics(judgments, metrics=["rouge_l", "bleu"], n_resamples=200, warn=silent)
    rows = {str(number): caption for number, caption in enumerate(judgments.captions)}
    column = (
        CaptionSuite(["rouge_l"])
        .compute({key: row.text for key, row in rows.items()}, {key: row.references for key, row in rows.items()})
        .per_image()["rouge_l"]
    )
    human = np.asarray([rating.score for rating in judgments.ratings])
    found = {metric.output: metric for metric in report.metrics}
    assert list(found["rouge_l"].values.values()) == RankAgreement(column, human).values().tolist()
    taus = [metric.values["tau_b"] for metric in report.metrics]
    assert taus == sorted(taus, reverse=True) and len(taus) == 5
    assert (report.n_images, report.n_captions, report.n_judgments) == (40, 120, 120)
    assert report.statistic == "tau_b" and report.is_complete is None


def test_intervals_and_differences_are_of_the_images() -> None:
    judgments = made_up()
    report = judge_metrics(judgments, metrics=["rouge_l", "bleu"], n_resamples=150, seed=5, warn=silent)
    best, other = report.metrics[0], report.metrics[-1]
    assert best.difference is None and other.difference is not None
    rows = {str(number): caption for number, caption in enumerate(judgments.captions)}
    columns = (
        CaptionSuite(["rouge_l", "bleu"])
        .compute({key: row.text for key, row in rows.items()}, {key: row.references for key, row in rows.items()})
        .per_image()
    )
    human = np.asarray([rating.score for rating in judgments.ratings])
    drawn = []
    for weights in np.concatenate(list(resample_weights(40, 150, 5))):
        # Each image as often as it was drawn, with all its captions.
        chosen = np.concatenate([np.tile(np.arange(3) + 3 * image, int(n)) for image, n in enumerate(weights) if n])
        drawn.append([RankAgreement(columns[one.output][chosen], human[chosen]).values()[0] for one in (best, other)])
    taus = np.asarray(drawn)
    assert best.intervals["tau_b"] == pytest.approx(tuple(np.percentile(taus[:, 0], [2.5, 97.5])), abs=1e-12)
    differences = taus[:, 1] - taus[:, 0]
    paired = other.difference.paired
    assert paired.interval == pytest.approx(tuple(np.percentile(differences, [2.5, 97.5])), abs=1e-12)
    assert paired.difference == other.values["tau_b"] - best.values["tau_b"]
    assert other.difference.corrected_p_value >= paired.p_value


def test_p_values_count_how_rarely_the_sign_changes() -> None:
    assert _p_value(np.asarray([-1.0] * 99)) == 0.02
    assert _p_value(np.asarray([-1.0] * 90 + [1.0] * 9)) == 0.2
    assert _p_value(np.zeros(99)) == 1.0


def test_metrics_of_which_less_is_better_count_the_other_way() -> None:
    """People disliked the captions that end in 'the': bad endings agree with them."""
    captions = [JudgedCaption(str(n // 2), "a dog on the" if n % 2 else "a dog", ("a dog runs",)) for n in range(20)]
    ratings = tuple(Rating(n, float(n % 2 == 0)) for n in range(20))
    report = judge_metrics(
        Judgments("ratings", tuple(captions), ratings), metrics=["bad_endings"], n_resamples=100, warn=silent
    )
    assert report.metrics[0].values["tau_b"] == pytest.approx(1)


def test_preferences_give_accuracy_of_all_and_of_each_kind(tmp_path: Path) -> None:
    judgments = read_judgments(str(imitations.write_pascal50s(tmp_path)))
    report = judge_metrics(judgments, metrics=["rouge_l"], n_resamples=100, warn=silent)
    (metric,) = report.metrics
    assert report.statistic == "accuracy" and report.title == "Pascal-50S" and report.is_complete is False
    assert set(metric.values) == {"accuracy", "accuracy_HC", "accuracy_HI", "accuracy_HM"}
    assert metric.values["accuracy_HI"] == 1.0  # 'goats on grass' against 'a truck'


def test_foil_by_metrics_of_words(tmp_path: Path) -> None:
    foil, references = imitations.write_foil(tmp_path)
    report = hfcap.judge_metrics(foil, references=references, metrics="rouge_l", n_resamples=100)
    # Without their own caption as reference, both foils of the goats share as many words as the right caption.
    assert report.metrics[0].values["accuracy"] == pytest.approx((0.5 + 0.5 + 1) / 3)


def test_equal_human_scores_are_refused() -> None:
    captions = tuple(JudgedCaption(str(number), f"caption {number}", ("a dog",)) for number in range(4))
    equal = Judgments("ratings", captions, tuple(Rating(number, 3.0) for number in range(4)))
    with pytest.raises(
        UserError, match=r"all 4 scores are 3, so that no order can agree .* give judgments that differ"
    ):
        judge_metrics(equal, warn=silent)


def test_metrics_that_order_nothing_are_left_out_and_named() -> None:
    captions = tuple(JudgedCaption(str(number), "a dog", ("a dog runs",)) for number in range(4))
    equal = Judgments("ratings", captions, tuple(Rating(number, float(number)) for number in range(4)))
    with pytest.raises(UserError, match=r"none of them orders these captions \(rouge_l gives every caption the same"):
        judge_metrics(equal, metrics=["rouge_l"], warn=silent)
    warnings: list[str] = []
    report = judge_metrics(made_up(10), metrics=["rouge_l", "diversity"], n_resamples=100, warn=warnings.append)
    assert "rouge_l" in [metric.output for metric in report.metrics]
    assert any("has no value for single captions" in text or "the same value" in text for text in warnings)
    assert report.notes == tuple(warnings)


def test_too_few_resamples_and_unknown_metrics_are_refused() -> None:
    with pytest.raises(UserError, match="n_resamples must be at least 100"):
        judge_metrics(made_up(), n_resamples=10)
    with pytest.raises(UserError, match="did you mean 'rouge_l'"):
        judge_metrics(made_up(), metrics=["rouge"])


def test_clip_score_takes_the_images_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFCAP_CACHE", str(tmp_path / "cache"))
    model = write_clip(tmp_path / "clip")
    folder = imitations.write_flickr8k(tmp_path / "text", crowd=False)
    judgments = read_judgments(str(folder))
    with pytest.raises(UserError, match="looks at the images"):
        judge_metrics(judgments, metrics=["clip_score"], metric_options={"clip_score": {"model": str(model)}})
    for number in (1, 2, 3):
        write_image(tmp_path / f"images/{number}.jpg", seed=number)
    options = {"clip_score": {"model": str(model), "images": str(tmp_path / "images")}}
    report = judge_metrics(judgments, metrics=["clip_score"], metric_options=options, n_resamples=100, warn=silent)
    assert {metric.output for metric in report.metrics} <= {"clip_score", "ref_clip_score"}
    published = {metric.output: metric.published["tau_c"].value for metric in report.metrics}
    assert published == {output: KNOWN_SETS["flickr8k_expert"].values[output]["tau_c"].value for output in published}


def test_the_page_and_the_file_say_what_the_table_says(tmp_path: Path) -> None:
    judgments = read_judgments(str(imitations.write_flickr8k(tmp_path / "text", expert=False)))
    hostile = Judgments(
        judgments.layout, judgments.captions, judgments.ratings, notes=("<script>alert(1)</script> is left out",)
    )
    report = judge_metrics(hostile, metrics=["rouge_l", "bleu"], n_resamples=100, warn=silent)
    write_agreement(report, tmp_path / "out")
    page = (tmp_path / "out/agreement.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "published 19.9" in page and "another number of judgments" in page
    written: dict[str, Any] = json.loads((tmp_path / "out/agreement.json").read_text(encoding="utf-8"))
    assert written["n_judgments"] == 5 and written["complete"] is False and written["layout"] == "flickr8k_cf"
    by_name = {row["metric"]: row for row in written["metrics"]}
    assert by_name["rouge_l"]["published"]["tau_b"]["value"] == 19.903
    assert [row["values"] for row in written["metrics"]] == [metric.values for metric in report.metrics]
    console = Console(width=200, record=True)
    console.print(agreement_table(report))
    table = console.export_text()
    value = by_name["rouge_l"]["values"]["tau_b"]
    assert "ROUGE-L" in table and f"{100 * value:.1f}" in table and "19.9" in table


@requires_shared
@pytest.mark.shared
def test_published_taus_of_flickr8k_cf_are_met(tmp_path: Path) -> None:
    """All 47,830 judgments; the published ones were computed with pycocoevalcap and scipy."""
    source = SHARED / "data/flickr8k_judgments"
    texts = json.loads((source / "captions.json").read_text(encoding="utf-8"))
    references = texts["references"].items()
    lines = {f"{image}#{number}": line for image, group in references for number, line in enumerate(group)}
    assert texts["candidates"].items() <= lines.items()
    (tmp_path / "Flickr8k.token.txt").write_text("".join(f"{key}\t{line}\n" for key, line in lines.items()))
    rows = (source / "crowdflower.tsv").read_text(encoding="utf-8").partition("\n")[2]
    (tmp_path / "CrowdFlowerAnnotations.txt").write_text(rows)
    judgments = read_judgments(str(tmp_path))
    report = judge_metrics(judgments, metrics=["bleu", "rouge_l", "cider"], n_resamples=100, warn=silent)
    assert report.is_complete
    compared = 0
    for metric in report.metrics:
        for statistic, published in metric.published.items():
            assert 100 * metric.values[statistic] == pytest.approx(published.value, abs=0.01), metric.output
            compared += 1
    assert compared == 8
    assert report.metrics[0].output == "cider"
