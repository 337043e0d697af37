"""The commands of docs/scoring.md about human judgments, each carried out on imitations of its files."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hfcap.cli import app
from hfcap.judgments.published import KNOWN_SETS
from tests.judgments import imitations

PAGE = Path(__file__).resolve().parents[2] / "docs/scoring.md"


def test_the_commands_of_the_page_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = re.findall(r"^hfcap (judge-metrics .*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) == 4
    imitations.write_flickr8k(tmp_path / "Flickr8k_text")
    imitations.write_foil(tmp_path)
    _, references = imitations.write_composite(tmp_path / "composite")
    references.rename(tmp_path / "human.json")
    words = ("goat", "kite", "boat", "tree", "lamp", "road", "shoe", "fish")
    rows = "".join(
        f'{n},a {word} and a {words[n % 3]},"[""a {word}"", ""the {word} there""]",{n % 4}\n'
        for n, word in enumerate(words)
    )
    (tmp_path / "mine.csv").write_text(f"image_id,candidate,references,score\n{rows}")
    monkeypatch.chdir(tmp_path)
    for line in lines:
        found = CliRunner().invoke(app, [*shlex.split(line), "--n-resamples", "100"], catch_exceptions=False)
        assert found.exit_code == 0, (line, found.output)
    written = json.loads((tmp_path / "agreement/agreement.json").read_text(encoding="utf-8"))
    assert written["layout"] == "flickr8k_cf"


def test_the_numbers_of_the_page_are_the_published_ones() -> None:
    """Measured and published values of a row are equal, and the published ones are those of the package."""
    rows = {}
    for line in PAGE.with_name("metrics.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 7 and re.fullmatch(r"[\d.]+", cells[3]):
            rows[cells[0]] = cells[1:]
    published = KNOWN_SETS["flickr8k_cf"].values
    names = {"BLEU-1": "bleu_1", "BLEU-4": "bleu_4", "METEOR": "meteor", "ROUGE-L": "rouge_l", "CIDEr-D": "cider"}
    assert rows.keys() == names.keys()
    for name, (tau_b, _, its_published, tau_c, _, their_published) in rows.items():
        expected = [published[names[name]][tau].value for tau in ("tau_b", "tau_c")]
        assert [float(tau_b), float(tau_c)] == expected
        assert [float(its_published), float(their_published)] == expected
