"""Instruction data: each caption is trained after its own prompt, as the model's chat template writes the two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn

from hfcap.captioners.image_text_to_text import ImageTextToText
from hfcap.captioning.captioner import ImageCaptioner
from hfcap.decoding import read_captions
from hfcap.doctor.run_checks import examine
from hfcap.errors import UserError
from hfcap.files import read_json
from hfcap.recipe.loading import recipe_from_mapping
from hfcap.schema import CaptionedImage
from tests.captioners.helpers import MemoryImage, gradients, random_image, write_image
from tests.captioners.itt_models import itt
from tests.captioners.itt_more_models import more
from tests.rounding import assert_equal_to_rounding
from tests.training.harness import forget_accelerator, recipe_values
from tests.training.test_prompts_of_images import loss_of, run_of

TALKS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("what is it?", "a red cat sits"), ("which colour?\none word.", "red"), ("what is it?", "a cat")),
    (("which colour?\none word.", "green grass"),),
    (("where is the man's hat?", "on a mat"), ("what is it?", "two dogs")),
)


def records() -> list[CaptionedImage]:
    return [
        CaptionedImage(str(n), f"{n}.png", tuple(b for _, b in talk), MemoryImage(n), asked=tuple(a for a, _ in talk))
        for n, talk in enumerate(TALKS)
    ]


def own_loss(captioner: ImageTextToText) -> torch.Tensor:
    """Summed loss of the answers and their ends by the model's own forward, each turn by its chat template."""
    processor, loss = captioner.processor, torch.zeros(())
    for number, talk in enumerate(TALKS):
        # As captions without a shape of their own see it: the square that the captioner makes.
        image = random_image(number)
        image = image if captioner.image_size is None else image.resize((captioner.image_size,) * 2)
        for asked, answer in talk:
            content = [{"type": "image", "image": image}, {"type": "text", "text": asked}]
            question = {"role": "user", "content": content}
            reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
            named = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
            before = processor.apply_chat_template([question], add_generation_prompt=True, **named)["input_ids"]
            inputs = dict(processor.apply_chat_template([question, reply], **named))
            ids, n_asked = inputs["input_ids"], before.shape[1]
            assert torch.equal(ids[:, :n_asked], before)
            logits = captioner.model(**inputs, use_cache=False).logits
            ends = (ids[0, n_asked:] == captioner.end_token_id).nonzero()
            last = n_asked + int(ends[0]) + 1
            loss = loss + nn.functional.cross_entropy(
                logits[0, n_asked - 1 : last - 1].float(), ids[0, n_asked:last], reduction="sum"
            )
    return loss


KINDS: dict[str, Any] = {
    "llava": lambda: itt("llava"),
    "qwen2_vl": lambda: itt("qwen2_vl", own=True),
    "idefics3": lambda: itt("idefics3", own=True),
    "internvl": lambda: more("internvl", own=True),
}


@pytest.mark.contract
@pytest.mark.parametrize("plain", [False, True], ids=["packed", "plain"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_the_models_own_forward(
    kind: str, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner: ImageTextToText = KINDS[kind]()
    if kind in ("qwen2_vl", "internvl"):
        # As Qwen's own tokenizer has it: after a line end no word begins with a space.
        captioner.tokenizer.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    if plain:
        monkeypatch.setattr(type(captioner), "packs_captions", False)
    captioner.prompt = "something else"
    loss = loss_of(captioner, records())
    loss.backward()
    found = gradients(captioner.model)
    expected = own_loss(captioner)
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert_equal_to_rounding(found, gradients(captioner.model))


def talk_folder(folder: Path) -> Path:
    rows = []
    for number, split in enumerate(("train",) * 4 + ("val",) * 2 + ("test",) * 3):
        write_image(folder / f"{number}.png", number)
        turns = [
            turn
            for asked, answer in TALKS[number % 3]
            for turn in ({"from": "human", "value": asked}, {"from": "gpt", "value": answer})
        ]
        rows.append({"image": f"{number}.png", "conversations": turns, "split": split})
    (folder / "data.json").write_text(json.dumps(rows))
    return folder


def run_values(family: str, folder: Path, root: Path, **data: Any) -> dict[str, Any]:
    values = recipe_values(family, folder, dropout=0.0, metric_for_best_model="cider")
    values["data"] = {"source": "folder", "root": str(root), "max_caption_tokens": 20, "own_prompts": True, **data}
    values["score"]["baselines"] = ["blank_images"]
    return values


def test_a_run_trains_on_turns_and_asks_the_first_of_scored_images(tmp_path: Path) -> None:
    root = talk_folder(tmp_path / "photos")
    run = run_of(run_values("image_text_to_text", tmp_path / "runs", root))
    references = read_json(run.references("test"), "references")["annotations"]
    assert [(one["image_id"], one["caption"]) for one in references] == [
        ("6.png", "a red cat sits"),
        ("6.png", "a cat"),
        ("7.png", "green grass"),
        ("8.png", "on a mat"),
    ]
    loaded, predictions = ImageCaptioner(run.path), read_captions(run.predictions("test"))
    for number in (6, 7, 8):
        alone = loaded.caption(root / f"{number}.png", TALKS[number % 3][0][0])
        assert predictions[f"{number}.png"] == alone.text
    assert "prompts" in read_json(run.environment, "environment")["start"]


@pytest.mark.parametrize("family", ["blip", "retrieval"])
def test_other_families_refuse(family: str, tmp_path: Path) -> None:
    values = run_values(family, tmp_path / "runs", talk_folder(tmp_path / "photos"))
    values["train"].pop("metric_for_best_model")
    with pytest.raises(UserError, match=f"data.own_prompts: captioner {family} takes no instructions"):
        run_of(values)
    assert not (tmp_path / "runs").exists()


def test_the_doctor_warns_only_where_prompts_do_not_reach_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = talk_folder(tmp_path / "photos")
    for own in (True, False):
        values = run_values("image_text_to_text", tmp_path / "runs", root, own_prompts=own)
        forget_accelerator()
        assert examine(recipe_from_mapping(values, "test"), tmp_path / "doctor", steps=0)
        problems = read_json(tmp_path / "doctor" / "doctor.json", "report")["problems"]
        told = [one["remedy"] for one in problems if one["key"] == "model.prompt"]
        assert len(told) == (not own) and all("set data.own_prompts: true" in one for one in told)
    capsys.readouterr()


def test_marks_of_chats_in_prompts_are_no_marks(tmp_path: Path) -> None:
    captioner = itt("llava")
    mark = next(text for text in captioner.tokenizer.all_special_tokens if "<" in text)
    (record,) = records()[1:2]
    clean = loss_of(captioner, [record])
    image_token = captioner.processor.image_token
    from dataclasses import replace

    dirty = replace(record, asked=(f"{record.asked[0]} {image_token}{mark}",))
    assert float(loss_of(captioner, [dirty]).detach()) == pytest.approx(float(clean.detach()), rel=1e-6)
