"""A release of transformers that is not there yet: what hfcap leans on has changed, and captions stay right."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.generation import utils as generation

from hfcap.captioners.base import Captioner
from hfcap.captioners.published import modeling_show_attend_tell
from hfcap.files import cache_folder
from hfcap.generation import verdicts
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.helpers import FAMILIES, build, packed, pixel_values, random_captions

pytestmark = pytest.mark.contract

COUNT = 4
SEARCHES = {"greedy": {"num_beams": 1}, "beams": {"num_beams": 3}}


@pytest.fixture(autouse=True)
def _nothing_known_yet(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HFCAP_CACHE", str(tmp_path))
    verdicts.forget_verdicts()
    verdicts._say.cache_clear()
    yield
    verdicts.forget_verdicts()
    verdicts._say.cache_clear()


def rename_private_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the private methods that `generate` calls between its steps other names, in transformers' own source."""
    old, new = "_update_model_kwargs_for_generation", "_advance_model_kwargs"
    mixin = generation.GenerationMixin
    monkeypatch.setattr(mixin, new, getattr(mixin, old), raising=False)
    for name in ("_sample", "_beam_search"):
        source = textwrap.dedent(inspect.getsource(getattr(mixin, name)))
        assert old in source
        namespace: dict[str, Any] = {}
        exec("from __future__ import annotations\n" + source.replace(old, new), vars(generation), namespace)
        monkeypatch.setattr(mixin, name, namespace[name])
    monkeypatch.delattr(mixin, old)


def change_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let caches hold their rows elsewhere: they can no longer be asked for some of them."""

    def gone(*_: Any, **__: Any) -> None:
        raise AttributeError("this cache keeps rows in pages; ask for pages")

    monkeypatch.setattr(DynamicCache, "batch_select_indices", gone)
    monkeypatch.setattr(DynamicCache, "get_seq_length", lambda cache, layer_idx=0: _length_in_pages(cache, layer_idx))


def _length_in_pages(cache: Any, layer: int) -> int:
    return 0 if layer >= len(cache.layers) else int(cache.layers[layer].get_seq_length())


CHANGES = {"renamed helpers": rename_private_helpers, "another cache": change_cache}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_captions_are_those_of_plain_generate_with_one_warning(
    family: str, change: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    captioner = build(family)
    with torch.inference_mode():
        states = captioner.encode(pixel_values(captioner, COUNT))
    expected = {name: _plain(captioner, states, options) for name, options in SEARCHES.items()}
    CHANGES[change](monkeypatch)
    capfd.readouterr()
    for _ in range(2):
        found = {
            name: [[one.text for one in of_image] for of_image in captioner.caption_states(states, _options(options))]
            for name, options in SEARCHES.items()
        }
        assert found == expected
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning:")]
    assert len(warnings) <= 1, warnings
    if warnings:
        assert "plain generate is used" in " ".join(warnings)
    elif family in ("blip", "vit_gpt2", "clip_prefix"):
        assert any(verdict for verdict in captioner.verdicts.values())


def _options(values: dict[str, Any]) -> GenerateOptions:
    return GenerateOptions(**values, max_new_tokens=8)


def _plain(captioner: Captioner, states: torch.Tensor, values: dict[str, Any]) -> list[list[str]]:
    start = torch.tensor([captioner.start_token_ids()]).expand(len(states), -1)
    sequences = captioner.plain_generate(states, start, captioner.generation_config(_options(values)))
    texts = captioner.tokenizer.batch_decode(sequences[:, start.shape[1] :], skip_special_tokens=True)
    return [[" ".join(text.split())] for text in texts]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_mask_that_no_longer_holds_gives_way(
    family: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Packed captions that see one another are noticed, and each gets a row of its own."""
    captioner = build(family)
    states = captioner.encode(pixel_values(captioner, 3)).detach()
    rows = packed(captioner, random_captions(captioner, [3, 1, 2]))
    expected = captioner.logits(states, rows)
    captioner.verdicts.clear()
    verdicts.forget_verdicts()
    for path in (cache_folder() / "probes").glob("*.json"):
        path.unlink()
    right = captioner.packed_states

    def shifted(image_states: torch.Tensor, packed_rows: Any) -> torch.Tensor:
        return right(image_states, packed_rows).roll(1, 1)

    monkeypatch.setattr(captioner, "packed_states", shifted)
    capfd.readouterr()
    found = captioner.logits(states, rows)
    inside = rows.caption_index >= 0
    torch.testing.assert_close(found[inside], expected[inside], rtol=1e-4, atol=1e-4)
    assert "one row for each caption is used" in " ".join(capfd.readouterr().err.split())


def test_a_release_that_loses_the_recurrent_state_costs_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = build("show_attend_tell")
    states = captioner.encode(pixel_values(captioner, COUNT)).detach()
    expected = {name: _plain(captioner, states, options) for name, options in SEARCHES.items()}
    monkeypatch.setattr(modeling_show_attend_tell, "CACHE_FIELDS", [])
    assert {name: _plain(captioner, states, options) for name, options in SEARCHES.items()} == expected


def test_published_code_refuses_what_it_does_not_know() -> None:
    for family in ("show_attend_tell", "clip_prefix", "cnn_transformer", "image_transformer"):
        captioner = build(family)
        pixels = pixel_values(captioner, 1)
        with pytest.raises(TypeError, match="does not know memory"):
            captioner.model(pixel_values=pixels, memory=object())


def test_a_newer_release_is_named_once(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(verdicts, "version", lambda name: "9.1.0" if name == "transformers" else "1")
    verdicts._say.cache_clear()
    build("blip")
    build("vit_gpt2")
    lines = [line for line in capfd.readouterr().err.splitlines() if "9.1.0" in line]
    assert len(lines) == 1 and "tested with transformers 5.23.0 to" in lines[0]


def test_what_agreed_once_is_not_asked_again_by_another_process(tmp_path: Any) -> None:
    asked: list[int] = []

    def check() -> bool:
        asked.append(1)
        return True

    for _ in range(2):
        assert verdicts.holds("a purpose", {"fact": 1}, check, "the plain way")
    verdicts.forget_verdicts()
    assert verdicts.holds("a purpose", {"fact": 1}, check, "the plain way")
    assert verdicts.holds("a purpose", {"fact": 2}, check, "the plain way")
    assert len(asked) == 2
    verdicts.forget_verdicts()
    for file in (tmp_path / "probes").iterdir():
        file.unlink()
    assert not verdicts.holds("a purpose", {"fact": 1}, lambda: False, "the plain way")


def test_the_plain_way_can_be_asked_for(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    captioner = build("blip")
    with torch.inference_mode():
        states = captioner.encode(pixel_values(captioner, COUNT))
    monkeypatch.setenv(verdicts.PLAIN_VARIABLE, "1")
    monkeypatch.setattr(type(captioner), "fast_generate", lambda *_, **__: pytest.fail("not the plain way"))
    capfd.readouterr()
    found = captioner.caption_states(states, _options({"num_beams": 3}))
    assert [[one.text for one in of_image] for of_image in found] == _plain(captioner, states, {"num_beams": 3})
    assert "warning" not in capfd.readouterr().err
