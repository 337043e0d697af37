"""The committed cards are what the script would write; a recorded run gives the card of the run itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from hfcap.card.render import render_card
from hfcap.run_directory.paths import RunDirectory
from scripts import render_model_cards as script
from scripts.hub_server.card_rules import check_card
from tests.publishing.run_builder import build_run


def test_committed_cards_are_current_and_valid() -> None:
    cards = script.rendered_cards()
    assert {path for path in script.CARDS.glob("*.md") if path.name != "README.md"} == set(cards)
    stale = [path.name for path, card in cards.items() if path.read_text(encoding="utf-8") != card]
    assert stale == [], "run: python scripts/render_model_cards.py"
    assert [path.name for path, card in cards.items() if check_card(card)[0]] == []


def test_cards_of_recipes_claim_nothing_that_was_not_done() -> None:
    recorded = {f"{folder.name}.md" for folder in script.RUNS.glob("*")}
    planned = {path: card for path, card in script.rendered_cards().items() if path.name not in recorded}
    assert planned
    for card in planned.values():
        assert "nothing was trained yet" in card
        assert "model-index" not in card and "It reaches" not in card and "## Usage" not in card
        assert "{'" not in card, "a setting is shown as Python prints it"


def test_one_paper_of_a_family_is_not_taken_for_that_of_every_model() -> None:
    cards = {path.stem: card for path, card in script.rendered_cards().items()}
    assert "The architecture: [BLIP" in cards["blip_coco_full"]
    qwen = cards["image_text_to_text_qwen3_vl_coco_lora"]
    assert "The architecture:" not in qwen and "wang2022git" not in qwen and "that of the base model: cite" in qwen


def test_a_recorded_run_gives_the_same_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = build_run(tmp_path / "run", publish={"samples_license": "cc0-1.0"})
    monkeypatch.setattr(script, "RUNS", tmp_path / "recorded")
    script.record(run.path)
    kept = RunDirectory(tmp_path / "recorded" / "tiny-blip")
    # Paths of the machine are already replaced in the record.
    assert render_card(kept) == render_card(run)
    assert not list(kept.path.rglob("*.safetensors"))
