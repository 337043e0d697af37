"""The loss on packed captions against plain transformers forwards, one hand-built row per caption."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel

from hfcap import registry
from hfcap.captioners.base import Captioner
from tests.captioners.helpers import (
    FAMILIES,
    PROMPT,
    build,
    gradients,
    packed_loss,
    pixel_values,
    random_captions,
)
from tests.captioners.plain_show_attend_tell import PlainCaption
from tests.rounding import assert_equal_to_rounding

pytestmark = pytest.mark.contract

COUNTS = (3, 1, 2)


def _rows(captioner: Captioner, caption: list[int], fill: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Input ids start..end with `fill` behind, the attention mask, and labels without start, prompt and filling."""
    prompt = captioner.tokenizer(captioner.prompt, add_special_tokens=False)["input_ids"] if captioner.prompt else []
    tokens = [captioner.start_token_id, *prompt, *caption, captioner.end_token_id]
    labels = [-100] * (1 + len(prompt)) + [*caption, captioner.end_token_id]
    ids = torch.tensor([tokens + [captioner.pad_token_id] * fill])
    mask = torch.tensor([[1] * len(tokens) + [0] * fill])
    return ids, mask, torch.tensor([labels + [-100] * fill])


def _plain_blip(captioner: Captioner, pixels: torch.Tensor, caption: list[int]) -> torch.Tensor:
    ids, mask, labels = _rows(captioner, caption, fill=2)
    output = captioner.model(pixel_values=pixels, input_ids=ids, attention_mask=mask, labels=labels)
    # transformers takes the mean over what is supervised.
    return output.loss * int((labels != -100).sum())


def _plain_vit_gpt2(captioner: Captioner, pixels: torch.Tensor, caption: list[int]) -> torch.Tensor:
    # The model shifts labels itself and puts decoder_start_token_id in front.
    if not captioner.prompt:
        labels = torch.tensor([[*caption, captioner.end_token_id, -100, -100]])
        return captioner.model(pixel_values=pixels, labels=labels).loss * (len(caption) + 1)
    ids, _, labels = _rows(captioner, caption, fill=0)
    logits = captioner.model(pixel_values=pixels, decoder_input_ids=ids[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits[0], labels[0, 1:], ignore_index=-100, reduction="sum")


def _plain_clip_prefix(captioner: Captioner, pixels: torch.Tensor, caption: list[int]) -> torch.Tensor:
    model = captioner.model
    ids, _, labels = _rows(captioner, caption, fill=0)
    pooled = model.vision_model(pixel_values=pixels).pooler_output
    first, _, _, last = model.mapper.layers
    prefix = last(torch.tanh(first(pooled))).reshape(1, 4, 32)
    words: GPT2LMHeadModel = model.language_model
    embeddings = torch.cat([prefix, words.transformer.wte(ids)], dim=1)
    # GPT-2 shifts the labels itself; the prefix positions carry none.
    full = torch.cat([torch.full((1, 4), -100), labels], dim=1)
    loss = words(inputs_embeds=embeddings, labels=full).loss
    assert loss is not None
    return loss * (len(caption) + 1)


def _plain_show_attend_tell(captioner: Captioner, pixels: torch.Tensor, caption: list[int]) -> torch.Tensor:
    return PlainCaption(captioner, captioner.encode(pixels)[0], captioner.start_token_ids(), caption).loss


def _plain_encoder_decoder(captioner: Captioner, pixels: torch.Tensor, caption: list[int]) -> torch.Tensor:
    model = captioner.model
    ids, mask, labels = _rows(captioner, caption, fill=2)
    cells = model.vision_model(pixel_values=pixels).last_hidden_state
    cells = cells.flatten(2).transpose(1, 2) if cells.ndim == 4 else cells
    read = model.bridge.norm(model.bridge.project(cells) + model.bridge.position)
    words: GPT2LMHeadModel = model.decoder
    loss = words(input_ids=ids, attention_mask=mask, encoder_hidden_states=read, labels=labels).loss
    assert loss is not None
    return loss * (len(caption) + 1)


PLAIN: dict[str, Callable[[Captioner, torch.Tensor, list[int]], torch.Tensor]] = {
    "blip": _plain_blip,
    "vit_gpt2": _plain_vit_gpt2,
    "clip_prefix": _plain_clip_prefix,
    "cnn_transformer": _plain_encoder_decoder,
    "image_transformer": _plain_encoder_decoder,
    "show_attend_tell": _plain_show_attend_tell,
}


def test_every_family_that_is_trained_is_compared() -> None:
    families = {name: registry.load("captioners", name).REGISTERED for name in registry.names("captioners")}
    trained = {name for name, family in families.items() if family.trains_by_gradients}
    # Vision-language models have tests of their own (test_image_text_to_text*.py).
    assert trained - {"image_text_to_text"} == set(PLAIN)


@pytest.fixture(scope="module", params=sorted(PLAIN))
def captioner(request: pytest.FixtureRequest) -> Captioner:
    return build(request.param)


@pytest.mark.parametrize("prompt", ["", PROMPT])
def test_packed_loss_and_gradients_equal_plain_forward(captioner: Captioner, prompt: str) -> None:
    captioner.prompt = prompt
    plain = PLAIN[type(captioner).__module__.rsplit(".", 1)[-1]]
    pixels = pixel_values(captioner, len(COUNTS))
    captions = random_captions(captioner, COUNTS)

    expected = sum(
        plain(captioner, pixels[image : image + 1], caption)
        for image, of_image in enumerate(captions)
        for caption in of_image
    )
    assert isinstance(expected, torch.Tensor)
    expected.backward()
    expected_gradients = gradients(captioner.model)
    found = packed_loss(captioner, pixels, captions)
    found.backward()
    found_gradients = gradients(captioner.model)

    n_tokens = sum(len(caption) + 1 for of_image in captions for caption in of_image)
    assert abs(float(found.detach() - expected.detach())) / n_tokens < 1e-5
    assert float(expected.detach()) / n_tokens > 1  # a loss worth comparing
    assert_equal_to_rounding(found_gradients, expected_gradients)


@pytest.fixture(scope="module", params=FAMILIES)
def any_captioner(request: pytest.FixtureRequest) -> Captioner:
    return build(request.param)


def test_packing_changes_nothing_in_any_family(any_captioner: Captioner) -> None:
    """Also for families without a hand-written forward above: packed loss = loss of one caption per row."""
    any_captioner.prompt = PROMPT
    pixels = pixel_values(any_captioner, len(COUNTS))
    captions = random_captions(any_captioner, COUNTS)
    with torch.no_grad():
        together = float(packed_loss(any_captioner, pixels, captions))
        alone = sum(
            float(packed_loss(any_captioner, pixels[image : image + 1], [[caption]]))
            for image, of_image in enumerate(captions)
            for caption in of_image
        )
    assert together == pytest.approx(alone, rel=1e-5)


def test_filling_captions_and_order_do_not_matter(any_captioner: Captioner) -> None:
    """What stands in padding or in the neighbour caption must not reach a caption's logits."""
    any_captioner.prompt = ""
    pixels = pixel_values(any_captioner, 1)
    [[first, second]] = random_captions(any_captioner, [2], seed=5)
    with torch.no_grad():
        forwards = float(packed_loss(any_captioner, pixels, [[first, second]]))
        backwards = float(packed_loss(any_captioner, pixels, [[second, first]]))
        longer = float(packed_loss(any_captioner, pixels.repeat(2, 1, 1, 1), [[first, second], [[5] * 30]]))
        only_long = float(packed_loss(any_captioner, pixels, [[[5] * 30]]))
    assert backwards == pytest.approx(forwards, rel=1e-5)
    assert longer - only_long == pytest.approx(forwards, rel=1e-4)


def test_images_reach_the_loss(any_captioner: Captioner) -> None:
    pixels = pixel_values(any_captioner, 2)
    captions = random_captions(any_captioner, [1])
    with torch.no_grad():
        losses = [float(packed_loss(any_captioner, pixels[i : i + 1], captions)) for i in range(2)]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_autocast_gives_nearly_the_same_loss(any_captioner: Captioner) -> None:
    """The additive mask must survive bfloat16 (its smallest number becomes minus infinity there)."""
    pixels = pixel_values(any_captioner, len(COUNTS))
    captions = random_captions(any_captioner, COUNTS)
    with torch.no_grad():
        exact = float(packed_loss(any_captioner, pixels, captions))
        with torch.autocast("cpu", torch.bfloat16):
            rough = float(packed_loss(any_captioner, pixels, captions).float())
    assert rough == pytest.approx(exact, rel=0.03)


def test_gradient_checkpointing_keeps_the_gradients(any_captioner: Captioner) -> None:
    pixels = pixel_values(any_captioner, 2)
    captions = random_captions(any_captioner, [2, 1])
    packed_loss(any_captioner, pixels, captions).backward()
    expected = gradients(any_captioner.model)
    model: Any = any_captioner.model
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    _switch_off_dropout(model.train())
    try:
        packed_loss(any_captioner, pixels, captions).backward()
        found = gradients(model)
    finally:
        model.gradient_checkpointing_disable()
        model.eval()
    assert_equal_to_rounding(found, expected)


def _switch_off_dropout(model: Any) -> None:
    for module in model.modules():
        for name in ("p", "dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
