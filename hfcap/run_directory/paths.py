"""Names of everything inside a run directory, in one place (contract: docs/architecture.md), and who works on it."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from hfcap.errors import UserError
from hfcap.files import UNFINISHED, no_folder, only_one


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths of one run. A run is where its folder stands, whatever the recipe inside says about name and place."""

    path: Path

    @classmethod
    def existing(cls, path: Path) -> RunDirectory:
        """Open a run directory that must be there.

        Raises:
            UserError: `path` holds no recipe.yaml.
        """
        run = cls(path)
        if path.is_file():
            raise UserError(no_folder(path, "run directory", "give the folder that 'hfcap run' made"))
        if not run.recipe.is_file():
            raise UserError(f"{path}: not a run directory (no recipe.yaml); give the folder that 'hfcap run' made")
        return run

    @property
    def recipe(self) -> Path:
        """The resolved recipe, every default spelled out."""
        return self.path / "recipe.yaml"

    @property
    def stages(self) -> Path:
        """What each stage was done with (stages.json)."""
        return self.path / "stages.json"

    @property
    def lock(self) -> Path:
        """Held by the process that works on the run."""
        return self.path / ".lock"

    @property
    def cut_off(self) -> Path:
        """Made by the first of several processes that notices that another one is gone; it says so for all."""
        return self.path / ".process_is_gone"

    @property
    def stop_request(self) -> Path:
        """There while somebody asks the training to stop after its next update."""
        return self.path / ".stop"

    @property
    def environment(self) -> Path:
        """Versions, hardware, git commit, seeds, dataset and base-model revisions."""
        return self.path / "environment.json"

    @property
    def log(self) -> Path:
        """Training log, one JSON object per line."""
        return self.path / "log.jsonl"

    @property
    def summary(self) -> Path:
        """What training cost and which checkpoint was kept (training_summary.json)."""
        return self.path / "training_summary.json"

    @property
    def emissions(self) -> Path:
        """CO2 equivalents of each part of the training (emissions.json), where they were measured."""
        return self.path / "emissions.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of step-00000123 checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The trained captioner: from_pretrained layout, or a PEFT adapter."""
        return self.path / "model"

    @property
    def base_model(self) -> Path:
        """LoRA on a captioner put together here: the whole captioner before training, which no Hub id names."""
        return self.path / "base_model"

    @property
    def merged_model(self) -> Path:
        """LoRA folded into its base model, made when merged weights are published."""
        return self.path / "merged_model"

    def predictions(self, name: str) -> Path:
        """Predictions of a split, or of a baseline on it (`test`, `test.blank_images`)."""
        return self.path / "predictions" / f"{name}.jsonl"

    def references(self, split: str) -> Path:
        """Human captions of a split in COCO format, so that scoring needs only files."""
        return self.path / "references" / f"{split}.json"

    def scores(self, name: str) -> Path:
        """Score file of a split, or of a baseline on it."""
        return self.path / "scores" / f"{name}.json"

    @property
    def samples(self) -> Path:
        """Ids, captions and references of the sample images that the card shows."""
        return self.path / "samples.json"

    @property
    def card(self) -> Path:
        """The model card."""
        return self.path / "README.md"

    @property
    def publish(self) -> Path:
        """Exactly the files that go to the Hub."""
        return self.path / "publish"


def alone(run: RunDirectory) -> AbstractContextManager[None]:
    """Keep other commands away from a run while one changes it.

    Raises:
        UserError: another command is working on it, or a file that is written where it lies is a link: a run directory
            of somebody else's could let it lead anywhere.
    """
    for path in (run.lock, run.log, *run.predictions("").parent.glob("*.part-*")):
        if path.is_symlink():
            raise UserError(f"{path}: is a link; put the file itself there, or delete it")
    return only_one(
        run.lock,
        f"{run.path}: another hfcap is working on this run; wait until it is done, or choose another name (name=...)",
    )


def remove_unfinished(run: RunDirectory) -> None:
    """Delete what commands that were killed left half-written; only for who works on the run alone."""
    folders = [run.path, *(path for path in run.path.iterdir() if path.is_dir() and not path.is_symlink())]
    for path in (path for folder in folders for path in folder.glob(UNFINISHED)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
