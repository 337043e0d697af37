"""Which keys of a recipe may change while a run goes on, and why: one table.

A changed key either changes nothing that is learnt, or has to be accepted by whoever continues the training
(--accept-changes), or makes another model of it, which has to be trained again.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from hfcap.places import Place, with_changed_places
from hfcap.recipe.blocks import Recipe


class Effect(Enum):
    """What a changed key does to a training that was begun."""

    FREE = "nothing that is learnt changes"
    LONGER = "more steps of the same training"
    ASK = "the rest of the training is another one"
    ANEW = "another model, which cannot go on from these weights"


_TABLE: tuple[tuple[str, Effect, str], ...] = (
    ("train.dataloader_num_workers", Effect.FREE, "how images are read, not which"),
    ("train.logging_steps", Effect.FREE, "what is written down"),
    ("train.sample_captions", Effect.FREE, "what is written down"),
    ("train.report_to", Effect.FREE, "where it is written down"),
    ("train.save_steps", Effect.FREE, "how often a checkpoint is written"),
    ("train.save_total_limit", Effect.FREE, "how many checkpoints are kept"),
    ("train.per_device_eval_batch_size", Effect.FREE, "memory of validation and captioning"),
    ("train.gradient_checkpointing*", Effect.FREE, "activations computed again instead of kept: the same gradients"),
    ("train.torch_compile", Effect.FREE, "the same arithmetic, compiled"),
    ("train.freeze*", Effect.ANEW, "checkpoints hold the trained weights, which would be others"),
    ("train.optim", Effect.ANEW, "the state of another optimiser"),
    ("train.*", Effect.ASK, "steps already done were made with other values"),
    ("model.trust_remote_code", Effect.FREE, "whether code may run, not which; the weights are compared"),
    ("model.attn_implementation*", Effect.FREE, "another kernel for the same attention"),
    ("data.*_folder", Effect.FREE, "where computed things are kept"),
    ("data.image_cache", Effect.FREE, "the same pixels, kept"),
    ("data.max_unreadable_images", Effect.FREE, "which images were read is compared"),
    ("data.test_split", Effect.FREE, "nothing of it is trained on; captions are made again"),
    ("data.max_test_images", Effect.FREE, "as data.test_split"),
    ("data.*", Effect.ASK, "other images or captions from here on"),
    ("augment*", Effect.ASK, "images and captions change in another way from here on"),
    ("scst.*", Effect.ASK, "other rewards from here on"),
    ("dpo.*", Effect.ASK, "other pairs, or another pull, from here on"),
    ("lora.lora_dropout", Effect.ASK, "dropout from here on"),
    ("*", Effect.ANEW, "another model"),
)
"""Pattern of keys -> what a change does, and why; the first that fits counts.

Before it come two rules: a file or folder may lie elsewhere, and a revision may be spelled otherwise, if the content is
the same; and a training with a constant learning rate may become longer, because its first steps are the same.
"""

_CONSTANT = ("constant", "constant_with_warmup")
_LENGTHS = ("train.max_steps", "train.num_train_epochs")


@dataclass(frozen=True, slots=True)
class KeyChange:
    """A key whose value is not the one that was trained with."""

    key: str
    before: Any
    now: Any
    effect: Effect

    def __str__(self) -> str:
        return f"{self.key}: {self.before!r} there, {self.now!r} here"


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield full key and value of everything that is no block."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def changed_values(
    before: Mapping[str, Any], now: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Return key -> values before and now, where they differ.

    A key that an earlier version of hfcap did not know counts only where it is given another value than its default.

    Args:
        before, now: blocks of recipes with every default spelled out.
        given: those values of `now` that are no defaults.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        inside = given.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            below = changed_values(old, new, inside if isinstance(inside, Mapping) else {})
            found |= {f"{key}.{name}": values for name, values in below.items()}
        elif old != new and (key in before or key in given) and key in now:
            found[key] = (old, new)
        elif key not in now and old is not None:
            found[key] = (old, None)
    return found


def place_keys(recipe: Recipe) -> dict[str, str]:
    """Return full key -> text of everything in `model`, `data`, `augment`, `scst`, `dpo` that names a place."""
    found: dict[str, str] = {}
    for name in ("model", "data", "augment", "scst", "dpo"):
        block = getattr(recipe, name)
        if block is None:
            continue
        marks: dict[str, Place] = {}

        def note(text: str, place: Place, marks: dict[str, Place] = marks) -> str:
            marks[text] = place
            return text

        with_changed_places(block, note)
        found |= {
            key: value
            for key, value in flattened(block.model_dump(mode="json"), f"{name}.")
            if isinstance(value, str) and value in marks
        }
    return found


SameContent = Callable[[str, str | None], bool]
"""(full key, its text now) -> whether what it names is what was there when the run began."""


def _effect_of(key: str, before: Any, now: Any, recipe: Recipe, schedule: Any, same: SameContent | None) -> Effect:
    effect = next(effect for pattern, effect, _ in _TABLE if fnmatch.fnmatchcase(key, pattern))
    if effect is Effect.FREE or (same is not None and same(key, now)):
        return Effect.FREE
    train = recipe.train
    if key in _LENGTHS and isinstance(before, int | float) and isinstance(now, int | float) and now > before:
        steady = train.lr_scheduler_type in _CONSTANT and schedule == train.lr_scheduler_type
        return Effect.LONGER if steady and not train.warmup_ratio and not 0 < train.warmup_steps < 1 else effect
    if key == "train.ema_decay" and (before is None or now is None):
        return Effect.ANEW
    return effect


def key_changes(
    before: Mapping[str, Any],
    changed: Mapping[str, tuple[Any, Any]],
    recipe: Recipe,
    same: SameContent,
    continues: bool,
) -> list[KeyChange]:
    """Return what differs between the recipe of a training that was begun and the recipe now.

    Args:
        before: blocks of the recipe then. changed: as `changed_values` gives it. recipe: as it is now.
        same: asked about keys that name files, folders, repositories and revisions.
        continues: the captioner is trained in steps; otherwise every change that counts means training again.
    """
    places = place_keys(recipe)
    schedule = (before.get("train") or {}).get("lr_scheduler_type")
    changes = []
    for key, (old, new) in changed.items():
        names_content = key in places or key.endswith("revision")
        effect = _effect_of(key, old, new, recipe, schedule, same if names_content else None)
        if effect in (Effect.ASK, Effect.LONGER) and not continues:
            effect = Effect.ANEW
        changes.append(KeyChange(key, old, new, effect))
    return changes
