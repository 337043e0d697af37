"""Images that keep their shape: loss and captions are those of the model's own processor, forward and generate."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hfcap.captioners.image_text_to_text import ImageTextToText
from hfcap.captioners.loading import load_captioner
from hfcap.captioners.vlm.loading import limit_pixels
from hfcap.captioning.batches import caption_records
from hfcap.captioning.given import image_records
from hfcap.data.loading import CaptionItem, Collate, PixelInputs
from hfcap.decoding import DecodingJob
from hfcap.errors import UserError
from hfcap.generation import verdicts
from hfcap.generation.verdicts import forget_verdicts
from hfcap.recipe.blocks import GenerateOptions
from hfcap.schema import SizedImages
from tests.captioners.helpers import gradients, packed, random_captions, random_image
from tests.captioners.itt_film_models import VISION_MODELS, of_vision
from tests.captioners.itt_late_models import late
from tests.captioners.itt_models import itt
from tests.captioners.itt_more_models import more
from tests.rounding import assert_equal_to_rounding

pytestmark = pytest.mark.contract

SHAPES = ((64, 64), (150, 60), (60, 200), (97, 131), (64, 64))
"""(width, height); two of one shape, which are computed together."""
COUNTS = (2, 1, 3, 1, 2)
FILMS = ("internvl", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "video_llama_3", "qwen3_5")
KINDS: dict[str, Any] = {
    "idefics3": itt,
    "qwen2_vl": itt,
    "qwen2_5_vl": itt,
    "internvl": more,
    "llava_next": more,
    "llava_onevision": more,
    "aya_vision": more,
    "idefics2": more,
    "qwen3_vl": more,
    "glm4v": more,
    "mllama": more,
    "video_llama_3": late,
    "qwen3_5": late,
}
WITH_TORCHVISION = ("lfm2_vl", "mistral3", "cohere2_vision", "minicpmv4_6", "lighton_ocr", "kimi_k25")


def photos() -> list[Image.Image]:
    return [random_image(number, size) for number, size in enumerate(SHAPES)]


@pytest.fixture(scope="module", params=[*KINDS, *WITH_TORCHVISION])
def captioner(request: pytest.FixtureRequest) -> ImageTextToText:
    name = request.param
    if name in WITH_TORCHVISION:
        if name != "lighton_ocr":
            pytest.importorskip("torchvision")
        if name not in VISION_MODELS:
            pytest.skip("this release of transformers does not know the model type")
        return of_vision(name, own=True)
    return KINDS[name](name, own=True)


def own_inputs(captioner: ImageTextToText, image: Image.Image) -> dict[str, Any]:
    """What the model's own processor makes of one image and the prompt."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": captioner.prompt}]
    inputs = captioner.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    return dict(inputs)


def own_loss(captioner: ImageTextToText, image: Image.Image, caption: Sequence[int]) -> torch.Tensor:
    inputs = own_inputs(captioner, image)
    reply = torch.tensor([[*caption, captioner.end_token_id]])
    prompt = inputs.pop("input_ids")
    for name, inside in {"attention_mask": 1, "token_type_ids": 0, "mm_token_type_ids": 0}.items():
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.full_like(reply, inside)], dim=1)
    if "cross_attention_mask" in inputs:
        tiles = inputs["cross_attention_mask"]
        inputs["cross_attention_mask"] = torch.cat([tiles, tiles[:, -1:].repeat(1, reply.numel(), 1, 1)], dim=1)
    labels = torch.cat([torch.full_like(prompt, -100), reply], dim=1)
    output = captioner.model(input_ids=torch.cat([prompt, reply], dim=1), labels=labels, **inputs)
    return output.loss * reply.numel()


def states_of(captioner: ImageTextToText, images: Sequence[Image.Image]) -> Any:
    pixels = captioner.image_processor(images=images, return_tensors="pt")["pixel_values"]
    assert isinstance(pixels, SizedImages) and pixels.sizes == tuple(image.size for image in images)
    return captioner.encode(pixels)


def test_loss_and_gradients_equal_the_model_s_own_forward(captioner: ImageTextToText) -> None:
    captions = random_captions(captioner, COUNTS)
    of_each = zip(photos(), captions, strict=True)
    expected = torch.stack([own_loss(captioner, image, tokens) for image, group in of_each for tokens in group]).sum()
    expected.backward()
    expected_gradients = gradients(captioner.model)
    rows = packed(captioner, captions)
    logits = captioner.logits(states_of(captioner, photos()), rows)
    found = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows.labels.flatten(), reduction="sum")
    found.backward()
    n_tokens = sum(len(tokens) + 1 for group in captions for tokens in group)
    assert float(expected.detach()) / n_tokens > 1
    assert abs(float(found.detach() - expected.detach())) / n_tokens < 1e-5
    assert_equal_to_rounding(gradients(captioner.model), expected_gradients)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_captions_equal_the_model_s_own_generate(captioner: ImageTextToText, num_beams: int) -> None:
    options = GenerateOptions(num_beams=num_beams, max_new_tokens=7)
    with torch.inference_mode():
        found = [best[0].text for best in captioner.caption_states(states_of(captioner, photos()), options)]
    expected = []
    for image in photos():
        inputs = own_inputs(captioner, image)
        sequences = captioner.model.generate(**inputs, generation_config=captioner.generation_config(options))
        text = captioner.tokenizer.decode(sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        expected.append(" ".join(text.split()))
    assert found == expected
    assert len(set(found)) > 1, "every image got the same caption: the comparison shows little"


NOT_PADDED = ("mllama", "idefics2")
"""Prompts of images of all shapes are of one length here, or images stand outside of them."""
SIMILAR = ((64, 64), (150, 60), (60, 200), (97, 131), (131, 97), (64, 70))


def captions_and_batches(
    captioner: ImageTextToText, states: Any, options: GenerateOptions, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], list[int]]:
    """Caption all images at once; also how many images each call of `generate` had."""
    batches: list[int] = []

    def counting(inner: Any) -> Any:
        def generate(states: Any, *given: Any) -> Any:
            batches.append(len(states))
            return inner(states, *given)

        return generate

    with torch.inference_mode(), monkeypatch.context() as patch:
        captioner.caption_states(states, options)  # ways of generating are compared once
        for name in ("plain_generate", "fast_generate"):
            patch.setattr(captioner, name, counting(getattr(captioner, name)))
        found = captioner.caption_states(states, options)
    return [best[0].text for best in found], batches


def test_prompts_of_like_length_are_one_batch(captioner: ImageTextToText, monkeypatch: pytest.MonkeyPatch) -> None:
    """The captions of padded prompts are those of one image at a time, also where they end at different steps."""
    options = GenerateOptions(num_beams=1, max_new_tokens=7)
    states = states_of(captioner, [random_image(number, size) for number, size in enumerate(SIMILAR)])
    layouts = len({captioner.kind.layout(size) for size in SIMILAR})
    for _ in range(2):
        with torch.inference_mode():
            alone = [captioner.caption_states(states[[n]], options)[0][0].text for n in range(len(SIMILAR))]
        together, batches = captions_and_batches(captioner, states, options, monkeypatch)
        assert together == alone and len(set(alone)) > 1
        assert sum(batches) == len(SIMILAR)
        if captioner.model.config.model_type not in NOT_PADDED:
            assert len(batches) < layouts, batches
        words = [captioner.tokenizer(text, add_special_tokens=False)["input_ids"] for text in alone]
        monkeypatch.setattr(captioner, "_end_token_id", words[0][min(3, len(words[0]) - 1)])


def test_a_model_that_reads_padding_gets_batches_of_one_length(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    captioner = itt("qwen2_5_vl", own=True)
    kind: Any = captioner.kind
    inner = kind._padded_prompts

    def unmasked(images: SizedImages) -> Any:
        ids, mask, extras = inner(images)
        return ids, torch.ones_like(mask), extras

    options = GenerateOptions(num_beams=1, max_new_tokens=7)
    images = [random_image(number, size) for number, size in enumerate(SIMILAR)]
    states = states_of(captioner, images)
    with torch.inference_mode():
        alone = [captioner.caption_states(states[[n]], options)[0][0].text for n in range(len(SIMILAR))]
    forget_verdicts()
    monkeypatch.setattr(verdicts, "cache_folder", lambda: Path(os.devnull))
    monkeypatch.setattr(kind, "_padded_prompts", unmasked)
    together, batches = captions_and_batches(captioner, states, options, monkeypatch)
    forget_verdicts()
    assert together == alone
    assert len(batches) == len({captioner.kind.layout(size) for size in SIMILAR})
    assert "padding of prompts of Qwen2_5_VL" in capsys.readouterr().err


def test_shapes_matter_here(captioner: ImageTextToText) -> None:
    """Otherwise the tests above would show what those of squares show."""
    lengths = {own_inputs(captioner, image)["input_ids"].shape[1] for image in photos()}
    assert captioner.own_shapes and captioner.image_size is None
    assert len(lengths) > 1 or captioner.model.config.model_type in ("mllama", "idefics2")
    assert not captioner.sees_one_image


def test_saved_and_loaded(captioner: ImageTextToText, tmp_path: Path) -> None:
    if captioner.model.config.model_type in FILMS:
        pytest.skip("built without the part of its processor that reads films, it cannot be loaded")
    options = GenerateOptions(num_beams=2, max_new_tokens=6)
    captioner.save(tmp_path, options)
    with torch.inference_mode():
        expected = captioner.caption_states(states_of(captioner, photos()), options)
    again = load_captioner(str(tmp_path))
    assert isinstance(again, ImageTextToText) and again.own_shapes and again.image_size is None
    with torch.inference_mode():
        assert again.caption_states(states_of(again, photos()), options) == expected


def test_a_square_can_still_be_asked_for() -> None:
    captioner = itt("qwen2_vl")
    assert not captioner.own_shapes and captioner.image_size == 56
    pixels = captioner.image_processor(images=photos(), return_tensors="pt")["pixel_values"]
    assert tuple(pixels.shape) == (5, 3, 56, 56)


def test_limits_of_pixels() -> None:
    image = random_image(0, (640, 480))
    counts = []
    for most in (200_000, 100_000, 20_000):
        captioner = itt("qwen2_vl", own=True)
        limit_pixels(captioner.processor.image_processor, None, most)
        counts.append(states_of(captioner, [image]).values[0].shape[0])
        grid = own_inputs(captioner, image)["image_grid_thw"][0]
        assert int(grid.prod()) * 14 * 14 <= most
    assert counts[0] > counts[1] > counts[2]
    with pytest.raises(UserError, match=r"model\.max_pixels: CLIP\w+ has no limits of pixels"):
        limit_pixels(itt("llava").processor.image_processor, None, 100)
    with pytest.raises(UserError, match=r"model\.min_pixels: 9,000,000 is more than model\.max_pixels"):
        limit_pixels(itt("qwen2_vl").processor.image_processor, 9_000_000, 1000)


def test_an_adapter_keeps_shape_and_limits_whatever_its_base_says(tmp_path: Path) -> None:
    square, own = itt("qwen2_vl"), itt("qwen2_vl", own=True)
    assert square.sidecar()["image_size"] == "56" and "images" not in square.sidecar()
    limit_pixels(own.processor.image_processor, None, 20_000)
    notes = own.sidecar()
    assert notes["images"] == "own shape" and notes["max_pixels"] == "20000"
    base = itt("qwen2_vl")
    base.take_sidecar(notes)
    assert base.own_shapes and base.image_size is None
    image = random_image(0, (640, 480))
    assert states_of(base, [image]).values[0].shape == states_of(own, [image]).values[0].shape
    base.take_sidecar(square.sidecar())
    assert not base.own_shapes and base.image_size == 56
    with pytest.raises(UserError, match="max_pixels must be a whole number, not 'many'"):
        base.take_sidecar({**notes, "max_pixels": "many"})


def test_images_that_the_model_cannot_take() -> None:
    captioner = itt("qwen2_vl", own=True)
    with pytest.raises(UserError, match=r"an image of 3000 x 2 pixels: the model's processor refuses it.*aspect ratio"):
        captioner.image_processor(images=random_image(0, (3000, 2)), return_tensors="pt")
    limit_pixels(captioner.processor.image_processor, None, 200_000)
    captioner.model.config.get_text_config().max_position_embeddings = 50
    with pytest.raises(UserError, match=r"an image of 640 x 480 pixels becomes \d+ tokens.*50 positions.*max_pixels"):
        states_of(captioner, [random_image(0, (640, 480))])


def test_batches_of_a_loader_hold_images_of_any_shape() -> None:
    captioner = itt("qwen2_vl", own=True)
    inputs = PixelInputs([], captioner.image_processor)
    collate = Collate(captioner.start_token_ids(), captioner.end_token_id, captioner.pad_token_id, inputs)
    items = [CaptionItem(inputs.processed(image), [[5, 6]], number) for number, image in enumerate(photos())]
    batch = collate(items).to(torch.device("cpu"))
    assert isinstance(batch.images, SizedImages) and len(batch.images) == 5
    assert batch.images[1:3].sizes == SHAPES[1:3]


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "internvl", "idefics3"])
def test_images_of_one_shape_are_captioned_together_and_read_once(kind: str, tmp_path: Path) -> None:
    captioner = KINDS[kind](kind, own=True)
    shapes = ((64, 64), (150, 60), (60, 200))
    files = [tmp_path / f"{number}.png" for number in range(9)]
    for number, file in enumerate(files):
        random_image(number, shapes[number % 3]).save(file)
    files[5].write_bytes(b"no image")  # one of the largest, which come last
    options = GenerateOptions(num_beams=1, max_new_tokens=6)
    done: list[int] = []

    def captions(files: Sequence[Path], batch_size: int) -> list[list[str]]:
        job = DecodingJob([], PixelInputs([], captioner.image_processor), options, batch_size, 0)
        found = caption_records(captioner, job, image_records([str(file) for file in files]), advance=done.append)
        return [[text if isinstance(text, str) else text[0].text for _, text in some] for some in found]

    random_image(9, (97, 131)).save(tmp_path / "first.png")
    captions([tmp_path / "first.png"], 3)  # ways of generating are compared once
    done.clear()
    passes: list[int] = []
    handle = captioner.part_modules()["vision"][0].register_forward_hook(lambda *_: passes.append(1))
    together = captions(files, 3)
    handle.remove()
    # Batches of three of one shape, but the last, of two and one.
    assert len(passes) == 3 and done == [3, 3, 2, 1], "a bar counts batches, and what could not be read"
    assert [len(some) for some in together] == [9], "a captioning goes on after whole lists"
    alone = [text for some in captions(files, 1) for text in some]
    assert together[0] == alone and "damaged" in alone[5] and len(set(alone)) > 3
