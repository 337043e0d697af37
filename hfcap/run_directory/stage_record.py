"""stages.json: with which part of the recipe each stage of a run was begun and done.

Kept as values, not as hashes, so that a change can be named, also where somebody edited the run's recipe by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hfcap.errors import UserError
from hfcap.files import read_json, write_json
from hfcap.progress import error_console
from hfcap.recipe.blocks import Recipe
from hfcap.recipe.changes import changed_values
from hfcap.run_directory.paths import RunDirectory
from hfcap.run_directory.recipe import options_without_programs, place_of_work, recipe_of_run

DEPENDS_ON: dict[str, tuple[str, ...]] = {
    "train": ("captioner", "model", "data", "lora", "augment", "train", "scst", "dpo"),
    "caption": ("generate", "score.split", "score.baselines", "data.test_split", "data.max_test_images"),
    "score": ("score", "publish.samples_license"),
}
"""Blocks of the recipe that a stage's output depends on, besides those of the stages before it."""


class StageRecord:
    """What is known of the stages of one run; nothing is written before `begin`."""

    def __init__(self, run: RunDirectory, recipe: Recipe) -> None:
        self.run = run
        self.recipe = recipe
        self._said: set[str] = set()

    def part(self, name: str, only_given: bool = False) -> dict[str, Any]:
        """Return the blocks of the recipe that a stage depends on.

        Args:
            only_given: without keys that have their default.
        """
        return part_of(self.recipe, name, only_given)

    def earlier(self, name: str) -> dict[str, Any] | None:
        """Return the blocks of the recipe with which a stage was begun; None where it was not, or nobody knows."""
        entry = self._entries().get(name)
        return None if entry is None else dict(entry["recipe"])

    def changed(self, name: str) -> dict[str, tuple[Any, Any]]:
        """Return key -> values then and now of what a stage was begun with and would be now."""
        return changed_values(self.earlier(name) or {}, self.part(name), self.part(name, only_given=True))

    def is_done(self, name: str) -> bool:
        """Whether a stage came to its end, with whatever recipe."""
        entry = self._entries().get(name)
        return entry is not None and entry["done"]

    def begin(self, name: str) -> None:
        """Note that a stage begins; what was done after it is forgotten."""
        later = list(DEPENDS_ON)[list(DEPENDS_ON).index(name) :]
        kept = {key: value for key, value in self._entries().items() if key not in later}
        self._write({**kept, name: {"recipe": self.part(name), "done": False}})

    def note_done(self, name: str, facts: Mapping[str, Any] | None = None) -> None:
        """Note that a stage is done, and with what recipe; `facts` are kept with it, by default those it has."""
        entries = self._entries()
        kept = {"facts": dict(facts) if facts is not None else self.facts(name)}
        self._write({**entries, name: {"recipe": self.part(name), "done": True, **kept}})

    def facts(self, name: str) -> dict[str, Any]:
        """Return what was noted about a stage that is done."""
        facts = self._entries().get(name, {}).get("facts")
        return dict(facts) if isinstance(facts, dict) else {}

    def _write(self, entries: Mapping[str, Any]) -> None:
        write_json(self.run.stages, {**entries, "working_directory": place_of_work(self.run)})

    def _entries(self) -> dict[str, Any]:
        """Return the record; where it is missing or damaged, what the files of the run say."""
        if not self.run.stages.is_file():
            return self._from_files()
        try:
            found = read_json(self.run.stages, "record of finished stages")
        except UserError as error:
            return self._after_damage(str(error))
        if not isinstance(found, dict):
            return self._after_damage(f"{self.run.stages}: is damaged (no JSON object)")
        entries = {}
        for name in DEPENDS_ON:
            entry = found.get(name, found.get(f"{name} begun"))
            if isinstance(entry, str):
                # An earlier version kept a hash, of the recipe that lies next to it.
                entry = {"recipe": self._part_of_file(name), "done": name in found}
            if isinstance(entry, dict) and isinstance(entry.get("recipe"), dict):
                entries[name] = {**entry, "done": entry.get("done") is True}
            elif entry is not None:
                return self._after_damage(f"{self.run.stages}: is damaged (entry {name!r})")
        return entries

    def _after_damage(self, problem: str) -> dict[str, Any]:
        if problem not in self._said:
            self._said.add(problem)
            error_console.print(
                f"warning: {problem}; whether training is finished is seen by its files, and captions and scores are "
                "made again",
                markup=False,
                soft_wrap=True,
            )
        return self._from_files()

    def _from_files(self) -> dict[str, Any]:
        # What a training is replaced by goes away before the new one begins: a model that is there is the recipe's.
        begun = self.run.model.is_dir() or self.run.checkpoints.is_dir()
        if not begun or not self.run.recipe.is_file():
            return {}
        done = self.run.model.is_dir() and self.run.summary.is_file()
        return {"train": {"recipe": self._part_of_file("train"), "done": done}}

    def _part_of_file(self, name: str) -> dict[str, Any]:
        return part_of(recipe_of_run(self.run), name)


def part_of(recipe: Recipe, name: str, only_given: bool = False) -> dict[str, Any]:
    """Return the blocks of a recipe that a stage depends on, as JSON has them, without programs.

    Args:
        only_given: without keys that have their default.
    """
    values = recipe.model_dump(mode="json", exclude_defaults=only_given)
    part: dict[str, Any] = {}
    for key in DEPENDS_ON[name]:
        value: Any = values
        *above, last = key.split(".")
        for step in key.split("."):
            value = value.get(step) if isinstance(value, dict) else None
        if value is None:
            continue
        inside = part
        for step in above:
            inside = inside.setdefault(step, {})
        inside[last] = value
    # Which program computes a metric stands in the score file's signature; where it lies does not matter.
    options = part.get("score", {}).get("metric_options")
    if options:
        part["score"]["metric_options"] = {
            metric: options_without_programs(metric, given) for metric, given in options.items()
        }
    return part
