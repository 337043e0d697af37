"""Whether a run may go on: the same recipe, the same data, the same base model, the model that training wrote."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hfcap import registry
from hfcap.data.source import Split
from hfcap.environment import describe_datasets
from hfcap.errors import UserError
from hfcap.files import write_json, write_text
from hfcap.progress import error_console
from hfcap.recipe.blocks import Recipe
from hfcap.recipe.changes import Effect, KeyChange, key_changes, place_keys
from hfcap.recipe.loading import dump_recipe
from hfcap.run_directory.paths import RunDirectory
from hfcap.run_directory.stage_record import DEPENDS_ON, StageRecord
from hfcap.schema import CaptionedImage
from hfcap.training.run_record import (
    changed_weights,
    content_of,
    data_changes,
    note_changes,
    place_contents,
    read_environment,
    refuse_changes,
    start_changes,
    weight_hashes,
)

Records = Callable[[Split], Sequence[CaptionedImage]]

_LISTED = 8
_TRAINED_ON: tuple[Split, ...] = ("train", "validation")


class Watch:
    """Compares what a run was begun with and what is there now.

    Attributes:
        accept_changes: go on with what is there now, and say so.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: RunDirectory,
        record: StageRecord,
        records: Records,
        accept_changes: bool,
        is_main_process: bool,
    ) -> None:
        self.recipe = recipe
        self.run = run
        self.record = record
        self.records = records
        self.accept_changes = accept_changes
        self._is_main = is_main_process
        self._skipped: list[str] = []

    # ---- the recipe ----------------------------------------------------------------------------------------------

    @property
    def _is_trained(self) -> bool:
        """Whether anything was learnt that could be lost or mixed."""
        begun = self.run.checkpoints.iterdir() if self.run.checkpoints.is_dir() else ()
        return self.run.model.is_dir() or any(not path.name.startswith(".") for path in begun)

    def _recipe_changes(self) -> list[KeyChange]:
        before = self.record.earlier("train")
        if before is None:
            return []
        continues: bool = registry.load("captioners", self.recipe.captioner).REGISTERED.trains_by_gradients
        return key_changes(before, self.record.changed("train"), self.recipe, self._same_content, continues)

    def training_goes_on(self) -> bool:
        """Whether the recipe asks for more or other training than was begun."""
        return any(change.effect is not Effect.FREE for change in self._recipe_changes())

    def require_same_recipe(self) -> None:
        """Refuse to go on with a training of another recipe; nothing is changed here.

        Raises:
            UserError: names the keys that differ, and what can be done.
        """
        if not self._is_trained:
            return
        if self.record.earlier("train") is None:
            raise UserError(
                f"{self.run.path}: holds a model or checkpoints, and no recipe.yaml or stages.json that says of which "
                "recipe; choose another name (name=...), or train again: hfcap train RECIPE --force"
            )
        changes = self._recipe_changes()
        again = [change for change in changes if change.effect is Effect.ANEW]
        asked = [change for change in changes if change.effect is Effect.ASK]
        if again:
            raise UserError(
                f"{self.run.path}: holds a run of a different recipe ({_listed(again)}); that is another model, which "
                "cannot go on from this training: choose another name (name=...), or train again with 'hfcap train' "
                "and --force, which deletes what is there"
            )
        if asked and not self.accept_changes:
            raise UserError(
                f"{self.run.path}: holds a run of a different recipe ({_listed(asked)}); to go on from its last "
                "checkpoint with these values give --accept-changes; otherwise choose another name (name=...), or "
                "train again with 'hfcap train' and --force, which deletes what is there"
            )

    def take_over_recipe(self) -> None:
        """Write the recipe into the run, and note what of it changed; only the main process, alone on the run."""
        if self._is_trained:
            changes = self._recipe_changes()
            others = [str(change) for change in changes if change.effect is not Effect.FREE]
            note_changes(self.run, "train", others)
            if changes:
                error_console.print(
                    f"Keys of the training that changed: {_listed(changes)}", markup=False, soft_wrap=True
                )
            if changes and not others and self.record.is_done("train"):
                self.record.note_done("train")
        else:
            # Stopped before anything was trained, perhaps by a mistake in the recipe: the start is made again.
            shutil.rmtree(self.run.base_model, ignore_errors=True)
            self.run.environment.unlink(missing_ok=True)
        write_text(self.run.recipe, dump_recipe(self.recipe))

    def _same_content(self, key: str, text: str | None) -> bool:
        """Whether a file, folder, repository or revision of another name is what the run began with."""
        environment = self._environment()
        if key.endswith("revision"):
            known = [*environment.get("base_models", []), *environment.get("datasets", {}).values()]
            return text is not None and text in [entry.get("revision") for entry in known]
        if key.startswith("data."):
            recorded = environment.get("datasets", {})
            splits: dict[str, Sequence[CaptionedImage]] = {split: self.records(split) for split in _TRAINED_ON}
            now = describe_datasets(self.recipe.data, splits)
            return all(split in recorded for split in now) and not data_changes(recorded, now)
        content = None if text is None else content_of(text)
        return content is not None and content == environment.get("places", {}).get(key)

    # ---- stages that were finished before --------------------------------------------------------------------------

    def skip(self, stage: str) -> None:
        """Note that a stage was finished before, and is left as it is."""
        self._skipped.append(stage)

    def say_skipped(self, last: str) -> None:
        """Say that nothing was done, and what is no longer as it was when the skipped stages were done.

        Nothing is mixed, so that nothing is refused; data that are not on this machine any more are not compared.
        """
        if not self._skipped or not self._is_main:
            return
        stages = list(DEPENDS_ON)
        if self._skipped == stages[: stages.index(last) + 1 if last in stages else None]:
            done = ", ".join(self._skipped)
            error_console.print(
                f"Nothing was done again, because it was finished before: {done} ('hfcap {self._skipped[-1]}' with "
                "--force does it again)",
                markup=False,
                soft_wrap=True,
            )
        lines = self._changed_since()
        if lines:
            found = "".join(f"\n  {line}" for line in lines)
            error_console.print(
                f"warning: {self.run.path}: what this run was made from has changed since:{found}\n"
                "Its model, captions and scores are of before. For what is there now, train again (hfcap train "
                f"{self.run.path} --force) or begin another run (name=...); for the test split alone, hfcap caption "
                f"{self.run.path} --force",
                markup=False,
                soft_wrap=True,
            )

    def _changed_since(self) -> list[str]:
        try:
            noted = read_environment(self.run)
        except UserError:
            return []  # damaged: whoever needs it says so
        places = place_keys(self.recipe)
        recorded = noted.get("datasets", {})
        lines: list[str] = []
        if any(Path(text).exists() for key, text in places.items() if key.startswith("data.")):
            try:
                now = describe_datasets(self.recipe.data, {split: self.records(split) for split in recorded})
                lines += data_changes(recorded, now)
            except UserError as error:
                lines.append(f"the data cannot be read any more: {error}")
        contents = {"places": place_contents(self.recipe)}
        return lines + start_changes({"places": noted.get("places")}, contents)

    # ---- data and model --------------------------------------------------------------------------------------------

    def _environment(self) -> dict[str, Any]:
        try:
            return read_environment(self.run)
        except UserError:
            if self.accept_changes:
                return {}
            raise

    def require_same_data(self, stage: str, *splits: Split) -> None:
        """Compare splits with what the run noted when it used them first; accepted changes are noted.

        Raises:
            UserError: says what changed, what it would do, and what can be done.
        """
        if stage == "train" and not self._is_trained:
            return
        recorded = self._environment().get("datasets", {})
        chosen: dict[str, Sequence[CaptionedImage]] = {s: self.records(s) for s in splits if s in recorded}
        lines = data_changes(recorded, describe_datasets(self.recipe.data, chosen))
        lines += [] if stage == "train" else self._base_model_changes()
        if any(line.startswith("split train") for line in lines) or stage == "train":
            again = f"train again: hfcap train {self.run.path} --force"
        else:
            again = f"caption what is there now: hfcap caption {self.run.path} --force"
        remedy = f"Put it back as it was, or {again}, or go on with what is there now: --accept-changes."
        refuse_changes(self.run, stage, lines, remedy, self.accept_changes)
        if self._is_main:
            note_changes(self.run, stage, lines)

    def _base_model_changes(self) -> list[str]:
        """An adapter says something only on the weights that it was trained on."""
        adapter = (self.run.model / "adapter_config.json").is_file() and not self.run.base_model.is_dir()
        noted = self._environment().get("places", {}).get("model.pretrained")
        pretrained = self.recipe.model.pretrained
        if not adapter or noted is None or pretrained is None or content_of(pretrained) in (None, noted):
            return []
        return [f"content of model.pretrained ({pretrained}), the base model of the adapter"]

    def note_split(self, split: Split, records: Sequence[CaptionedImage]) -> None:
        """Note in environment.json what a split is that is captioned now."""
        environment = self._environment()
        datasets = {**environment.get("datasets", {}), **describe_datasets(self.recipe.data, {split: records})}
        write_json(self.run.environment, {**environment, "datasets": datasets})

    def require_whole_model(self) -> None:
        """Refuse weights that are not those that training wrote.

        Raises:
            UserError: names the files, and what can be done.
        """
        noted = self.record.facts("train").get("weights")
        changed = changed_weights(self.run, noted if isinstance(noted, dict) else {})
        if not changed:
            return
        lines = [f"{name}: gone, or not the file that training wrote" for name in changed]
        remedy = (
            f"To have the model written again from its checkpoint, delete {self.run.model} and give the command again; "
            "to go on with what is there: --accept-changes."
        )
        refuse_changes(self.run, "caption", lines, remedy, self.accept_changes)
        if self._is_main:
            note_changes(self.run, "caption", lines)
            self.record.note_done("train", {"weights": weight_hashes(self.run)})


def _listed(changes: Sequence[KeyChange]) -> str:
    more = f"; and {len(changes) - _LISTED} more" if len(changes) > _LISTED else ""
    return "; ".join(map(str, changes[:_LISTED])) + more
