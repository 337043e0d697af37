"""Merging: what the merged model says is what the adapter said, also where layers share their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForImageTextToText

from hfcap.captioners.adaptation.lora import add_lora, save_adapter
from hfcap.captioners.adaptation.merging import merge_adapter, probe_logits, require_merged, require_same_logits
from hfcap.captioners.base import Captioner
from hfcap.captioners.image_text_to_text import ImageTextToText, ImageTextToTextOptions
from hfcap.captioners.loading import load_captioner, save_merged
from hfcap.errors import UserError, WorkError
from hfcap.generation.language_head import head_logits
from hfcap.recipe.blocks import GenerateOptions, LoraOptions
from tests.captioners.helpers import build, packed, packed_loss, pixel_values, random_captions
from tests.captioners.itt_models import MODELS, itt
from tests.captioners.itt_more_models import MORE_MODELS, more

pytestmark = pytest.mark.contract

OPTIONS = GenerateOptions(num_beams=2, max_new_tokens=7)
COUNTS = (2, 1, 3)
HEADS = {
    "blip": "decoder",
    "clip_prefix": "lm_head",
    "cnn_transformer": "lm_head",
    "image_transformer": "lm_head",
    "vit_gpt2": "lm_head",
}
"""Families whose head shares its weight with the word embeddings -> the head's name."""
EMBEDDINGS = {"blip": "word_embeddings"}


def ends(captioner: Captioner) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of the word embeddings and of the head."""
    weights = dict(captioner.model.named_parameters(remove_duplicate=False))
    head, embeddings = HEADS[captioner.family], EMBEDDINGS.get(captioner.family, "wte")
    ((first,), (last,)) = (
        [weight for name, weight in weights.items() if name.endswith(f".{ending}.weight")]
        for ending in (embeddings, head)
    )
    return first, last


def logits(captioner: Captioner) -> torch.Tensor:
    captioner.model.eval()
    with torch.no_grad():
        rows = packed(captioner, random_captions(captioner, COUNTS))
        return captioner.logits(captioner.encode(pixel_values(captioner, len(COUNTS))), rows)


def train(captioner: Captioner, steps: int = 3) -> None:
    """A few real updates of whatever may be trained."""
    weights = [parameter for parameter in captioner.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    captioner.model.train()
    for _ in range(steps):
        packed_loss(captioner, pixel_values(captioner, 3), random_captions(captioner, COUNTS)).backward()
        optimizer.step()
        optimizer.zero_grad()


def trained_adapter(captioner: Captioner, folder: Path, **options: Any) -> torch.Tensor:
    """Train an adapter, write base and adapter, and return the adapter's logits."""
    captioner.save(folder / "base", OPTIONS)
    before = logits(captioner)
    peft_model = add_lora(captioner, LoraOptions(r=4, lora_dropout=0.0, **options))
    train(captioner)
    write_adapter(captioner, peft_model, folder)
    found = logits(captioner)
    assert float((found - before).abs().max()) > 0.1, "the adapter does too little to be a test"
    return found


def shake(captioner: Captioner) -> None:
    """Give an adapter that was not trained something to say."""
    with torch.no_grad():
        for name, parameter in captioner.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)


def write_adapter(captioner: Captioner, peft_model: Any, folder: Path) -> None:
    save_adapter(peft_model, str(folder / "base"), folder / "adapter")
    captioner.save_processor(folder / "adapter")
    captioner.generation_config(OPTIONS).save_pretrained(folder / "adapter")


def assert_all_say(expected: torch.Tensor, folder: Path) -> Captioner:
    """The separate adapter, what hfcap loads, the merged folder, and plain transformers on it; returns the last."""
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 2e-5}
    torch.testing.assert_close(logits(load_captioner(str(folder / "adapter"), merge=False)), expected, rtol=0, atol=0)
    torch.testing.assert_close(logits(load_captioner(str(folder / "adapter"))), expected, **close)
    save_merged(str(folder / "adapter"), folder / "merged")
    again = load_captioner(str(folder / "merged"))
    torch.testing.assert_close(logits(again), expected, **close)
    again.model = AutoModelForImageTextToText.from_pretrained(folder / "merged", trust_remote_code=True)
    torch.testing.assert_close(logits(again), expected, **close)
    return again


def stored_names(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as stored:
        return set(stored.keys())


@pytest.mark.parametrize("family", HEADS)
def test_head_that_is_tied_to_the_embeddings(family: str, tmp_path: Path) -> None:
    captioner = build(family)
    embeddings, head = ends(captioner)
    assert embeddings is head
    again = assert_all_say(trained_adapter(captioner, tmp_path, target_modules=[HEADS[family]]), tmp_path)
    embeddings, head = ends(again)
    assert not torch.equal(embeddings, head)
    assert again.model.config.get_text_config(decoder=True).tie_word_embeddings is False
    assert getattr(again.model.config, "tie_word_embeddings", False) is False


@pytest.mark.parametrize("family", ["blip", "clip_prefix", "vit_gpt2"])
@pytest.mark.parametrize("what", ["head", "embeddings"])
def test_head_or_embeddings_trained_in_full(family: str, what: str, tmp_path: Path) -> None:
    chosen = HEADS[family] if what == "head" else EMBEDDINGS.get(family, "wte")
    chosen = "predictions.decoder" if chosen == "decoder" else chosen  # PEFT takes text_decoder for one, too
    assert_all_say(trained_adapter(build(family), tmp_path, modules_to_save=[chosen]), tmp_path)


@pytest.mark.parametrize("family", ["blip", "clip_prefix"])
def test_layers_that_share_nothing_stay_tied(family: str, tmp_path: Path) -> None:
    captioner = build(family)
    assert_all_say(trained_adapter(captioner, tmp_path), tmp_path)
    embeddings, head = ends(load_captioner(str(tmp_path / "adapter")))
    assert embeddings is head
    assert stored_names(tmp_path / "merged") == stored_names(tmp_path / "base")


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["word_embeddings"]},
        {"target_modules": ["word_embeddings", "predictions.decoder"]},
        {"target_modules": ["word_embeddings"], "ensure_weight_tying": True},
        {"target_modules": ["query"], "trainable_token_indices": [0, 7, 300]},
        {"target_modules": ["query"], "modules_to_save": ["word_embeddings"], "ensure_weight_tying": True},
    ],
    ids=["embeddings", "both", "tied adapters", "some tokens", "tied copies"],
)
def test_embeddings_that_somebody_else_adapted(config: dict[str, Any], tmp_path: Path) -> None:
    """hfcap's recipes adapt linear layers only, but it loads adapters of others."""
    captioner = build("blip")
    captioner.save(tmp_path / "base", OPTIONS)
    peft_model = get_peft_model(captioner.model, LoraConfig(r=4, **config))
    train(captioner)
    write_adapter(captioner, peft_model, tmp_path)
    assert_all_say(logits(captioner), tmp_path)


@pytest.mark.parametrize("name", [*MODELS, *MORE_MODELS])
def test_head_of_every_kind_of_vision_language_model(name: str) -> None:
    """Tied or not, whatever the kind's configuration says of it."""
    captioner = more(name) if name in MORE_MODELS else itt(name)
    head = captioner.model.get_output_embeddings()
    (ending,) = {path.rsplit(".", 1)[-1] for path, module in captioner.model.named_modules() if module is head}
    peft_model = add_lora(captioner, LoraOptions(r=4, target_modules=[ending]))
    shake(captioner)
    expected = probe_logits(captioner)
    embeddings = captioner.model.get_input_embeddings().weight.detach().clone()
    merge_adapter(captioner, peft_model)
    torch.testing.assert_close(probe_logits(captioner), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(captioner.model.get_input_embeddings().weight, embeddings)


def test_an_ending_of_layers_and_of_blocks_adapts_the_layers(tmp_path: Path) -> None:
    """GIT's head is called output, and so are blocks of its encoder."""
    captioner = build("image_text_to_text")
    expected = trained_adapter(captioner, tmp_path, target_modules=["output"])
    adapted = {name.split(".lora_A")[0] for name, _ in captioner.model.named_parameters() if ".lora_A" in name}
    assert adapted == {"output"}
    assert_all_say(expected, tmp_path)


def test_modules_trained_in_full_are_checked_by_name() -> None:
    captioner = build("blip")
    with pytest.raises(UserError, match=r"lora\.modules_to_save: 'nothere' matches no module.*choose from \w+ \("):
        add_lora(captioner, LoraOptions(modules_to_save=["nothere"]))
    with pytest.raises(UserError, match=r"lora\.modules_to_save: decoder means text_decoder"):
        add_lora(captioner, LoraOptions(modules_to_save=["decoder"]))


# ---- what cannot be merged -----------------------------------------------------------------------------------------


def test_a_model_that_computes_otherwise_without_ties_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """T5 scales its states where the head is tied."""
    captioner = build("vit_gpt2")
    probe_logits(captioner)  # packing is compared with the model's forward before its head is exchanged here

    def scaled(decoder: Any, states: torch.Tensor) -> torch.Tensor:
        return head_logits(decoder, states) * (0.5 if decoder.config.tie_word_embeddings else 1.0)

    monkeypatch.setattr("hfcap.captioners.vit_gpt2.head_logits", scaled)
    with pytest.raises(UserError, match=r"decoder\.lm_head\.weight shares its weight.*lora\.target_modules"):
        add_lora(captioner, LoraOptions(target_modules=["c_attn", "lm_head"]))
    assert captioner.model.decoder.config.tie_word_embeddings is True
    assert not any("lora" in name for name, _ in captioner.model.named_parameters())
    with pytest.raises(UserError, match=r"decoder\.transformer\.wte\.weight shares its weight"):
        add_lora(captioner, LoraOptions(modules_to_save=["wte"]))
    add_lora(captioner, LoraOptions())


@pytest.mark.parametrize("key", ["target_modules", "modules_to_save"])
def test_weights_that_the_code_itself_shares_are_refused(key: str) -> None:
    captioner = build("vit_gpt2")
    first, second = captioner.model.decoder.transformer.h
    second.mlp.c_fc.weight = first.mlp.c_fc.weight
    with pytest.raises(UserError, match=r"h\.0\.mlp\.c_fc\.weight is the same weight as \S+h\.1\.mlp\.c_fc\.weight"):
        add_lora(captioner, LoraOptions(**{key: ["c_fc"]}))
    add_lora(captioner, LoraOptions(target_modules=["c_attn"]))


def test_a_difference_after_merging_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained_adapter(build("blip"), tmp_path)

    def nothing_but_the_base(self: Any, *_: Any, **__: Any) -> Any:
        return self.unload()

    monkeypatch.setattr("peft.tuners.tuners_utils.BaseTuner.merge_and_unload", nothing_but_the_base)
    with pytest.raises(WorkError, match=r"the merged model predicts otherwise than the adapter: logits differ by"):
        load_captioner(str(tmp_path / "adapter"))
    load_captioner(str(tmp_path / "adapter"), merge=False)


def test_a_saved_folder_that_says_otherwise_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the older tied kind: written without the head that was adapted."""
    trained_adapter(build("vit_gpt2"), tmp_path, target_modules=["lm_head"])
    plain = Captioner.save

    def tied_again(self: Captioner, folder: Path, options: GenerateOptions) -> None:
        self.model.decoder.lm_head.weight = self.model.decoder.transformer.wte.weight
        self.model.decoder.config.tie_word_embeddings = True
        plain(self, folder, options)

    monkeypatch.setattr(Captioner, "save", tied_again)
    with pytest.raises(WorkError, match="the saved model predicts otherwise than the merged one"):
        save_merged(str(tmp_path / "adapter"), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_tolerance_follows_the_number_type(dtype: torch.dtype) -> None:
    model = torch.nn.Linear(2, 2).to(dtype)
    expected = torch.tensor([[-3.0, 8.0], [1.0, 2.0]])
    unit = 8.0 * torch.finfo(dtype).eps
    require_same_logits(expected, expected + 3 * unit, model, "one", "other")
    with pytest.raises(WorkError, match=r"^other predicts what are no numbers .*image_std"):
        require_same_logits(expected * torch.nan, expected, model, "one", "other")
    too_far = 2000 if dtype == torch.float32 else 20
    for found in (expected + too_far * unit, expected * torch.nan):
        with pytest.raises(WorkError, match=f"one predicts otherwise than other.*rounding of {str(dtype)[6:]}"):
            require_same_logits(expected, found, model, "one", "other")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_in_half_precision_are_merged(dtype: Any, tmp_path: Path) -> None:
    build("image_text_to_text").save(tmp_path, OPTIONS)
    captioner = ImageTextToText.build(ImageTextToTextOptions(pretrained=str(tmp_path), dtype=dtype), ())
    peft_model = add_lora(captioner, LoraOptions(r=4))
    shake(captioner)
    expected = probe_logits(captioner)
    merge_adapter(captioner, peft_model)
    assert float((probe_logits(captioner) - expected).abs().max()) > 0  # it is rounded
    assert captioner.model.dtype == getattr(torch, dtype)


def test_an_adapter_on_quantised_weights_stays_separate(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = {"model_type": "git", "vision_config": {**shape, "image_size": 32, "patch_size": 16}, **shape}
    build("image_text_to_text", from_config=config).save(tmp_path / "full", OPTIONS)
    options = ImageTextToTextOptions(pretrained=str(tmp_path / "full"), quantization="4bit")
    captioner = ImageTextToText.build(options, ())
    captioner.save(tmp_path / "base", OPTIONS)
    peft_model = add_lora(captioner, LoraOptions(r=4))
    shake(captioner)
    write_adapter(captioner, peft_model, tmp_path)
    expected = logits(captioner)
    loaded = load_captioner(str(tmp_path / "adapter"))
    assert any("lora_A" in name for name, _ in loaded.model.named_parameters())
    # float32 where nothing is quantised, bfloat16 inside quantised layers
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=0.05 * float(expected.abs().max()))
    for asks in (lambda name: save_merged(name, tmp_path / "merged"), lambda name: require_merged(loaded, name)):
        with pytest.raises(UserError, match=r"adapter: .*stored in few bits.*base_model_name_or_path"):
            asks(str(tmp_path / "adapter"))


def test_a_text_model_with_few_positions_is_merged() -> None:
    shape = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 3}
    captioner = build("vit_gpt2", decoder_config=shape)
    peft_model = add_lora(captioner, LoraOptions(r=2))
    shake(captioner)
    assert len(probe_logits(captioner)) == 3
    merge_adapter(captioner, peft_model)


def test_an_adapter_that_changes_no_layers_is_refused(tmp_path: Path) -> None:
    """Prompt tuning would be left out of the captions without a word."""
    captioner = build("clip_prefix")
    captioner.save(tmp_path / "base", OPTIONS)
    options = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, num_layers=2, token_dim=32)
    write_adapter(captioner, get_peft_model(captioner.model, options), tmp_path)
    with pytest.raises(UserError, match="PROMPT_TUNING"):
        load_captioner(str(tmp_path / "adapter"))
