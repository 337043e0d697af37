"""Between two rows of the log, training asks the device for no number: each would wait for all that is queued."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from hfcap import schema
from hfcap.captioners.base import Captioner
from hfcap.data import loading, pixels
from hfcap.data.packing import pack_captions
from hfcap.data.source import load_split
from hfcap.errors import WorkError
from hfcap.files import write_json_lines
from hfcap.generation.rows import as_rows
from hfcap.recipe.dpo import DpoOptions
from hfcap.recipe.scst import ScstOptions
from hfcap.run.stages import make_accelerator
from hfcap.run_directory.paths import RunDirectory
from hfcap.schema import IGNORED_LABEL, PackedCaptions, sent
from hfcap.training.assemble import training_run
from hfcap.training.build import build_captioner, make_trainable
from hfcap.training.loop import TrainingRun
from hfcap.training.objectives import preference, self_critical
from hfcap.training.objectives.self_critical import SampledCaptions, SelfCritical
from hfcap.training.records.log import LogWindow
from tests.training.harness import FAMILIES, METHODS, forget_accelerator, tiny_recipe
from tests.training.host_reads import UPLOAD, CountedReads
from tests.training.test_optimization import prepared
from tests.training.test_self_critical import tiny_batch

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> CountedReads:
    """A counter that leaves out what does not wait: copies that are pinned for a device that can copy by itself, and
    what is noted of captions where they are packed, on the host."""
    counted = CountedReads()
    note = PackedCaptions.__post_init__

    def sent_uncounted(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        with counted.pause():
            return sent(tensor, device)

    def noted_uncounted(packed: PackedCaptions) -> None:
        with counted.pause():
            note(packed)

    monkeypatch.setattr(PackedCaptions, "__post_init__", noted_uncounted)
    for module in (schema, loading, pixels, preference, self_critical):
        monkeypatch.setattr(module, "sent", sent_uncounted)
    return counted


def update_counted(training: TrainingRun, reads: CountedReads, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the batches of an epoch and make two updates of the same ones, of which the second is counted."""
    training._set_training_mode()
    with reads.everywhere():
        windows = list(training._windows())
    assert reads.counts[UPLOAD] == 0
    reads.counts.clear()  # what the data loader reads of its own numbers
    training._update(*windows[1])  # the check whether captions may be packed reads, once for each length of rows
    step = training.prepared_optimizer.step

    def step_uncounted() -> None:
        with reads.pause():  # torch's optimizers keep their own counters of steps on the host
            step()

    monkeypatch.setattr(training.prepared_optimizer, "step", step_uncounted)
    with reads.everywhere():
        training._update(*windows[1])


def move_to_no_data(training: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go on training on a device that holds no numbers, so that whatever reads one fails, in the libraries too."""
    for module in (training.captioner.model, training.plain_objective.start):
        if module is not None:
            module.to(META)
    monkeypatch.setattr(Accelerator, "device", META)
    training._prepare()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("captioner", FAMILIES)
def test_an_update_asks_the_device_for_nothing(
    captioner: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: CountedReads
) -> None:
    training = prepared(tmp_path, captioner, method, num_train_epochs=1, per_device_train_batch_size=2)
    update_counted(training, reads, monkeypatch)
    assert reads.counts == {}
    with reads.everywhere():
        training._since.read()
    assert sum(reads.counts.values()) > 0, "this way of counting sees a read"
    reads.counts.clear()
    move_to_no_data(training, monkeypatch)
    update_counted(training, reads, monkeypatch)
    assert reads.counts == {}
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        training._since.read()


@pytest.mark.parametrize("captioner", ["blip", "image_text_to_text"])
def test_captions_in_rows_of_their_own_ask_for_nothing(
    captioner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: CountedReads
) -> None:
    """As of vision-language models that cannot be given captions side by side. GPT-2's own forward reads: it looks for
    padding at both ends of its rows, and for positions that begin again."""
    monkeypatch.setattr(Captioner, "packs_captions", False)
    training = prepared(tmp_path, captioner, num_train_epochs=1, per_device_train_batch_size=2)
    update_counted(training, reads, monkeypatch)
    assert reads.counts == {}
    move_to_no_data(training, monkeypatch)
    update_counted(training, reads, monkeypatch)
    assert reads.counts == {}


def rows_by_hand(packed: PackedCaptions, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of captions, and values of theirs back in the packed places: token by token."""
    index, positions = packed.caption_index.tolist(), packed.position_ids.tolist()
    per_image = 1 + max(map(max, index))
    ids = torch.zeros(len(index) * per_image, 1 + max(map(max, positions)), dtype=torch.long)
    found = torch.zeros(*packed.input_ids.shape, values.shape[-1])
    for image, row in enumerate(index):
        for place, number in enumerate(row):
            if number >= 0:
                at = (image * per_image + number, positions[image][place])
                ids[at] = packed.input_ids[image, place]
                found[image, place] = values[at]
    return ids, found


def test_rows_are_found_without_a_look_at_the_device() -> None:
    packed = pack_captions([[[5, 6, 7], [8]], [], [[9, 10], [4], [11, 12, 13, 14]]], [1, 2], 3, 0)
    values = torch.rand(9, 6, 5, generator=torch.Generator().manual_seed(0))
    reads = CountedReads()
    with reads.everywhere():
        rows = as_rows(packed)
        found = rows.packed(values)
    assert reads.counts == {}
    expected_ids, expected = rows_by_hand(packed, values)
    assert torch.equal(rows.input_ids, expected_ids) and torch.equal(found, expected)


def preferring(tmp_path: Path) -> TrainingRun:
    """A training on one to three pairs of captions for each image."""
    forget_accelerator()
    recipe = tiny_recipe("vit_gpt2", tmp_path, dropout=0.0, num_train_epochs=1, per_device_train_batch_size=2)
    records = load_split(recipe.data, "train")
    rows = [
        {"file_name": record.file_name, "chosen": record.captions[pair], "rejected": f"a {record.captions[-1]}"}
        for number, record in enumerate(records)
        for pair in range(1 + number % 3)
    ]
    write_json_lines(tmp_path / "pairs.jsonl", rows)
    recipe = recipe.model_copy(update={"dpo": DpoOptions(pairs=str(tmp_path / "pairs.jsonl"))})
    splits = {"train": records, "validation": load_split(recipe.data, "validation")}
    trainable = make_trainable(build_captioner(recipe, records), recipe)
    run = RunDirectory(tmp_path / recipe.name)
    return training_run(recipe, run, trainable, splits, make_accelerator(recipe, run))


def test_pairs_of_captions_ask_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: CountedReads
) -> None:
    training = preferring(tmp_path)
    update_counted(training, reads, monkeypatch)
    assert reads.counts == {}
    with reads.everywhere():
        sums = training.plain_objective.sums
    assert reads.counts == {"tolist": 1} and sums["pairs"] > 4
    reads.counts.clear()
    move_to_no_data(training, monkeypatch)
    update_counted(training, reads, monkeypatch)
    assert reads.counts == {}


def test_only_drawn_captions_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: CountedReads) -> None:
    """Self-critical training must read the words that it rewards, and reads nothing else."""
    captioner, batch, records = tiny_batch("vit_gpt2", tmp_path)
    objective = SelfCritical(captioner, ScstOptions(num_samples=2, kl_weight=0.1), records, 5).train()
    objective(batch).backward()
    drawn = objective._generated

    def drawn_uncounted(*given: Any) -> SampledCaptions:
        with reads.pause():
            return drawn(*given)

    monkeypatch.setattr(objective, "_generated", drawn_uncounted)
    with reads.everywhere():
        objective(batch).backward()
    assert reads.counts == {}
    with reads.everywhere():
        assert objective.sums["divergence"] >= 0
    assert reads.counts == {"tolist": 1}


@pytest.mark.parametrize(
    ("reading", "name"),
    [
        (lambda x: x.sum().item(), "aten._local_scalar_dense"),
        (lambda x: bool(x.any()), "aten._local_scalar_dense"),
        (lambda x: x.nonzero(), "aten.nonzero"),
        (lambda x: x[x > 1], "aten.index"),
        (lambda x: x[:, (x > 1)[1]], "aten.index"),
        (lambda x: x.__setitem__(x > 1, torch.zeros(2)), "aten.index_put_"),
        (lambda x: x.masked_select(x > 1), "aten.masked_select"),
        (lambda x: x.unique(), "aten._unique2"),
        (lambda x: x.unique_consecutive(), "aten.unique_consecutive"),
        (lambda x: x.repeat_interleave(x[1].long(), dim=1), "aten.repeat_interleave"),
        (lambda x: torch.equal(x, x + 1), "aten.equal"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x.numpy(), "numpy"),
        (lambda x: x.cpu(), "cpu"),
    ],
)
def test_the_counter_sees(reading: Callable[[torch.Tensor], Any], name: str) -> None:
    reads = CountedReads()
    numbers = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    with reads.everywhere():
        reading(numbers)
    assert name in reads.counts


@pytest.mark.parametrize(
    ("copying", "name"),
    [
        (lambda x: x.to("cpu"), "aten._to_copy"),
        (lambda x: x.to(CPU, torch.float64), "aten._to_copy"),
        (lambda x: torch.zeros(2).copy_(x), "aten.copy_"),
        (lambda x: torch.zeros(2).to(x.device), UPLOAD),
        (lambda x: torch.zeros(2).to(x), UPLOAD),
        (lambda x: x.copy_(torch.zeros(2)), UPLOAD),
        (lambda x: torch.tensor([1.0], device=x.device), UPLOAD),
    ],
)
def test_the_counter_sees_copies(copying: Callable[[torch.Tensor], Any], name: str) -> None:
    reads = CountedReads()
    there = torch.zeros(2, device=META)
    with reads.everywhere(), contextlib.suppress(NotImplementedError):  # there are no numbers to copy
        copying(there)
    assert reads.counts == {name: 1}


def test_the_counter_leaves_out_what_does_not_wait() -> None:
    reads = CountedReads()
    numbers, places = torch.rand(3, 2), torch.tensor([2, 0])
    with reads.everywhere():
        taken = numbers[places] + numbers[0] + numbers.masked_fill(numbers > 1, 0.0)[places]
        numbers[places, 0] = taken[:, 0]
        numbers.repeat_interleave(2, dim=0).to(CPU).to(torch.float64)
        with reads.pause():
            numbers.sum().item()
    assert reads.counts == {}


def test_the_first_bad_update_is_named() -> None:
    window = LogWindow(CPU)
    window.add_loss(4, torch.tensor(2.5), torch.tensor(1.0))
    assert window.read() == (2.5, 1.0)
    window.add_loss(5, torch.tensor(math.nan), torch.tensor(3.0))
    window.add_loss(6, torch.tensor(1.0), torch.tensor(math.inf))
    with pytest.raises(WorkError, match=r"step 5: the summed loss is nan and the gradient norm 3\.0"):
        window.read()


def test_overflow_that_the_scaler_handles_is_no_fault() -> None:
    window = LogWindow(CPU, overflow_is_handled=True)
    window.add_loss(1, torch.tensor(2.0), torch.tensor(math.inf))
    assert window.read() == (2.0, math.inf)
    window.add_loss(2, torch.tensor(math.inf), None)
    with pytest.raises(WorkError, match="step 2: the summed loss is inf"):
        window.read()


def test_a_window_sums_in_float64_from_where_it_starts() -> None:
    window = LogWindow(CPU, loss=1e8)
    for step in range(3):
        window.add_loss(step + 1, torch.tensor(0.25), 1.0)
    assert window.read() == (1e8 + 0.75, 1.0)


def test_the_host_knows_of_packed_captions_what_the_device_knows() -> None:
    packed = pack_captions([[[5, 6, 7], [8]], [[9, 10]], []], [1, 2], 3, 0, ended=[[True, False], [True], []])
    assert packed.caption_lengths() == [[5, 3], [4], []]
    assert packed.n_labels == 4 + 1 + 3
    assert packed.label_places is not None
    assert packed.labels.flatten()[packed.label_places].tolist() == [5, 6, 7, 3, 8, 9, 10, 3]
    moved = packed.to(CPU)
    assert (moved.lengths, moved.n_labels) == (packed.lengths, packed.n_labels)


def test_other_labels_have_other_places() -> None:
    packed = pack_captions([[[5, 6, 7]]], [1], 3, 0)
    changed = replace(packed, labels=packed.labels.masked_fill(packed.labels == 3, IGNORED_LABEL))
    assert (packed.n_labels, changed.n_labels) == (4, 3)


def test_without_notes_of_the_host_the_tensors_are_read() -> None:
    ids = torch.tensor([[1, 5, 0]], device="cpu")
    packed = PackedCaptions(ids, ids, torch.tensor([[0, 0, -1]]), torch.tensor([[5, 3, IGNORED_LABEL]]))
    packed._note(None, None)  # as where they were made on a device
    assert (packed.n_labels, packed.caption_lengths()) == (2, [[2]])
