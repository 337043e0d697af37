"""`hfcap judge-metrics`."""

from __future__ import annotations

import json
from pathlib import Path

from hfcap.files import read_json
from tests.cli.command_line import Hfcap, assert_refused
from tests.data.sample_images import write_jpeg
from tests.judgments import imitations
from tests.metrics.judge_models import write_judge


def test_the_command(hfcap: Hfcap, tmp_path: Path) -> None:
    folder = imitations.write_flickr8k(tmp_path / "text", crowd=False)
    out = tmp_path / "agreement"
    found = hfcap("judge-metrics", folder, "--metrics", "rouge_l,cider", "--n-resamples", "100", "-o", out)
    assert found.code == 0, found.err
    assert "Flickr8k-Expert: 12 judgments of 4 captions for 3 images." in " ".join(found.out.split())
    assert "metrics.cider.document_frequencies:corpus" in found.out
    assert (out / "agreement.html").is_file() and (out / "agreement.json").is_file()
    assert_refused(hfcap("judge-metrics", tmp_path / "none.csv"), "none.csv", "not found")
    assert_refused(hfcap("judge-metrics", folder, "--metrics", "cidr"), "unknown metric 'cidr'")


def test_a_judge_s_agreement_with_people_stands_next_to_its_scores(hfcap: Hfcap, tmp_path: Path) -> None:
    """FLEUR of a tiny random judge: measured, then scored with it, then with another judge."""
    images = tmp_path / "images"
    for number, colour in enumerate(("red", "green", "blue")):
        write_jpeg(images / f"{number}.jpg", colour)
    rows = ["image_id,candidate,references,score"]
    rows += [f"{number},a {word} thing,one {word} thing,{len(word)}" for number in range(3) for word in ("red", "blue")]
    ratings = tmp_path / "ratings.csv"
    ratings.write_text("\n".join(rows) + "\n")
    judge = [f"fleur.model={write_judge(tmp_path / 'tiny')}", f"fleur.images={images}", "fleur.device=cpu"]
    given = [part for option in judge for part in ("--option", option)]
    measured = hfcap("judge-metrics", ratings, "--metrics", "fleur", *given, "--n-resamples", 100, "-o", tmp_path / "a")
    assert measured.code == 0, measured.err
    predictions, references = tmp_path / "p.json", tmp_path / "r.json"
    predictions.write_text(json.dumps({str(number): "a red thing" for number in range(3)}))
    references.write_text(json.dumps({str(number): ["one thing"] for number in range(3)}))
    score = ("score", predictions, references, "--metrics", "fleur", "--n-resamples", 0, *given)
    plain = hfcap(*score)
    assert "fleur, ref_fleur: agreement with people not measured: hfcap judge-metrics DATASET" in plain.out, plain.err
    agreement = tmp_path / "a" / "agreement.json"
    (fleur,) = (row for row in read_json(agreement, "")["metrics"] if row["metric"] == "fleur")
    known = hfcap(*score, "--option", f"fleur.agreement={agreement}", "-o", tmp_path / "s.json")
    line = f"fleur: agreement with people tau-b {100 * fleur['values']['tau_b']:.1f} ("
    assert line in known.out and "on 6 judgments of ratings of your own" in known.out, known.out + known.err
    assert line.partition(" people ")[2] in json.dumps(read_json(tmp_path / "s.json", "")["signature"])
    other = hfcap(*score, "--option", f"fleur.agreement={agreement}", "--option", "fleur.decimals=1")
    assert "not measured: agreement.json is of another judge (decimals is 2 there)" in other.out, other.out
    board = hfcap("compare", tmp_path / "s.json")
    assert line in " ".join((board.out + board.err).split())
    agreement.write_text('{"metrics": []}')
    refused = hfcap(*score, "--option", f"fleur.agreement={agreement}")
    assert_refused(refused, "agreement.json: is no file of agreement with people; give the agreement.json that")
