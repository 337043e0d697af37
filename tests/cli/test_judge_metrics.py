"""`hfcap judge-metrics`."""

from __future__ import annotations

from pathlib import Path

from tests.cli.command_line import Hfcap, assert_refused
from tests.judgments import imitations


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
