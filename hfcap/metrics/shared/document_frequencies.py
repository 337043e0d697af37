"""In how many images' human captions each n-gram occurs: the weights of CIDEr-D.

Shapes: U distinct n-grams of one order.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from hfcap.errors import MissingPackageError, UserError
from hfcap.files import cache_folder, no_file, write_bytes, write_problem
from hfcap.metrics.base import ReferenceSet
from hfcap.metrics.shared.caption_files import read_references
from hfcap.metrics.shared.ngrams import ORDERS, ReferenceNgrams
from hfcap.metrics.shared.tokenizer import TOKENIZER_VERSION, TokenSequences, Vocabulary
from hfcap.progress import error_console
from hfcap.registry import did_you_mean

END_WORD = "END OF CAPTION"
"""The word that stands for the end token inside a reward; upper case and blanks keep it apart from any token."""

_FORMAT = "hfcap document frequencies 1"


@dataclass(frozen=True)
class DocumentFrequencies:
    """Document frequencies of the n-grams of orders 1 to 4.

    Attributes:
        source: where they come from ("corpus", "coco-train", "coco-val" or a file name), for the signature.
        n_images: the number of images they were counted in.
        keys: per order, (U,) uint64 n-gram keys (see _ngrams.ngram_keys), sorted.
        counts: per order, (U,) int64 images that have the n-gram.
        end_word: the end token was counted as a word of every caption.
    """

    source: str
    n_images: int
    keys: tuple[NDArray[np.uint64], ...]
    counts: tuple[NDArray[np.int64], ...]
    end_word: bool = False

    @classmethod
    def of_index(
        cls, index: Sequence[ReferenceNgrams], n_images: int, source: str = "corpus", end_word: bool = False
    ) -> DocumentFrequencies:
        """Count the images whose captions contain each n-gram, once per image however often it occurs."""
        counts = tuple(part.document_counts() for part in index)
        return cls(source, n_images, tuple(part.keys for part in index), counts, end_word)

    @classmethod
    def of_references(cls, references: ReferenceSet) -> DocumentFrequencies:
        """Count them in the reference set, or in the whole of which it is a part."""
        counted = [references.document_counts(order) for order in ORDERS]
        keys, counts = tuple(keys for keys, _ in counted), tuple(counts for _, counts in counted)
        return cls("corpus", references.n_documents, keys, counts)

    def idf(self, order: int, keys: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Return ln N - ln max(1, df) of n-grams, (G,) float64; those never counted have df = 0."""
        known, counts = self.keys[order - 1], self.counts[order - 1]
        frequency = np.ones(len(keys))
        if len(known):
            position = np.minimum(np.searchsorted(known, keys), len(known) - 1)
            frequency = np.where(known[position] == keys, counts[position], 1).astype(np.float64)
        return math.log(max(self.n_images, 1)) - np.log(frequency)

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that change when any frequency does."""
        digest = hashlib.sha256(str(self.n_images).encode())
        for keys, counts in zip(self.keys, self.counts, strict=True):
            digest.update(keys.astype("<u8").tobytes())
            digest.update(counts.astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write the frequencies to a safetensors file, atomically."""
        arrays: dict[str, NDArray[Any]] = {}
        for order, keys, counts in zip(ORDERS, self.keys, self.counts, strict=True):
            arrays |= {f"keys_{order}": keys, f"counts_{order}": counts.astype(np.int64)}
        metadata = {
            "format": _FORMAT,
            "tokenizer": TOKENIZER_VERSION,
            "source": self.source,
            "n_images": str(self.n_images),
            "end_word": str(self.end_word),
        }
        write_bytes(path, safetensors.numpy.save(arrays, metadata))

    @classmethod
    def load(cls, path: Path) -> DocumentFrequencies:
        """Read a file that `save` wrote.

        Raises:
            UserError: it is not such a file, or it was counted with another version of the tokeniser.
        """
        try:
            with safetensors.safe_open(path, framework="numpy") as handle:
                metadata = handle.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise UserError(f"{path}: not a file of document frequencies; give human captions instead")
                if metadata.get("tokenizer") != TOKENIZER_VERSION:
                    raise UserError(
                        f"{path}: counted with tokeniser {metadata.get('tokenizer')}, not {TOKENIZER_VERSION}; make it "
                        "again"
                    )
                keys = tuple(handle.get_tensor(f"keys_{order}") for order in ORDERS)
                counts = tuple(handle.get_tensor(f"counts_{order}") for order in ORDERS)
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(
                f"{path}: cannot be read as document frequencies ({error}); give the human captions instead"
            ) from None
        number = metadata.get("n_images", "")
        if not re.fullmatch(r"\d{1,15}", number, re.ASCII) or not _are_counts(keys, counts, int(number)):
            raise UserError(f"{path}: its frequencies are damaged; give the human captions instead, or make it again")
        return cls(metadata.get("source", path.name), int(number), keys, counts, metadata.get("end_word") == "True")


def _are_counts(keys: Sequence[NDArray[Any]], counts: Sequence[NDArray[Any]], n_images: int) -> bool:
    """Whether arrays of a file are sorted keys with counts of 1 to `n_images`, for every order."""
    return all(
        key.dtype == np.uint64
        and count.dtype == np.int64
        and key.ndim == 1
        and key.shape == count.shape
        and bool((key[1:] > key[:-1]).all())
        and bool(((count >= 1) & (count <= n_images)).all())
        for key, count in zip(keys, counts, strict=True)
    )


def count_document_frequencies(
    references: Mapping[str, Sequence[str]], source: str, *, end_word: bool = False
) -> DocumentFrequencies:
    """Count the n-grams of human captions (image id -> captions); `end_word` counts the end token as a word."""
    return DocumentFrequencies.of_index(indexed(ReferenceSet(references), end_word), len(references), source, end_word)


def indexed(references: ReferenceSet, end_word: bool) -> list[ReferenceNgrams]:
    """Return the n-gram indexes of all orders, with the end word after every caption if wanted."""
    if not end_word:
        return [references.ngrams(order) for order in ORDERS]
    tokens = with_end_word(references.tokens, references.vocabulary)
    return [ReferenceNgrams(tokens, references.vocabulary, order, references.image_of_caption) for order in ORDERS]


def with_end_word(
    tokens: TokenSequences, vocabulary: Vocabulary, ended: NDArray[np.bool_] | None = None
) -> TokenSequences:
    """Append the end word to every caption, or to those that `ended`, (M,) bool."""
    extended = np.ones(len(tokens), dtype=bool) if ended is None else ended
    grown = np.insert(tokens.tokens, tokens.offsets[1:][extended], vocabulary.number(END_WORD))
    return TokenSequences(grown, tokens.offsets + np.concatenate([[0], np.cumsum(extended)]))


def coco_captions(split: str) -> dict[str, list[str]]:
    """Human captions of COCO 2014 from the annotations that the package pycocoevalcap carries."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError("pycocoevalcap", f"document_frequencies 'coco-{split}'")
    archive = Path(spec.submodule_search_locations[0]) / "spice" / "spice-1.0.jar"
    try:
        with zipfile.ZipFile(archive) as jar:
            content = json.loads(jar.read(f"coco/annotations/captions_{split}2014.json"))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{archive}: no COCO 2014 captions in it ({error}); give the annotations file as document_frequencies"
        ) from None
    captions: dict[str, list[str]] = {}
    for row in content["annotations"]:
        captions.setdefault(str(row["image_id"]), []).append(row["caption"])
    return captions


def load_document_frequencies(name: str, *, end_word: bool = False) -> DocumentFrequencies | None:
    """Resolve a source of document frequencies.

    Args:
        name: "corpus" = the references that are scored against (the result is None: nothing to load);
            "coco-train", "coco-val" = the human captions of COCO 2014 (from the package pycocoevalcap, counted once
            and kept in HFCAP_CACHE or ~/.cache/hfcap); otherwise a file: human captions in any format that
            `read_references` knows, or what `DocumentFrequencies.save` wrote.
        end_word: the frequencies must count the end token as a word.

    Raises:
        UserError: the name is not known and no such file exists, or the file cannot be used.
    """
    if name == "corpus":
        return None
    if name in ("coco-train", "coco-val"):
        kept = (
            cache_folder()
            / "document_frequencies"
            / f"{name}-{TOKENIZER_VERSION}{'-end' if end_word else ''}.safetensors"
        )
        if not kept.is_file():
            captions = coco_captions(name.removeprefix("coco-"))
            counted = count_document_frequencies(captions, name, end_word=end_word)
            if (problem := write_problem(kept.parent)) is not None:
                said = f"warning: {problem}: document frequencies are counted again by each command; set HFCAP_CACHE"
                error_console.print(said, markup=False, soft_wrap=True)
                return counted
            counted.save(kept)
        return DocumentFrequencies.load(kept)
    path = Path(name)
    if path.is_dir():
        raise UserError(f"document_frequencies: {no_file(path, 'file of human captions')}")
    if not path.is_file():
        hint = did_you_mean(name, ("corpus", "coco-train", "coco-val"))
        raise UserError(f"document_frequencies {name!r}: no such file of human captions{hint}")
    if path.suffix in (".p", ".pkl", ".pickle"):
        raise UserError(f"{path}: pickles are never read; give the human captions themselves (COCO JSON)")
    if path.suffix != ".safetensors":
        return count_document_frequencies(read_references(path), path.name, end_word=end_word)
    found = DocumentFrequencies.load(path)
    if found.end_word != end_word:
        raise UserError(f"{path}: counted {'with' if found.end_word else 'without'} the end word; give the captions")
    return found
