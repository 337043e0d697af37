"""Render model_cards/: the cards of the reference recipes and of the finished runs recorded in model_cards/runs/.

python scripts/render_model_cards.py                write all cards again
python scripts/render_model_cards.py --check        exit code 1 if a committed card is not what would be written
python scripts/render_model_cards.py --record RUN   keep what the card of a finished run needs, then write its card
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from hfcap.card.example_images import RECORD
from hfcap.card.render import render_card
from hfcap.card.run_facts import RunFacts, ids_of_examples, read_card_input
from hfcap.files import read_json, read_json_lines, write_json, write_json_lines, write_text
from hfcap.publishing.staging import published_recipe
from hfcap.recipe.loading import load_recipe
from hfcap.recipe.shipped import find_recipes
from hfcap.run_directory.paths import RunDirectory

ROOT = Path(__file__).resolve().parents[1]
CARDS = ROOT / "model_cards"
RUNS = CARDS / "runs"
MODEL_FILES = ("config.json", "adapter_config.json", "generation_config.json", "hfcap.json")


def rendered_cards() -> dict[Path, str]:
    """Return the path and content of every card that belongs into model_cards/."""
    cards = {}
    for path in find_recipes(ROOT / "recipes"):
        recipe = load_recipe(path)
        if recipe.data.source == "coco":
            with tempfile.TemporaryDirectory() as folder:
                run = RunDirectory(Path(folder))
                write_text(run.recipe, published_recipe(recipe))
                cards[CARDS / f"{recipe.name}.md"] = render_card(run)
    for recorded in sorted(path for path in RUNS.glob("*") if path.is_dir()):
        cards[CARDS / f"{recorded.name}.md"] = render_card(RunDirectory(recorded))
    return cards


def record(source: Path) -> None:
    """Copy what a card is made from into model_cards/runs/<name>; of the images only those that the card shows."""
    run = RunDirectory.existing(source)
    known = read_card_input(run)
    target = RunDirectory(RUNS / known.recipe.name)
    shutil.rmtree(target.path, ignore_errors=True)
    write_text(target.recipe, published_recipe(known.recipe))
    for name in ("environment", "summary", "log", "samples"):
        _copy(getattr(run, name), getattr(target, name))
    for name in MODEL_FILES:
        _copy(known.model / name, target.model / name)
    _record_scores(run, target, known)
    _copy(run.path / RECORD, target.path / RECORD)
    for name in known.published_captions:
        _copy(run.path / name, target.path / name)


def _copy(source: Path, target: Path) -> None:
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _record_scores(run: RunDirectory, target: RunDirectory, known: RunFacts) -> None:
    """Scores without what is kept for resampling, and of the single images those that the card shows."""
    shown = {sample.file_name for sample in [*known.samples, *known.worst]}
    rows = [row for _, row in read_json_lines(run.predictions(known.split), "predictions") if row["file_name"] in shown]
    ids = {str(row["image_id"]) for row in rows}
    write_json_lines(target.predictions(known.split), rows)
    for name in (known.split, *(f"{known.split}.{baseline}" for baseline in known.baselines)):
        scores = read_json(run.scores(name), "scores")
        per_image = {image_id: row for image_id, row in scores["per_image"].items() if image_id in ids}
        kept = {key: value for key, value in scores.items() if key != "statistics"}
        write_json(target.scores(name), {**kept, "per_image": per_image if name == known.split else {}})
    ids |= set(ids_of_examples(known.scores))
    references = read_json(run.references(known.split), "references")
    notes = [note for note in references["annotations"] if str(note["image_id"]) in ids]
    write_json(target.references(known.split), {"images": [], "annotations": notes})


def main() -> None:
    """Render, check or record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--record", type=Path, metavar="RUN")
    arguments = parser.parse_args()
    if arguments.record:
        record(arguments.record)
    cards = rendered_cards()
    kept = CARDS / "README.md"
    stale = [path for path in CARDS.glob("*.md") if path not in cards and path != kept]
    stale += [path for path, card in cards.items() if not path.is_file() or path.read_text(encoding="utf-8") != card]
    if arguments.check:
        for path in stale:
            print(f"{path.relative_to(ROOT)}: not current; run: python scripts/render_model_cards.py")
        sys.exit(1 if stale else 0)
    for path in stale:
        if path in cards:
            write_text(path, cards[path])
        else:
            path.unlink()
    print(f"{len(cards)} cards, {len(stale)} written again")


if __name__ == "__main__":
    main()
