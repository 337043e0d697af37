"""Caption images with the exported captioner in this folder: python caption.py cat.jpg dog.jpg

Prints one line for each image: its path, a tab, its caption (greedy search). Needs Pillow, torch, transformers 5.23 or
newer, and onnxruntime with onnxscript, or openvino; not hfcap. What it does can be written in any language: encoder
once for an image, prefill for the first word, decode for each further one. The names are in hfcap_export.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.exporters.base import ExportedModel

_AT_ONCE = 8
# OpenVINO computes in bfloat16 where the processor can, which changes captions.
_FULL_PRECISION: dict[str, dict[str, Any]] = {"openvino": {"config": {"INFERENCE_PRECISION_HINT": "f32"}}, "onnx": {}}


class ExportedCaptioner:
    """The exported files of a folder, ready for images."""

    def __init__(self, folder: Path) -> None:
        self.notes: dict[str, Any] = json.loads((folder / "hfcap_export.json").read_text(encoding="utf-8"))
        options = _FULL_PRECISION[self.notes["format"]]
        self.model = ExportedModel.from_pretrained(folder, device="cpu", **options)
        self.image_processor = AutoImageProcessor.from_pretrained(folder, backend=self.notes["image_backend"])
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        """Return a caption for each image, by greedy search."""
        pixel_values = self.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        states = self._run("encoder", pixel_values=pixel_values)["encoder_hidden_states"]
        start = torch.tensor([self.notes["start_token_ids"]] * len(images))
        output = self._run("prefill", input_ids=start, encoder_hidden_states=states)
        end, pad, cache = (self.notes[name] for name in ("end_token_id", "pad_token_id", "cache"))
        words: list[torch.Tensor] = []
        ended = torch.zeros(len(images), dtype=torch.bool)
        while len(words) < self.notes["max_new_tokens"] and not bool(ended.all()):
            if words:
                one = words[-1][:, None].contiguous()
                output = self._run("decode", input_ids=one, encoder_hidden_states=states, **{cache: output[cache]})
            words.append(output["logits"][:, -1].argmax(dim=-1).masked_fill(ended, pad))
            ended = ended | (words[-1] == end)
        texts = self.tokenizer.batch_decode(torch.stack(words, dim=1), skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]

    def _run(self, part: str, **inputs: torch.Tensor) -> Any:
        # OpenVINO would go on reading shared inputs after they are gone.
        run: Any = self.model.runners[part]
        return run(share_inputs=False, **inputs)

    def captions_of(self, paths: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yield (path, caption), a few images at a time."""
        for first in range(0, len(paths), _AT_ONCE):
            some = paths[first : first + _AT_ONCE]
            images = []
            for path in some:
                with Image.open(path) as image:
                    images.append(ImageOps.exif_transpose(image).convert("RGB"))
            yield from zip(some, self.caption(images), strict=True)


if __name__ == "__main__":
    for path, caption in ExportedCaptioner(Path(__file__).parent).captions_of(sys.argv[1:]):
        print(f"{path}\t{caption}", flush=True)  # noqa: T201  # a program's output
