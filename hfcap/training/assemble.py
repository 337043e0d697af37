"""Put a training together: inputs, datasets, validation and objective of a recipe."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfcap.captioners.asking.asked import prompts_of, prompts_of_captions
from hfcap.captioners.base import Captioner
from hfcap.data.augmentation import AugmentedDataset
from hfcap.data.kept.table import values_of_records
from hfcap.data.loading import CaptionDataset, ImageInputs, PixelInputs
from hfcap.data.packing import AskedPrompt
from hfcap.data.sampling.tokens import FlatTokens, flat_tokens
from hfcap.decoding import DecodingJob
from hfcap.errors import UserError
from hfcap.metrics.shared.languages import tokenizer_of
from hfcap.metrics.suite import CaptionSuite
from hfcap.progress import error_console
from hfcap.recipe.blocks import Recipe
from hfcap.recipe.dpo import DpoOptions
from hfcap.run_directory.paths import RunDirectory
from hfcap.schema import CaptionedImage
from hfcap.store.features import FeatureStore, captioner_encoder
from hfcap.store.image_cache import cache_rows, cached_pixels
from hfcap.store.image_hashes import image_hashes
from hfcap.store.row_store import RowStore
from hfcap.training.acceleration import compile_layers
from hfcap.training.build import TrainableCaptioner
from hfcap.training.loop import TrainingRun
from hfcap.training.objectives.cross_entropy import CrossEntropy
from hfcap.training.objectives.eva import begin_with_data
from hfcap.training.objectives.preference import Preference, pairs_of_records, read_pairs
from hfcap.training.objectives.reward import RewardImages
from hfcap.training.objectives.self_critical import SelfCritical
from hfcap.training.objectives.synonyms import synonym_table
from hfcap.training.optimization import encoder_is_frozen
from hfcap.training.processes import summed
from hfcap.training.sharding import WholeCaptioner, is_sharded, settle_packing
from hfcap.training.validation import Validator

_TRAINED_ON = ("train", "validation")


def tokenised(captioner: Captioner, records: Sequence[CaptionedImage], max_tokens: int) -> FlatTokens:
    """Token ids of every caption of every record; captions that will be cut at `max_tokens` have one more."""
    captions = values_of_records(records, "captions")
    return flat_tokens(captions, lambda texts: captioner.caption_token_ids(texts, max_tokens + 1))


def image_inputs(
    captioner: Captioner, records: Sequence[CaptionedImage], recipe: Recipe, stored: bool, accelerator: Any
) -> ImageInputs:
    """Pixels of the records, or with `stored` the frozen encoder's states from the feature store."""
    data, workers = recipe.data, recipe.train.loading_workers
    if stored:
        captioner.model.to(accelerator.device)
        encoder = captioner_encoder(captioner)
        store = FeatureStore(encoder, _folder(data.feature_store_folder), accelerator)
        if data.feature_store == "on" or _usable(store.rows, records, _NO_FEATURES, accelerator):
            return store.inputs(records, recipe.train.per_device_eval_batch_size, workers)
    if data.image_cache:
        if changes_images(recipe):
            raise UserError(
                "data.image_cache keeps resized images, but augment changes them before that; set it to false"
            )
        folder = _folder(data.image_cache_folder)
        plan = PixelInputs(records, captioner.image_processor).plan
        if plan is None or _usable(cache_rows(plan, folder), records, _NO_IMAGES, accelerator):
            return cached_pixels(records, captioner.image_processor, folder, accelerator, workers)
    return PixelInputs(records, captioner.image_processor)


_NO_FEATURES = (
    "no feature store",
    "the encoder runs again in each epoch; set data.feature_store_folder (or HFCAP_CACHE) to one that can be written",
)
_NO_IMAGES = (
    "no image cache",
    "images are decoded in each epoch; set data.image_cache_folder (or HFCAP_CACHE) to a place that can be written",
)


def _usable(rows: RowStore, records: Sequence[CaptionedImage], without: tuple[str, str], accelerator: Any) -> bool:
    """Whether a store has all images, or all processes may add to it; where not, training goes without and says so.

    Args:
        without: what there is not, and what follows from it.
    """
    problem = rows.write_problem()
    if problem and rows.places().keys() >= set(image_hashes(records)):
        problem = None
    if problem and accelerator.is_main_process:
        said = f"warning: {without[0]}, because {problem}: {without[1]}"
        error_console.print(said, markup=False, soft_wrap=True)
    return summed(accelerator, problem is not None)[0] == 0


def _folder(name: str | None) -> Path | None:
    return None if name is None else Path(name).expanduser()


def uses_feature_store(captioner: Captioner, recipe: Recipe) -> bool:
    """Whether the encoder is frozen, sees the same images in each epoch, and its output may be kept.

    Raises:
        UserError: data.feature_store is on, but images change or the encoder is trained.
    """
    demanded, frozen = recipe.data.feature_store == "on", encoder_is_frozen(captioner)
    changing = changes_images(recipe)
    if demanded and changing:
        raise UserError(
            "data.feature_store: on keeps one output per image, but augment changes images in each epoch; take the "
            "image changes out of augment, or set data.feature_store: auto"
        )
    if demanded and not frozen:
        raise UserError(
            "data.feature_store: on needs an encoder that is not trained, but this recipe trains it; add vision to "
            "train.freeze, or set data.feature_store: auto"
        )
    return recipe.data.may_store_features and frozen and not changing


def changes_images(recipe: Recipe) -> bool:
    """Whether the recipe's augmentation changes images, so that nothing computed from them can be kept."""
    return recipe.augment is not None and recipe.augment.changes_images


def asked_prompts(captioner: Captioner, records: Sequence[CaptionedImage]) -> list[list[AskedPrompt]] | None:
    """Return what each caption of each image answers; None where all answer the captioner's prompt.

    Raises:
        UserError: an image has no value for a field of the prompt.
    """
    prompts = prompts_of_captions(captioner, records)
    if prompts is None:
        return None
    texts = dict.fromkeys(text for of_image in prompts for text in of_image)
    asked = {text: AskedPrompt(text, tuple(captioner.start_token_ids(text))) for text in texts}
    return [[asked[text] for text in of_image] for of_image in prompts]


def train_dataset(
    captioner: Captioner,
    records: Sequence[CaptionedImage],
    inputs: ImageInputs,
    tokens: Sequence[Sequence[Sequence[int]]],
    recipe: Recipe,
) -> CaptionDataset:
    """Return the training split, with the recipe's augmentation; validation never comes from here."""
    limit, per_image, seed = recipe.data.max_caption_tokens, recipe.data.captions_per_image, recipe.train.seed
    asked = asked_prompts(captioner, records)
    if recipe.augment is None:
        return CaptionDataset(inputs, tokens, per_image, seed, limit, asked)
    captions = [record.captions for record in records]
    synonyms = {}
    if recipe.augment.synonym_replacement:
        synonyms = synonym_table(recipe.augment.synonyms, (text for group in captions for text in group))
    # Worker processes need how captions are tokenised, not the weights.
    tokeniser = copy.copy(captioner)
    tokeniser.model = None
    return AugmentedDataset(
        inputs,
        tokens,
        captions,
        per_image,
        seed,
        recipe.augment,
        functools.partial(tokeniser.caption_token_ids, max_tokens=limit + 1),
        synonyms,
        hidden_token(captioner),
        limit,
        asked,
    )


def warn_of_cuts(tokens: Mapping[str, FlatTokens], max_tokens: int) -> None:
    """Say how many captions of each split are longer than `max_tokens`."""
    for split, images in tokens.items():
        lengths = images.caption_lengths()
        if n_cut := int((lengths > max_tokens).sum()):
            error_console.print(
                f"warning: {n_cut:,} of {len(lengths):,} {split} captions are cut at {max_tokens} tokens, and teach no "
                "end; raise data.max_caption_tokens (hfcap doctor says how long they are)",
                markup=False,
                soft_wrap=True,
            )


def hidden_token(captioner: Captioner) -> int:
    """Token that word dropout shows in place of a word: the tokenizer's unknown or mask token, else padding."""
    tokenizer = captioner.tokenizer
    taken = {captioner.start_token_id, captioner.end_token_id}
    for token in (tokenizer.unk_token_id, tokenizer.mask_token_id):
        if token is not None and token not in taken:
            return int(token)
    return captioner.pad_token_id


def _caption_values(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], language: str = "en"
) -> dict[str, float]:
    # Bad endings are a list of English words.
    metrics = ("cider", "bad_endings") if tokenizer_of(language).is_english else ("cider",)
    values = CaptionSuite(metrics, language=language).compute(candidates, references).values
    return {name: 0.0 if value is None else value for name, value in values.items()}


def _objective(
    recipe: Recipe, captioner: Captioner, train_records: Sequence[CaptionedImage], accelerator: Any
) -> CrossEntropy:
    block = "dpo" if recipe.dpo else "scst" if recipe.scst else ""
    if block and isinstance(prompts_of(captioner, None, train_records), list):
        raise UserError(
            f"{block}: trains after one prompt for all images, and here each has its own (data.own_prompts, or fields "
            f"in model.prompt); leave {block} or these out"
        )
    if recipe.dpo is not None:
        return _preference(recipe.dpo, captioner, train_records, recipe.data.max_caption_tokens)
    if recipe.scst is None:
        return CrossEntropy(captioner, recipe.train.label_smoothing_factor)
    if captioner.own_shapes:
        raise UserError(
            "scst: samples captions of images of one size, and this model keeps the shape of each; set "
            "model.image_size, which makes all images one square"
        )
    image_source = RewardImages(train_records, recipe, accelerator)
    words = tokenizer_of(recipe.caption_language or "en").words
    return SelfCritical(captioner, recipe.scst, train_records, recipe.generate.max_new_tokens, image_source, words)


def _preference(
    options: DpoOptions, captioner: Captioner, records: Sequence[CaptionedImage], max_tokens: int
) -> Preference:
    known = pairs_of_records(records, read_pairs(Path(options.pairs).expanduser()), f"dpo.pairs: {options.pairs}")
    flat = [caption for _, pairs in known for pair in pairs for caption in pair]
    remaining = iter(captioner.caption_token_ids(flat, max_tokens + 1))
    tokens = [[(next(remaining), next(remaining)) for _ in pairs] for _, pairs in known]
    return Preference(captioner, options, tokens, max_tokens)


def _with_pairs(recipe: Recipe, splits: Mapping[str, Any], accelerator: Any) -> Mapping[str, Any]:
    """Leave out the training images that no pair is about."""
    if recipe.dpo is None:
        return splits
    pairs = read_pairs(Path(recipe.dpo.pairs).expanduser())
    known = pairs_of_records(splits["train"], pairs, f"dpo.pairs: {recipe.dpo.pairs}")
    if accelerator.is_main_process:
        n_pairs, n_all = sum(len(of_record) for _, of_record in known), sum(map(len, pairs.values()))
        said = f"Training on {n_pairs:,} pairs of captions of {len(known):,} images"
        others = f"; {n_all - n_pairs:,} pairs are about images of other splits" if n_pairs < n_all else ""
        error_console.print(said + others, markup=False, soft_wrap=True)
    return {**splits, "train": [record for record, _ in known]}


def training_run(
    recipe: Recipe,
    run: RunDirectory,
    trainable: TrainableCaptioner,
    splits: Mapping[str, Any],
    accelerator: Any,
    accept_changes: bool = False,
) -> TrainingRun:
    """Put together data, validation and loop for a captioner that is ready to train."""
    captioner, options = trainable.captioner, recipe.train
    splits = _with_pairs(recipe, splits, accelerator)
    stored = uses_feature_store(captioner, recipe)
    inputs = {name: image_inputs(captioner, splits[name], recipe, stored, accelerator) for name in _TRAINED_ON}
    tokens = {name: tokenised(captioner, splits[name], recipe.data.max_caption_tokens) for name in _TRAINED_ON}
    train = train_dataset(captioner, splits["train"], inputs["train"], tokens["train"], recipe)
    if accelerator.is_main_process:
        warn_of_cuts(tokens, recipe.data.max_caption_tokens)
    limit, asked = recipe.data.max_caption_tokens, asked_prompts(captioner, splits["validation"])
    validation = CaptionDataset(inputs["validation"], tokens["validation"], None, options.seed, limit, asked)
    job = DecodingJob(
        splits["validation"],
        validation.inputs,
        recipe.generate.model_copy(update={"num_return_sequences": 1}),
        options.per_device_eval_batch_size,
        options.loading_workers,
    )
    language = recipe.caption_language or "en"
    scores = functools.partial(_caption_values, language=language) if options.metric_for_best_model == "cider" else None
    # What does not fit on one device as a whole goes there in pieces, layer by layer.
    captioner.model.to("cpu" if is_sharded(accelerator) else accelerator.device)
    if trainable.peft_model is not None and recipe.lora is not None and recipe.lora.init_lora_weights == "eva":
        begin_with_data(trainable.peft_model, captioner, train, options.per_device_train_batch_size, options.seed)
    if options.torch_compile:
        compile_layers(captioner.model)
    objective = _objective(recipe, captioner, splits["train"], accelerator)
    whole = None
    if is_sharded(accelerator):
        settle_packing(captioner, train, objective)
        whole = WholeCaptioner(trainable)
        if isinstance(objective, SelfCritical):
            objective.whole = whole
    validated = captioner if whole is None else whole.trainable.captioner
    validator = Validator(validated, validation, job, scores, accelerator, options.per_device_eval_batch_size)
    validator.n_samples = options.sample_captions
    return TrainingRun(recipe, run, captioner, train, validator, accelerator, objective, accept_changes, whole)
