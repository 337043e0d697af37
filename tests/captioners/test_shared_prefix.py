"""A prefix kept once per image: the same captions and scores as with a copy for every row, and where it steps aside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hfcap.captioners.base import Captioner
from hfcap.generation.shared_prefix import SharedPrefix
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.helpers import PROMPT, build, pixel_values
from tests.captioners.itt_models import itt

pytestmark = pytest.mark.speed

LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    # Two key heads for four query heads, rotated positions.
    "llama": {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_key_value_heads": 2},
    "opt": {"model_type": "opt", "hidden_size": 32, "ffn_dim": 64, "word_embed_proj_dim": 32},
    # A window in every second layer and a soft cap: not plain attention.
    "gemma2": {
        "model_type": "gemma2",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_key_value_heads": 2,
        "head_dim": 8,
    },
}
COMMON = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}


def _captioner(name: str) -> Captioner:
    config = LANGUAGE_MODELS[name]
    return build("clip_prefix", language_model_config=config if name == "gpt2" else config | COMMON)


@pytest.fixture(scope="module", params=["gpt2", "llama", "opt"])
def captioner(request: pytest.FixtureRequest) -> Captioner:
    return _captioner(request.param)


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1},
    "beams": {"num_beams": 3},
    "least length": {"num_beams": 3, "min_new_tokens": 7, "length_penalty": -1.0},
    "n-best": {"num_beams": 4, "num_return_sequences": 4},
    "no repetition": {"num_beams": 3, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "length_penalty": 2.0},
    "samples": {"num_beams": 1, "do_sample": True, "top_k": 0, "num_return_sequences": 5},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("prompt", ["", PROMPT])
def test_captions_and_scores_are_those_with_a_copy_for_every_row(
    captioner: Captioner, name: str, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = GenerateOptions(**OPTIONS[name], max_new_tokens=9)
    states = captioner.encode(pixel_values(captioner, 4)).detach()
    torch.manual_seed(5)
    monkeypatch.setattr(captioner, "generate", captioner.fast_generate)
    found = captioner.caption_states(states, options, prompt)
    monkeypatch.setattr(captioner, "generate", captioner.plain_generate)
    torch.manual_seed(5)
    expected = captioner.caption_states(states, options, prompt)
    for ours, theirs in zip(found, expected, strict=True):
        assert [one.text for one in ours] == [one.text for one in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.score == (None if other.score is None else pytest.approx(other.score, rel=1e-5))


def test_the_language_model_reads_each_prefix_once(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beams multiply the rows of the text only."""
    monkeypatch.setattr(captioner, "generate", captioner.fast_generate)
    names = ("layer_norm", "layernorm", "ln_")
    modules = captioner.model.language_model.named_modules()
    norm = next(module for name, module in modules if name.rsplit(".", 1)[-1].endswith(names) or ".ln_1" in name)
    rows = []
    handle = norm.register_forward_pre_hook(lambda _, inputs: rows.append(tuple(inputs[0].shape[:2])))
    captioner.caption_states(
        captioner.encode(pixel_values(captioner, 2)).detach(), GenerateOptions(num_beams=3, max_new_tokens=3)
    )
    handle.remove()
    assert rows == [(2, 4), (6, 1), (6, 1), (6, 1)]


def test_attention_is_that_over_prefix_and_text_together() -> None:
    torch.manual_seed(0)
    prefix_key, prefix_value = torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    query, key, value = torch.randn(6, 4, 3, 8), torch.randn(6, 2, 3, 8), torch.randn(6, 2, 3, 8)
    causal = torch.full((3, 3), -torch.inf).triu(1)[None, None]
    module: Any = torch.nn.Module()
    module.layer_idx = 7
    found, _ = SharedPrefix({7: (prefix_key, prefix_value)}, 5).attention(module, query, key, value, causal)

    keys, values = (
        torch.cat([before.repeat_interleave(3, dim=0), text], dim=2).repeat_interleave(2, dim=1)
        for before, text in ((prefix_key, key), (prefix_value, value))
    )
    mask = torch.cat([torch.zeros(1, 1, 3, 5), causal], dim=-1)
    expected = torch.nn.functional.scaled_dot_product_attention(query, keys, values, mask).transpose(1, 2)
    torch.testing.assert_close(found, expected)


def test_a_language_model_with_windows_and_soft_caps_keeps_its_own_attention() -> None:
    captioner = _captioner("gemma2")
    states = captioner.encode(pixel_values(captioner, 2)).detach()
    assert SharedPrefix.read(captioner.model.language_model, captioner.model.mapper(states)) is None
    found = captioner.caption_states(states, GenerateOptions(num_beams=2, max_new_tokens=4))
    assert len(found) == 2


def test_attention_is_the_model_s_own_again_afterwards(captioner: Captioner) -> None:
    configs = [captioner.model.language_model.config]
    before = [config._attn_implementation for config in configs]
    captioner.caption_states(captioner.encode(pixel_values(captioner, 1)).detach(), GenerateOptions(max_new_tokens=2))
    assert [config._attn_implementation for config in configs] == before == ["sdpa"]


@pytest.mark.parametrize("name", OPTIONS)
def test_blip2_captions_are_those_with_a_copy_of_queries_and_prompt_for_every_row(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = itt("blip-2")
    options = GenerateOptions(**OPTIONS[name], max_new_tokens=9)
    states = captioner.encode(pixel_values(captioner, 4)).detach()
    torch.manual_seed(5)
    monkeypatch.setattr(captioner, "generate", captioner.fast_generate)
    found = captioner.caption_states(states, options)
    monkeypatch.setattr(captioner, "generate", captioner.plain_generate)
    torch.manual_seed(5)
    expected = captioner.caption_states(states, options)
    for ours, theirs in zip(found, expected, strict=True):
        assert [one.text for one in ours] == [one.text for one in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.score == (None if other.score is None else pytest.approx(other.score, rel=1e-5))


def test_blip2_reads_queries_and_prompt_once_per_image(monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = itt("blip-2")
    monkeypatch.setattr(captioner, "generate", captioner.fast_generate)
    rows: list[int] = []
    handle = captioner.model.language_model.model.decoder.layers[0].register_forward_pre_hook(
        lambda _, inputs, named: rows.append(len(inputs[0] if inputs else named["hidden_states"])), with_kwargs=True
    )
    states = captioner.encode(pixel_values(captioner, 2)).detach()
    captioner.caption_states(states, GenerateOptions(num_beams=3, max_new_tokens=3, min_new_tokens=3))
    handle.remove()
    assert rows == [2, 6, 6, 6]


class _Copies(TorchDispatchMode):
    """Sizes of the tensors that are copied as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:  # in inference mode a product is one operation until it is taken apart
            result = func.decompose(*args, **(kwargs or {}))
        if result is NotImplemented:
            result = func(*args, **(kwargs or {}))
        if func._overloadpacket in (torch.ops.aten.clone, torch.ops.aten.copy_):
            self.sizes.append(result.numel())
        return result


def test_no_word_copies_the_prefix(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models give keys as views of a larger tensor, which a product of four dimensions would copy each time."""
    copied: list[float] = []
    attention = SharedPrefix.attention

    def watched(self: SharedPrefix, module: Any, *values: Any, **arguments: Any) -> Any:
        keys, _ = self._layers[module.layer_idx]
        with _Copies() as copies:
            found = attention(self, module, *values, **arguments)
        copied.append(max(copies.sizes, default=0) / keys.numel())
        return found

    monkeypatch.setattr(SharedPrefix, "attention", watched)
    states = captioner.encode(pixel_values(captioner, 4)).detach()
    monkeypatch.setattr(captioner, "generate", captioner.fast_generate)
    captioner.caption_states(states, GenerateOptions(num_beams=1, max_new_tokens=6))
    assert copied and max(copied) < 1
