"""Every family trained on the same photos for the same number of minutes: one table.

    python scripts/compare_families.py CAPTIONS.json --vision FOLDER [--minutes 8] [--families clip_prefix blip ...]
        [--output runs/families] [RECIPE_KEY=VALUE ...]

CAPTIONS.json is a COCO-style file with splits next to its photos (Flickr8k, for example), FOLDER an image encoder for
the families that stand on a pretrained one, which stays frozen. The recipes are recipes/FAMILY/flickr8k_scratch.yaml.
Each family first makes a few updates, which show how long one takes (and fill the feature store); the number of updates
that fit into the minutes is kept in OUTPUT/plan.json, and the table's training images/s are those of this first look.
Then `hfcap run` trains, captions and scores. What is finished is not done again, so a stopped comparison goes on where
it was. The table is printed and written to OUTPUT/families.md and families.json; `hfcap compare OUTPUT/*` tests the
differences.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hfcap import registry
from hfcap.captioners.loading import load_captioner
from hfcap.data.loading import PixelInputs
from hfcap.data.source import load_split
from hfcap.decoding import DecodingJob, caption_batches
from hfcap.environment import hardware, prepare_processor
from hfcap.errors import UserError
from hfcap.files import read_json, write_json, write_text
from hfcap.progress import console
from hfcap.recipe.blocks import Recipe
from hfcap.recipe.loading import load_recipe
from hfcap.run_directory.paths import RunDirectory

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
PACE_UPDATES, PACE_FROM = 30, 10
"""Updates of the first look, and after how many the clock starts: the first ones allocate memory."""
COLUMNS = {
    "family": "family",
    "cider": "CIDEr-D x 100 (95 % interval)",
    "bleu_4": "BLEU-4 x 100",
    "parameters": "parameters (trained)",
    "epochs": "epochs",
    "minutes": "minutes",
    "images_per_second": "training images/s",
    "captioning_images_per_second": "captioned images/s",
}


def family_recipes() -> dict[str, Path]:
    """Recipes of the families that can start on photos alone."""
    found = {path.parent.name: path for path in sorted(RECIPES.glob("*/flickr8k_scratch.yaml"))}
    return {**found, "retrieval": RECIPES / "retrieval/flickr8k_images.yaml"}


class Contest:
    """One comparison in its output folder.

    Args:
        overrides: recipe keys that hold for every family.
    """

    def __init__(self, captions: Path, vision: str, minutes: float, output: Path, overrides: Sequence[str]) -> None:
        self.minutes, self.output, self.vision = minutes, output, vision
        self.overrides = [f"data.captions={captions}", f"output_dir={output}", *overrides]

    def recipe(self, family: str, *more: str) -> tuple[Path, list[str], Recipe]:
        """Return a family's recipe file, what is changed in it, and the result."""
        path = family_recipes()[family]
        changes = [*self.overrides, f"name={family}", *more]
        if getattr(load_recipe(path).model, "vision", None) is not None:
            changes.append(f"model.vision={self.vision}")
        return path, changes, load_recipe(path, changes)

    def updates(self, family: str) -> int:
        """Return how many updates fit into the minutes; measured once."""
        plan_file = self.output / "plan.json"
        plan: dict[str, Any] = read_json(plan_file, "plan") if plan_file.is_file() else {}
        plan = plan or {"minutes": self.minutes, "updates": {}}
        if plan["minutes"] != self.minutes:
            raise UserError(f"{plan_file}: made for {plan['minutes']} minutes; choose another --output, or delete it")
        if family not in plan["updates"]:
            name = f"{family}_pace"
            steps = [
                f"train.max_steps={PACE_UPDATES}",
                f"train.logging_steps={PACE_FROM}",
                "train.num_train_epochs=null",
            ]
            self.hfcap("train", family, f"name={name}", *steps, "data.max_validation_images=16")
            lines = (self.output / name / "log.jsonl").read_text(encoding="utf-8").splitlines()
            rows = [row for row in map(json.loads, lines) if "train_seconds" in row]
            seconds = (rows[-1]["train_seconds"] - rows[0]["train_seconds"]) / (rows[-1]["step"] - rows[0]["step"])
            plan["updates"][family] = max(1, int(60 * self.minutes / seconds))
            write_json(plan_file, plan)
        return int(plan["updates"][family])

    def pace(self, recipe: Recipe, updates: int) -> float:
        """Images per second of the first look, which all families had in the same way."""
        train = recipe.train
        return updates * train.per_device_train_batch_size * train.gradient_accumulation_steps / (60 * self.minutes)

    def hfcap(self, command: str, family: str, *more: str) -> None:
        """Run a command of hfcap in a process of its own: its memory ends with it.

        Raises:
            SystemExit: it failed, with its exit code; its own message is on the screen.
        """
        path, changes, _ = self.recipe(family, *more)
        code = subprocess.run([sys.executable, "-m", "hfcap", command, str(path), *changes], check=False).returncode
        if code:
            # Killed by a signal: as a shell reports it.
            raise SystemExit(code if code > 0 else 128 - code)

    def row(self, family: str) -> dict[str, Any]:
        """Train, caption and score one family; return its row of the table."""
        more: list[str] = []
        updates = None
        if registry.load("captioners", self.recipe(family)[2].captioner).REGISTERED.trains_by_gradients:
            updates = self.updates(family)
            more = [f"train.max_steps={updates}", "train.num_train_epochs=null"]
        self.hfcap("run", family, *more)
        recipe = self.recipe(family, *more)[2]
        directory = RunDirectory(self.output / family)
        summary = read_json(directory.summary, "training summary")
        scores = read_json(directory.scores(recipe.score.split), "scores")
        return {
            "family": family,
            "recipe": str(family_recipes()[family].relative_to(RECIPES.parent)),
            "cider": scores["metrics"]["cider"],
            "cider_interval": scores["intervals"]["cider"],
            "bleu_4": scores["metrics"]["bleu_4"],
            **{name: summary.get(name) for name in ("parameters", "trainable_parameters", "epochs")},
            "minutes": (summary.get("train_seconds") or 0.0) / 60,
            "images_per_second": summary.get("images_per_second") if updates is None else self.pace(recipe, updates),
            "captioning_images_per_second": captioning_speed(recipe, directory),
        }


def captioning_speed(recipe: Recipe, directory: RunDirectory, n_images: int = 64) -> float:
    """Images per second from file to caption, as the recipe decodes, after one batch that warms up."""
    captioner = load_captioner(str(directory.path), trust_remote_code=recipe.model.trust_remote_code)
    if torch.cuda.is_available():
        captioner.model.to("cuda")
    records = load_split(recipe.data, recipe.score.split)[:n_images]
    size = recipe.train.per_device_eval_batch_size
    job = DecodingJob(records, PixelInputs(records, captioner.image_processor), recipe.generate, size, 0)
    list(caption_batches(captioner, job, range(min(size, len(records)))))
    began = time.perf_counter()
    list(caption_batches(captioner, job, range(len(records))))
    return len(records) / (time.perf_counter() - began)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table, best first."""
    lines = [" | ".join(COLUMNS.values()), " | ".join("---" for _ in COLUMNS)]
    for row in sorted(rows, key=lambda row: -row["cider"]):
        low, high = row["cider_interval"]
        cells = {
            "family": row["family"],
            "cider": f"{100 * row['cider']:.1f} ({100 * low:.1f} to {100 * high:.1f})",
            "bleu_4": f"{100 * row['bleu_4']:.1f}",
            "parameters": f"{row['parameters'] / 1e6:.1f} M ({(row['trainable_parameters'] or 0) / 1e6:.1f} M)",
            "epochs": f"{row['epochs']:.1f}" if row["epochs"] else "-",
            "minutes": f"{row['minutes']:.1f}",
            "images_per_second": f"{row['images_per_second']:.1f}" if row["images_per_second"] else "-",
            "captioning_images_per_second": f"{row['captioning_images_per_second']:.1f}",
        }
        lines.append(" | ".join(cells[column] for column in COLUMNS))
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison."""
    names = list(family_recipes())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="RECIPE_KEY=VALUE")
    parser.add_argument("--vision", required=True, help="image encoder: a folder or Hub id; its own code is run")
    parser.add_argument("--minutes", type=float, default=8.0, help="of training for each family")
    parser.add_argument("--families", nargs="+", choices=names, default=names)
    parser.add_argument("--output", type=Path, default=Path("runs/families"))
    options = parser.parse_intermixed_args(arguments)
    prepare_processor()
    contest = Contest(options.captions, options.vision, options.minutes, options.output, options.overrides)
    for family in options.families:
        contest.recipe(family)  # a mistake is better known before the first training than after it
    rows = []
    for family in options.families:
        console.rule(family)
        rows.append(contest.row(family))
        write_json(options.output / "families.json", {"hardware": hardware(), "rows": rows})
        write_text(options.output / "families.md", markdown(rows))
    console.print(markdown(rows), markup=False, soft_wrap=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
