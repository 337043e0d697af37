"""PAC-S and PAC-S++ checkpoints become CLIP folders that compute what the authors' evaluation computes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfcap.errors import UserError
from scripts.convert_pac_s import convert, main, read_checkpoint
from tests.captioners.clip_folder import SIZE, write_clip

torch = pytest.importorskip("torch")

HEADS, RANK = 2, 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_clip(tmp_path_factory.mktemp("base"), seed=1, spread=None)


def openai_shapes(layers: int = 2, width: int = 16, embedding: int = 12) -> dict[str, tuple[int, ...]]:
    """Weights of OpenAI's CLIP in its own names, of the size of the tiny base model."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (514, width),
        "positional_embedding": (24, width),
        "text_projection": (width, embedding),
        "logit_scale": (),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": ((SIZE // 8) ** 2 + 1, width),
        "visual.conv1.weight": (width, 3, 8, 8),
        "visual.proj": (width, embedding),
    }
    norms = ["ln_final", "visual.ln_pre", "visual.ln_post"]
    for tower in ("", "visual."):
        for number in range(layers):
            block = f"{tower}transformer.resblocks.{number}"
            norms += [f"{block}.ln_1", f"{block}.ln_2"]
            shapes |= {
                f"{block}.attn.in_proj_weight": (3 * width, width),
                f"{block}.attn.in_proj_bias": (3 * width,),
                f"{block}.attn.out_proj.weight": (width, width),
                f"{block}.attn.out_proj.bias": (width,),
                f"{block}.mlp.c_fc.weight": (32, width),
                f"{block}.mlp.c_fc.bias": (32,),
                f"{block}.mlp.c_proj.weight": (width, 32),
                f"{block}.mlp.c_proj.bias": (width,),
            }
    return shapes | {f"{norm}.{kind}": (width,) for norm in norms for kind in ("weight", "bias")}


def random_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def _lora(state: dict[str, Any]) -> dict[str, Any]:
    """LoRA tensors of every layer, as the authors' layers name and shape them."""
    generator = torch.Generator().manual_seed(1)
    added: dict[str, Any] = {}
    for name, weight in state.items():
        if not name.endswith("weight") or weight.ndim < 2 or "embedding" in name:
            continue
        out, into, kernel = weight.shape[0], weight.shape[1], weight.shape[-1] if weight.ndim == 4 else 1
        stem = f"{name}_" if name.endswith("in_proj_weight") else name.removesuffix("weight")
        added[f"{stem}lora_A"] = torch.randn(RANK * kernel, into * kernel, generator=generator) * 0.3
        added[f"{stem}lora_B"] = torch.randn(out * kernel, RANK * kernel, generator=generator) * 0.3
    return added


class _Plain:
    """The authors' evaluation, written from its formulas: LoRA next to attention and convolution, none in the MLPs."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def delta(self, stem: str) -> Any:
        if f"{stem}lora_A" not in self.state:
            return 0.0
        return self.state[f"{stem}lora_B"] @ self.state[f"{stem}lora_A"] / RANK

    def norm(self, x: Any, name: str) -> Any:
        return torch.nn.functional.layer_norm(
            x, (x.shape[-1],), self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        )

    def blocks(self, x: Any, tower: str, causal: bool) -> Any:
        """(L, D) through all blocks."""
        s = self.state
        length, width = x.shape
        for number in range(2):
            block = f"{tower}transformer.resblocks.{number}"
            y = self.norm(x, f"{block}.ln_1")
            weight = s[f"{block}.attn.in_proj_weight"] + self.delta(f"{block}.attn.in_proj_weight_")
            q, k, v = (y @ weight.T + s[f"{block}.attn.in_proj_bias"]).view(length, 3, HEADS, -1).permute(1, 2, 0, 3)
            scores = q @ k.transpose(1, 2) / (width // HEADS) ** 0.5
            if causal:
                scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
            y = (scores.softmax(-1) @ v).transpose(0, 1).reshape(length, width)
            weight = s[f"{block}.attn.out_proj.weight"] + self.delta(f"{block}.attn.out_proj.")
            x = x + y @ weight.T + s[f"{block}.attn.out_proj.bias"]
            y = self.norm(x, f"{block}.ln_2") @ s[f"{block}.mlp.c_fc.weight"].T + s[f"{block}.mlp.c_fc.bias"]
            y = y * torch.sigmoid(1.702 * y)
            x = x + y @ s[f"{block}.mlp.c_proj.weight"].T + s[f"{block}.mlp.c_proj.bias"]
        return x

    def text(self, ids: list[int]) -> Any:
        x = self.state["token_embedding.weight"][ids] + self.state["positional_embedding"][: len(ids)]
        return self.norm(self.blocks(x, "", True), "ln_final")[-1] @ self.state["text_projection"]

    def image(self, pixels: Any) -> Any:
        weight = self.state["visual.conv1.weight"]
        delta = self.delta("visual.conv1.")
        kernel = weight + (delta.view(weight.shape) if isinstance(delta, torch.Tensor) else 0.0)
        patches = torch.nn.functional.conv2d(pixels[None], kernel, stride=8)[0].flatten(1).T
        x = torch.cat([self.state["visual.class_embedding"][None], patches]) + self.state["visual.positional_embedding"]
        x = self.blocks(self.norm(x, "visual.ln_pre"), "visual.", False)
        return self.norm(x[0], "visual.ln_post") @ self.state["visual.proj"]


@pytest.mark.parametrize("lora", [False, True])
def test_the_folder_computes_what_the_authors_compute(base: str, lora: bool, tmp_path: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    state = random_weights(openai_shapes())
    full = state | (_lora(state) if lora else {})
    assert any("lora" in name for name in full) is lora
    torch.save({"state_dict": full, "epoch": 3}, tmp_path / "pac.pth")
    convert(tmp_path / "pac.pth", base, tmp_path / "clip")
    model: Any = CLIPModel.from_pretrained(tmp_path / "clip").eval()
    tokenizer: Any = CLIPTokenizer.from_pretrained(tmp_path / "clip")
    plain = _Plain(full)
    ids = tokenizer("a dog")["input_ids"]
    pixels = torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        text = model.get_text_features(input_ids=torch.tensor([ids]))
        image = model.get_image_features(pixel_values=pixels[None])
    text, image = (getattr(one, "pooler_output", one)[0].numpy() for one in (text, image))
    np.testing.assert_allclose(text, plain.text(ids).numpy(), atol=2e-5)
    np.testing.assert_allclose(image, plain.image(pixels).numpy(), atol=2e-5)
    if lora:
        without = _Plain(state)
        assert np.abs(text - without.text(ids).numpy()).max() > 0.01
        assert np.abs(image - without.image(pixels).numpy()).max() > 0.01


class _Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('a pickle was run')",)


def test_nothing_but_tensors_is_read(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pac.pth"
    torch.save({"state_dict": random_weights(openai_shapes()), "hook": _Evil()}, path)
    with pytest.raises(UserError, match="cannot be read as weights alone"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(_Evil(), protocol=2))
    with pytest.raises(UserError, match="cannot be read as weights alone"):
        read_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="no 'state_dict' of tensors"):
        read_checkpoint(path)
    with pytest.raises(UserError, match="cannot be read as weights alone"):
        read_checkpoint(tmp_path / "none.pth")
    torch.save(random_weights(openai_shapes(layers=3)), path)
    with pytest.raises(UserError, match=r"not a checkpoint of .*layers\.2\."):
        convert(path, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("sys.argv", ["convert_pac_s.py", str(path), base, "-o", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
