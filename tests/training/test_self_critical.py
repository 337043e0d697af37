"""Self-critical training against REINFORCE written out caption by caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hfcap.captioners.base import Captioner
from hfcap.data.images import decode_image
from hfcap.data.loading import CaptionBatch, CaptionItem, Collate, PixelInputs
from hfcap.data.source import load_split
from hfcap.metrics.shared.images import DecodedImages
from hfcap.recipe.blocks import GenerateOptions
from hfcap.recipe.loading import RecipeError, load_recipe, recipe_from_mapping
from hfcap.recipe.scst import ScstOptions
from hfcap.schema import IGNORED_LABEL, CaptionedImage, PackedCaptions
from hfcap.training.build import build_captioner
from hfcap.training.objectives.self_critical import SampledCaptions, SelfCritical, leave_one_out_means
from tests.rounding import assert_equal_to_rounding
from tests.training.harness import FAMILIES, recipe_values


def tiny_batch(
    captioner_name: str, folder: Path, prompt: str = ""
) -> tuple[Captioner, CaptionBatch, Sequence[CaptionedImage]]:
    """A tiny captioner without dropout and a batch of three images in an order that is not the dataset's."""
    values = recipe_values(captioner_name, folder, dropout=0.0)
    values["model"] |= {"prompt": prompt} if prompt else {}
    recipe = recipe_from_mapping(values, "test")
    records = load_split(recipe.data, "train")
    captioner = build_captioner(recipe, records)
    inputs = PixelInputs(records, captioner.image_processor)
    collate = Collate(captioner.start_token_ids(), captioner.end_token_id, captioner.pad_token_id, inputs)
    batch = collate([CaptionItem(inputs[number], [[5, 6, 7], [8]], number) for number in (4, 0, 2)])
    return captioner, batch.to(captioner.device), records


class Recorder(SelfCritical):
    """Remembers what was sampled and hands out rewards that the test chose."""

    def __init__(self, *arguments: Any, rewards: np.ndarray[Any, Any] | None = None, greedy: Any = None) -> None:
        super().__init__(*arguments)
        self.seen: list[SampledCaptions] = []
        if rewards is not None:
            scores = iter([rewards] if greedy is None else [rewards, greedy])
            self.reward.scores = lambda *_: {"reward": next(scores)}  # type: ignore[method-assign]

    def _generated(self, states: torch.Tensor, options: Any) -> SampledCaptions:
        samples = super()._generated(states, options)
        self.seen.append(samples)
        return samples


def log_probability(
    captioner: Captioner, states: torch.Tensor, tokens: list[int], ended: bool, temperature: float
) -> torch.Tensor:
    """One caption in one row, read off token by token."""
    start = captioner.start_token_ids()
    inputs = torch.tensor([[*start, *tokens]])
    positions = torch.arange(inputs.shape[1])[None]
    row = PackedCaptions(inputs, positions, torch.zeros_like(inputs), torch.full_like(inputs, IGNORED_LABEL))
    table = (captioner.logits(states, row)[0] / temperature).log_softmax(-1)
    chosen = [*tokens, captioner.end_token_id] if ended else tokens
    return torch.stack([table[len(start) - 1 + place, token] for place, token in enumerate(chosen)]).sum()


def gradients(captioner: Captioner) -> dict[str, torch.Tensor]:
    found = {
        name: weight.grad.clone() for name, weight in captioner.model.named_parameters() if weight.grad is not None
    }
    captioner.model.zero_grad()
    return found


@pytest.mark.parametrize("baseline", ["leave_one_out", "greedy"])
@pytest.mark.parametrize("captioner_name", FAMILIES)
def test_gradient_is_that_of_reinforce(captioner_name: str, baseline: Any, tmp_path: Path) -> None:
    captioner, batch, records = tiny_batch(captioner_name, tmp_path)
    rewards = np.random.default_rng(0).random((3, 4))
    greedy = np.array([[0.3], [0.9], [0.5]]) if baseline == "greedy" else None
    options = ScstOptions(num_samples=4, baseline=baseline, temperature=0.7 if baseline == "greedy" else 1.0)
    objective = Recorder(captioner, options, records, 7, rewards=rewards, greedy=greedy)
    torch.manual_seed(1)
    loss = objective.train()(batch) / objective.units(batch)
    loss.backward()
    ours = gradients(captioner)
    samples = objective.seen[0]
    assert len({tuple(tokens) for group in samples.tokens for tokens in group}) > 6
    expected, size = torch.zeros(()), 0.0
    states = captioner.encode(batch.images)
    for image in range(3):
        for number in range(4):
            others = [rewards[image, other] for other in range(4) if other != number]
            compared = sum(others) / 3 if greedy is None else greedy[image, 0]
            log_p = log_probability(
                captioner,
                states[image : image + 1],
                samples.tokens[image][number],
                bool(samples.ended[image, number]),
                options.temperature,
            )
            term = -(rewards[image, number] - compared) * log_p / 12
            expected, size = expected + term, size + abs(float(term.detach()))
    expected.backward()
    theirs = gradients(captioner)
    # Advantages of both signs nearly cancel out: rounding is that of the terms, not of their sum.
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=0, abs=1e-5 * size)
    assert_equal_to_rounding(ours, theirs)


def test_leave_one_out_by_hand() -> None:
    means = leave_one_out_means(np.array([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]]))
    assert means.tolist() == [[4.0, 3.5, 1.5], [1.5, 1.5, 0.0]]


def test_the_reward_is_made_of_what_the_objective_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner, _, records = tiny_batch("vit_gpt2", tmp_path)
    made: list[Any] = []
    monkeypatch.setattr("hfcap.training.objectives.self_critical.CaptionReward", lambda *given: made.append(given))
    options, images, words = ScstOptions(), DecodedImages({}, decode_image), str.upper
    SelfCritical(captioner, options, records, 3, images, words)
    assert made == [(records, options, images, "cpu", words)]


def test_captions_are_cut_at_the_end_token_and_belong_to_their_image(tmp_path: Path) -> None:
    captioner, _, records = tiny_batch("vit_gpt2", tmp_path)
    objective = Recorder(captioner, ScstOptions(num_samples=2), records, 4)
    end, pad, start = captioner.end_token_id, captioner.pad_token_id, captioner.start_token_id
    rows = [[start, 9, 8, end, pad], [start, 9, 8, 7, 6], [start, end, pad, pad, pad], [start, 5, end, pad, pad]]
    output = type("Output", (), {"sequences": torch.tensor(rows)})
    captioner.generate = lambda *_: output  # type: ignore[method-assign]
    samples = objective._generated(torch.zeros(2, 1, 1), objective.sampling)
    assert samples.tokens == [[[9, 8], [9, 8, 7, 6]], [[], [5]]]
    assert samples.ended.tolist() == [[True, False], [True, True]]
    assert samples.texts[1][0] == ""


def test_special_tokens_inside_a_caption_are_no_words_of_it(tmp_path: Path) -> None:
    captioner, _, records = tiny_batch("blip", tmp_path)
    objective = Recorder(captioner, ScstOptions(), records, 4)
    end, start = captioner.end_token_id, captioner.start_token_ids()
    special = next(token for token in captioner.tokenizer.all_special_ids if token != end)
    word = next(token for token in range(1000) if token not in captioner.tokenizer.all_special_ids)
    output = type("Output", (), {"sequences": torch.tensor([[*start, word, special, word, end]])})
    captioner.generate = lambda *_: output  # type: ignore[method-assign]
    samples = objective._generated(torch.zeros(1, 1, 1), objective.greedy)
    assert samples.tokens == [[[word, special, word]]]
    assert samples.texts == [[captioner.tokenizer.decode([word, word])]]


@pytest.mark.parametrize("baseline", ["leave_one_out", "greedy"])
def test_rewards_are_asked_for_the_image_s_own_captions_with_their_ends(baseline: Any, tmp_path: Path) -> None:
    """Though the batch is in another order than the dataset."""
    captioner, batch, records = tiny_batch("vit_gpt2", tmp_path)
    objective = Recorder(captioner, ScstOptions(num_samples=2, baseline=baseline), records, 4)
    drawn = SampledCaptions([[[5], [6]]] * 3, [["a", "b"], ["c", "d"], ["e", "f"]], np.eye(3, 2, dtype=bool))
    likeliest = SampledCaptions([[[7]]] * 3, [["g"], ["h"], ["i"]], np.array([[True], [False], [True]]))
    asked: list[tuple[Any, ...]] = []

    def scores(*given: Any) -> dict[str, np.ndarray[Any, Any]]:
        asked.append(given)
        return {"reward": np.zeros(given[2].shape)}

    objective.reward.scores = scores  # type: ignore[method-assign, assignment]
    objective._generated = lambda _, options: drawn if options is objective.sampling else likeliest  # type: ignore
    objective.train()(batch)
    ids = [records[number].image_id for number in (4, 0, 2)]
    expected = [drawn] if baseline == "leave_one_out" else [drawn, likeliest]
    assert [(given[0], given[1], given[2].tolist()) for given in asked] == [
        (ids, samples.texts, samples.ended.tolist()) for samples in expected
    ]


@pytest.mark.parametrize(("captioner_name", "prompt"), [("vit_gpt2", ""), ("clip_prefix", "a photo of")])
def test_the_greedy_baseline_takes_the_likeliest_word_each_time(
    captioner_name: str, prompt: str, tmp_path: Path
) -> None:
    captioner, batch, records = tiny_batch(captioner_name, tmp_path, prompt)
    assert len(captioner.start_token_ids()) > 1 or not prompt
    objective = Recorder(captioner, ScstOptions(num_samples=4, temperature=0.7), records, 7)
    shared: dict[str, Any] = {"num_beams": 1, "max_new_tokens": 7}
    assert objective.greedy == GenerateOptions(**shared)
    drawn = {"do_sample": True, "top_k": 0, "temperature": 0.7, "num_return_sequences": 4}
    assert objective.sampling == GenerateOptions(**shared, **drawn)
    captioner.model.eval()
    with torch.no_grad():
        states = captioner.encode(batch.images)
        found = objective._generated(states, objective.greedy)
        for image in range(3):
            words: list[int] = []
            while len(words) < 7 and captioner.end_token_id not in words:
                inputs = torch.tensor([[*captioner.start_token_ids(), *words]])
                row = PackedCaptions(inputs, torch.arange(inputs.shape[1])[None], torch.zeros_like(inputs), inputs)
                words.append(int(captioner.logits(states[image : image + 1], row)[0, -1].argmax()))
            ended = captioner.end_token_id in words
            assert found.tokens[image] == [words[:-1] if ended else words] and found.ended[image, 0] == ended


def test_validation_is_the_cross_entropy_of_human_captions(tmp_path: Path) -> None:
    captioner, batch, records = tiny_batch("vit_gpt2", tmp_path)
    objective = Recorder(captioner, ScstOptions(), records, 3).eval()
    with torch.no_grad():
        states = captioner.encode(batch.images)
        expected = -sum(
            float(log_probability(captioner, states[image : image + 1], tokens, True, 1.0))
            for image in range(3)
            for tokens in ([5, 6, 7], [8])
        )
        assert float(objective(batch)) == pytest.approx(expected, rel=1e-5)
    assert objective.seen == [] and objective.sums == {}
    assert objective.start is None, "without a divergence nobody needs a copy"


def test_samples_come_from_the_whole_distribution(tmp_path: Path) -> None:
    """The library's default keeps the 50 likeliest tokens; then the gradient would not be that of the reward."""
    captioner, batch, records = tiny_batch("clip_prefix", tmp_path)
    objective = Recorder(captioner, ScstOptions(num_samples=150), records, 1)
    objective.train()(batch)
    firsts = {caption[0] for caption in objective.seen[0].tokens[0] if caption}
    assert len(firsts) > 60
    cold = Recorder(captioner, ScstOptions(num_samples=150, temperature=0.01), records, 1)
    cold.train()(batch)
    assert len({caption[0] for caption in cold.seen[0].tokens[0] if caption}) < 15


def test_sampling_leaves_modes_as_they_were_and_has_no_dropout(tmp_path: Path) -> None:
    captioner, batch, records = tiny_batch("vit_gpt2", tmp_path)
    objective = Recorder(captioner, ScstOptions(), records, 3).train()
    frozen = captioner.part_modules()["vision"][0].eval()
    modes: list[bool] = []
    generate = captioner.generate
    captioner.generate = lambda *a: modes.extend(m.training for m in captioner.model.modules()) or generate(*a)  # type: ignore
    objective(batch)
    assert not any(modes)
    assert not any(module.training for module in frozen.modules())
    others = [module for module in captioner.model.modules() if module not in set(frozen.modules())]
    assert all(module.training for module in others)


@pytest.mark.parametrize("dropout", [False, True])
def test_dropout_acts_on_the_update_only_where_asked(dropout: bool, tmp_path: Path) -> None:
    captioner, batch, records = tiny_batch("vit_gpt2", tmp_path)
    objective = Recorder(captioner, ScstOptions(dropout=dropout), records, 3).train()
    modes: list[bool] = []
    logits = captioner.logits
    captioner.logits = lambda *a: modes.extend(m.training for m in captioner.model.decoder.modules()) or logits(*a)  # type: ignore
    objective(batch)
    assert set(modes) == {dropout}
    assert captioner.model.decoder.training


def test_checkpointed_layers_need_the_training_mode(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"scst: without dropout .*train\.gradient_checkpointing: false"):
        load_recipe(
            Path("recipes/clip_prefix/flickr8k_scst.yaml"), ["train.gradient_checkpointing=true", "scst.dropout=false"]
        )


def test_a_dropout_that_no_update_would_have_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"scst: has no dropout in its updates.*leave train\.dropout out"):
        load_recipe(Path("recipes/clip_prefix/flickr8k_scst.yaml"), ["train.dropout={text: 0.2}", "scst.dropout=false"])


def test_gradients_reach_every_weight_under_autocast(tmp_path: Path) -> None:
    """Autocast keeps its casts of the weights; those made while sampling know no gradients."""
    captioner, batch, records = tiny_batch("clip_prefix", tmp_path)
    rewards = np.random.default_rng(0).random((3, 5))
    objective = Recorder(captioner, ScstOptions(), records, 6, rewards=rewards).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        objective(batch).backward()
    projections = [
        weight.grad for name, weight in captioner.model.language_model.named_parameters() if "c_fc.weight" in name
    ]
    assert projections and all(gradient is not None and float(gradient.abs().max()) > 0 for gradient in projections)


@pytest.mark.parametrize(("temperature", "encoded"), [(1.0, False), (0.5, True)])
def test_divergence_is_nothing_at_the_start_and_kullback_leibler_later(
    temperature: float, encoded: bool, tmp_path: Path
) -> None:
    captioner, batch, records = tiny_batch("vit_gpt2", tmp_path)
    options = ScstOptions(kl_weight=2.0, temperature=temperature)
    objective = Recorder(captioner, options, records, 5, rewards=np.ones((3, 5)))
    with torch.no_grad():  # a frozen encoder, whose states are kept, does not move
        states = captioner.encode(batch.images)
    batch = replace(batch, images=states, encoded=True) if encoded else batch
    assert abs(float(objective.train()(batch).detach())) < 1e-4  # equal rewards: no advantage, and nothing moved yet
    before = captioner.model.state_dict()
    start = {name: tensor.clone() for name, tensor in before.items()}
    with torch.no_grad():
        for weight in captioner.model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())) * 0.1)
    objective.reward.scores = lambda *_: {"reward": np.ones((3, 5))}  # type: ignore[method-assign]
    loss = float(objective(batch).detach())
    samples = objective.seen[-1]
    moved = {name: tensor.clone() for name, tensor in captioner.model.state_dict().items()}
    tables = []
    for weights in (moved, start):
        captioner.model.load_state_dict(weights)
        captioner.model.eval()
        with torch.no_grad():
            states = batch.images if encoded else captioner.encode(batch.images)
            tables.append(
                [_tables(captioner, states[image : image + 1], samples, image, temperature) for image in range(3)]
            )
    expected = sum(
        float((ours.exp() * (ours - theirs)).sum())
        for image in range(3)
        for ours, theirs in zip(tables[0][image], tables[1][image], strict=True)
    )
    assert expected > 0.1
    assert loss == pytest.approx(2.0 * expected, rel=1e-3)
    assert objective.sums["divergence"] == pytest.approx(expected, rel=1e-3)


def _tables(
    captioner: Captioner, states: torch.Tensor, samples: SampledCaptions, image: int, temperature: float
) -> list[torch.Tensor]:
    """Log-probabilities of the whole vocabulary at each choice of each caption."""
    found = []
    for number, tokens in enumerate(samples.tokens[image]):
        n_choices = len(tokens) + int(samples.ended[image, number])
        inputs = torch.tensor([[*captioner.start_token_ids(), *tokens]])
        row = PackedCaptions(inputs, torch.arange(inputs.shape[1])[None], torch.zeros_like(inputs), inputs)
        found.append((captioner.logits(states, row)[0, :n_choices] / temperature).log_softmax(-1))
    return found


def test_stored_states_are_not_encoded_again(tmp_path: Path) -> None:
    captioner, batch, records = tiny_batch("vit_gpt2", tmp_path)
    objective = Recorder(captioner, ScstOptions(num_samples=2), records, 3, rewards=np.ones((3, 2))).train()
    with torch.no_grad():
        states = captioner.encode(batch.images)
    captioner.encode = lambda *_: pytest.fail("encoded again")  # type: ignore[method-assign]
    loss = objective(replace(batch, images=states, encoded=True))
    assert float(loss.detach()) == 0.0 and loss.dtype == torch.float32  # equal rewards: no advantage
