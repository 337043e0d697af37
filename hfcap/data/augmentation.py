"""Changes to training images and captions, the same for the same seed, epoch and image, whatever worker makes them.

Images are changed with Pillow alone, on 8-bit pixels, before the image processor: Pillow decodes them anyway, is
maintained, and needs no torchvision (albumentations is no longer maintained under a free licence; kornia works on
tensors, behind the processor's normalisation).
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from PIL import Image, ImageEnhance, ImageOps

from hfcap.data.loading import CaptionDataset, CaptionItem, ImageInputs, PixelInputs
from hfcap.data.packing import AskedPrompt
from hfcap.recipe.blocks import AugmentOptions

_OPPOSITE = {"left": "right", "right": "left"}
_DIRECTION = r"(?P<word>left|right)(?P<ending>most|wards?)?"
_BEFORE = (
    r"(?:the|his|her|its|their|our|your|my|a|far|upper|lower|top|bottom|front|back|rear|to|on|at|from|towards?|"
    r"facing|fac(?:es|ed)|look(?:s|ed|ing)?|turn(?:s|ed|ing)?|point(?:s|ed|ing)?|lean(?:s|ed|ing)?|mov(?:es|ed|ing)|"
    r"(?:left|right)(?: hand)? (?:and|or|to))"
)
_AFTER = (
    r"(?:hand|handed|sided?|side's|corner|half|edge|end|lane|arm|foot|feet|leg|paw|hoof|wing|eye|ear|cheek|shoulder|"
    r"elbow|wrist|knee|thigh|hip|page|turn|of (?:the|a|an|his|her|him|them|it|two|another)|"
    r"(?:and|or|to) (?:left|right))"
)
_CLEAR = re.compile(
    rf"(?:(?<=\s)|^)(?:(?P<before>{_BEFORE})[ -])?\b{_DIRECTION}\b(?:(?P<hyphen>[ -])(?P<after>{_AFTER})\b)?",
    re.IGNORECASE,
)
_ANY = re.compile(rf"\b{_DIRECTION}\b", re.IGNORECASE)
_NO_DIRECTION = re.compile(r"\bright (?:now|away|here|there|after|before|next)\b", re.IGNORECASE)


def swap_directions(caption: str) -> str | None:
    """Return the caption of the mirrored image: left and right exchanged, all else as it was.

    None where 'left' or 'right' may mean something else ("has left", "right behind"): that image must not be
    mirrored. English only; captions in other languages come back unchanged.
    """
    clear = {
        match.start("word") for match in _overlapping(caption) if match["ending"] or match["before"] or match["after"]
    }
    if _NO_DIRECTION.search(caption) or any(match.start("word") not in clear for match in _ANY.finditer(caption)):
        return None
    return _ANY.sub(lambda match: _in_case(match["word"]) + (match["ending"] or ""), caption)


def _overlapping(caption: str) -> list[re.Match[str]]:
    """Matches of _CLEAR at every word: that of "left and right" must not hide the one of "right"."""
    starts = [match.start() for match in re.finditer(r"\S+", caption)]
    return [match for start in starts if (match := _CLEAR.match(caption, start)) is not None]


def _in_case(word: str) -> str:
    opposite = _OPPOSITE[word.lower()]
    if word.isupper():
        return opposite.upper()
    return opposite.capitalize() if word[0].isupper() else opposite


def replace_synonyms(caption: str, synonyms: Mapping[str, Sequence[str]], share: float, chance: random.Random) -> str:
    """Replace each word that has synonyms by one of them with probability `share`; capitals and commas stay."""
    pieces = caption.split(" ")
    for number, piece in enumerate(pieces):
        core = piece.strip(".,;:!?\"'()")
        choices = synonyms.get(core.lower(), ())
        if choices and chance.random() < share:
            word = chance.choice(choices)
            pieces[number] = piece.replace(core, word.capitalize() if core[0].isupper() else word, 1)
    return " ".join(pieces)


def drop_words(tokens: Sequence[int], share: float, replacement: int, chance: random.Random) -> list[int]:
    """Return the tokens as the decoder reads them: each is hidden with probability `share`.

    Word dropout (Bowman et al. 2016, arXiv:1511.06349): what the decoder has to predict stays whole, so that it
    cannot lean on the words before and has to look at the image.
    """
    return [replacement if chance.random() < share else token for token in tokens]


class ImageAugmentation:
    """Random crop, rotation and colour changes of an image."""

    def __init__(self, options: AugmentOptions) -> None:
        self.options = options

    def __call__(self, image: Image.Image, flip: bool, chance: random.Random) -> Image.Image:
        """Return a changed RGB image, at most as large as the given one."""
        options = self.options
        if flip:
            image = ImageOps.mirror(image)
        if options.rotation:
            image = _rotated(image, chance.uniform(-options.rotation, options.rotation))
        if options.crop_scale < 1:
            image = _cropped(image, chance.uniform(options.crop_scale, 1.0), chance)
        enhancers = [
            (ImageEnhance.Brightness, options.brightness),
            (ImageEnhance.Contrast, options.contrast),
            (ImageEnhance.Color, options.saturation),
        ]
        chance.shuffle(enhancers)
        for enhancer, strength in enhancers:
            if strength:
                image = enhancer(image).enhance(chance.uniform(1 - strength, 1 + strength))
        return image


def _rotated(image: Image.Image, degrees: float) -> Image.Image:
    """Turn around the middle and cut to the largest part of the same proportions that has no empty corner."""
    width, height = image.size
    angle = math.radians(abs(degrees))
    longer = max(width / height, height / width)
    shrink = 1 / (math.cos(angle) + longer * math.sin(angle))
    turned = image.rotate(degrees, Image.Resampling.BICUBIC)
    new_width, new_height = max(1, int(width * shrink)), max(1, int(height * shrink))
    left, top = (width - new_width) // 2, (height - new_height) // 2
    return turned.crop((left, top, left + new_width, top + new_height))


def _cropped(image: Image.Image, area: float, chance: random.Random) -> Image.Image:
    """Cut out a part with this share of the area, of proportions between 3:4 and 4:3 of the image's own."""
    width, height = image.size
    stretch = math.exp(chance.uniform(-1, 1) * math.log(4 / 3) / 2)
    new_width = max(1, min(width, round(width * math.sqrt(area) * stretch)))
    new_height = max(1, min(height, round(height * math.sqrt(area) / stretch)))
    left, top = chance.randint(0, width - new_width), chance.randint(0, height - new_height)
    return image.crop((left, top, left + new_width, top + new_height))


class AugmentedDataset(CaptionDataset):
    """Training images and captions with changes drawn from (seed, epoch, image); only ever made for training.

    Args:
        inputs: pixels where images are changed; encoded states are fine where only captions are.
        tokens: of the unchanged captions, in the order of `captions`.
        captions: texts of every image.
        tokenise: turns changed captions into token ids.
        synonyms: word -> words that may stand in its place.
        hidden_token: what word dropout shows in place of a word.
    """

    def __init__(
        self,
        inputs: ImageInputs,
        tokens: Sequence[Sequence[Sequence[int]]],
        captions: Sequence[Sequence[str]],
        captions_per_image: int | None,
        seed: int,
        options: AugmentOptions,
        tokenise: Callable[[Sequence[str]], list[list[int]]],
        synonyms: Mapping[str, Sequence[str]],
        hidden_token: int,
        max_tokens: int | None = None,
        asked: Sequence[Sequence[AskedPrompt]] | None = None,
    ) -> None:
        super().__init__(inputs, tokens, captions_per_image, seed, max_tokens, asked)
        self.captions = captions
        self.options = options
        self.tokenise = tokenise
        self.synonyms = synonyms
        self.hidden_token = hidden_token
        self.change_image = ImageAugmentation(options)

    def __getitem__(self, key: tuple[int, int]) -> CaptionItem:
        """Return the changed image, its captions, and what the decoder reads of them."""
        epoch, index = key
        numbers = self.drawn(epoch, index)
        texts, flip = self.changed_captions(epoch, index, numbers)
        original = [self.captions[index][number] for number in numbers]
        tokens, ended = self.cut(
            [self.tokens[index][number] for number in numbers] if texts == original else self.tokenise(texts)
        )
        shown = None
        if self.options.word_dropout:
            chance = self._chance("words", epoch, index)
            shown = [drop_words(caption, self.options.word_dropout, self.hidden_token, chance) for caption in tokens]
        changed = self.options.changes_images
        image = self._pixels.processed(self.changed_image(epoch, index, flip)) if changed else self.inputs[index]
        return CaptionItem(image, tokens, index, shown, ended, self.asked_of(index, numbers))

    def changed_captions(self, epoch: int, index: int, numbers: Sequence[int]) -> tuple[list[str], bool]:
        """Return the captions with these numbers as they are trained on, and whether the image is mirrored."""
        texts = [self.captions[index][number] for number in numbers]
        chance = self._chance("captions", epoch, index)
        flip = chance.random() < self.options.horizontal_flip
        if flip:
            mirrored = _mirrored(texts, self.options.flip_captions)
            flip, texts = mirrored is not None, mirrored or texts
        if self.options.synonym_replacement:
            texts = [replace_synonyms(text, self.synonyms, self.options.synonym_replacement, chance) for text in texts]
        return texts, flip

    def changed_image(self, epoch: int, index: int, flip: bool) -> Image.Image:
        """Return the image as it is trained on, before the image processor."""
        return self.change_image(self._pixels.image(index), flip, self._chance("image", epoch, index))

    @property
    def _pixels(self) -> PixelInputs:
        assert isinstance(self.inputs, PixelInputs), "stored states cannot be augmented"
        return self.inputs

    def _chance(self, what: str, epoch: int, index: int) -> random.Random:
        return random.Random(f"{what}/{self.seed}/{epoch}/{index}")


def _mirrored(texts: Sequence[str], how: Literal["swap", "skip"]) -> list[str] | None:
    """Captions of the mirrored image, or None where it must stay as it is."""
    swapped = [swap_directions(text) for text in texts]
    if how == "skip" and list(texts) != swapped:
        return None
    return None if None in swapped else [text for text in swapped if text is not None]
