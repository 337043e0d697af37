"""What an image-text-to-text model does by itself, called as its documentation says: the reference of the tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hfcap.captioners.image_text_to_text import ImageTextToText
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.helpers import gradients, packed_loss, pixel_values, random_captions, random_image
from tests.rounding import assert_equal_to_rounding


def _images(captioner: ImageTextToText, count: int) -> list[Any]:
    images = [random_image(number) for number in range(count)]
    side = captioner.image_size
    return images if side is None else [image.resize((side, side), 3) for image in images]


def own_inputs(captioner: ImageTextToText, count: int) -> dict[str, Any]:
    """What the model's own processor makes of images and prompt, called as its documentation says."""
    processor, prompt = captioner.processor, captioner.prompt
    images = _images(captioner, count)
    if getattr(processor, "chat_template", None):
        messages = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": prompt}]}]
            for image in images
        ]
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    else:
        placeholder = "<image>" if captioner.model.config.model_type == "paligemma" else ""
        inputs = processor(images=images, text=[placeholder + prompt] * count, return_tensors="pt")
    inputs.pop("labels", None)
    if "pixel_values_images" in inputs:  # Video-LLaVA's old name; its forward asks for the other
        inputs["pixel_values"] = inputs.pop("pixel_values_images")
    return dict(inputs)


def own_loss(captioner: ImageTextToText, image: int, caption: list[int]) -> torch.Tensor:
    """Summed loss of the model's forward on one row: prompt and image from the processor, labels on the caption."""
    inputs = {name: value[-1:] for name, value in own_inputs(captioner, image + 1).items() if name != "pixel_values"}
    inputs["pixel_values"] = own_pixels(captioner, image)
    reply = torch.tensor([[*caption, captioner.end_token_id]])
    if captioner.model.config.model_type == "florence2":
        start = captioner.start_token_ids()
        decoder_ids = torch.tensor([[*start, *caption]])
        labels = torch.cat([torch.tensor([[-100]]), reply], dim=1)
        return captioner.model(**inputs, decoder_input_ids=decoder_ids, labels=labels).loss * reply.numel()
    prompt = inputs.pop("input_ids")
    # PaliGemma's type 1 is what is to be written, Gemma 3's the image.
    reply_type = int(captioner.model.config.model_type == "paligemma")
    of_reply = {
        "attention_mask": 1,
        "token_type_ids": reply_type,
        "mm_token_type_ids": 0,
        "moe_mm_token_type_ids": 0,
        "image_embeds_position_mask": 0,
    }
    for name, inside in of_reply.items():
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.full_like(reply, inside)], dim=1)
    if "cross_attention_mask" in inputs:
        tiles = inputs["cross_attention_mask"]
        inputs["cross_attention_mask"] = torch.cat([tiles, tiles[:, -1:].repeat(1, reply.numel(), 1, 1)], dim=1)
    labels = torch.cat([torch.full_like(prompt, -100), reply], dim=1)
    return captioner.model(input_ids=torch.cat([prompt, reply], dim=1), labels=labels, **inputs).loss * reply.numel()


def own_pixels(captioner: ImageTextToText, image: int) -> torch.Tensor:
    """Pixels of the last of `image + 1` images, from the processor."""
    pixels: torch.Tensor = own_inputs(captioner, image + 1)["pixel_values"]
    # MiniCPM's lie in one strip along the last axis, those of all others along the first.
    axis = pixels.ndim - 1 if captioner.model.config.model_type.startswith("minicpm") else 0
    of_each = pixels.shape[axis] // (image + 1)
    return pixels.narrow(axis, image * of_each, of_each)


def own_captions(captioner: ImageTextToText, count: int, options: GenerateOptions) -> list[str]:
    """Captions by the model's own generate of its own processor's inputs."""
    inputs = own_inputs(captioner, count)
    sequences = captioner.model.generate(**inputs, generation_config=captioner.generation_config(options))
    if not captioner.model.config.is_encoder_decoder:
        sequences = sequences[:, inputs["input_ids"].shape[1] :]
    texts = captioner.tokenizer.batch_decode(sequences, skip_special_tokens=True)
    return [" ".join(text.split()) for text in texts]


def assert_own_loss_and_gradients(captioner: ImageTextToText, counts: Sequence[int]) -> None:
    """Random captions, so many an image, cost the same packed as one by one in the model's own forward."""
    captions = random_captions(captioner, counts)
    expected = torch.stack(
        [own_loss(captioner, image, caption) for image, of_image in enumerate(captions) for caption in of_image]
    ).sum()
    expected.backward()
    expected_gradients = gradients(captioner.model)
    found = packed_loss(captioner, pixel_values(captioner, len(counts)), captions)
    found.backward()
    found_gradients = gradients(captioner.model)
    n_tokens = sum(len(caption) + 1 for of_image in captions for caption in of_image)
    assert float(expected.detach()) / n_tokens > 1
    assert abs(float(found.detach() - expected.detach())) / n_tokens < 1e-5
    assert_equal_to_rounding(found_gradients, expected_gradients)


def assert_own_captions(captioner: ImageTextToText, num_beams: int) -> None:
    """Three images get the captions that the model's own generate gives them."""
    options = GenerateOptions(num_beams=num_beams, max_new_tokens=7)
    with torch.inference_mode():
        states = captioner.encode(pixel_values(captioner, 3))
    found = [captions[0].text for captions in captioner.caption_states(states, options)]
    assert found == own_captions(captioner, 3, options)
    assert len(set(found)) > 1, "every image got the same caption: the comparison shows little"
