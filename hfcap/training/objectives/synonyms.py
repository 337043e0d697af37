"""Which words may stand for one another in training captions (`augment.synonym_replacement`)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hfcap.errors import UserError
from hfcap.files import read_json
from hfcap.metrics.meteor_parts.resources import MeteorResources
from hfcap.metrics.meteor_parts.stemmer import stem
from hfcap.metrics.shared.tokenizer import tokenize

_SMALLEST_COUNT = 5
_OVERLAP = 0.5


def synonym_table(source: str, captions: Iterable[str]) -> dict[str, list[str]]:
    """Return word -> synonyms, lower-cased.

    Args:
        source: "wordnet", or a JSON file that maps words to lists of synonyms.
        captions: the training captions.

    Raises:
        MissingPackageError: "wordnet" without the package pycocoevalcap, whose METEOR tables hold WordNet's synsets.
        UserError: the file is not such a mapping.
    """
    if source != "wordnet":
        return _from_file(Path(source))
    counts = Counter(word for caption in captions for word in set(tokenize(caption)))
    return wordnet_synonyms(MeteorResources.installed().synsets(), counts)


def wordnet_synonyms(synsets: Mapping[str, Sequence[str]], counts: Mapping[str, int]) -> dict[str, list[str]]:
    """Return the words that mean the same in most of their senses and that people use in these captions.

    WordNet lists senses, not how common they are: by one of its senses "dog" is an andiron. So two words count as
    synonyms only if more than half of all the senses they have are common to both, if both occur in several captions,
    and if they are not two forms of one word. Words in -ing are left out: in captions they are verbs, while WordNet
    lists them as nouns (hugging and kissing, the caresses). What remains is little, and still not always right.

    Args:
        synsets: word -> its WordNet synsets (senses).
        counts: word -> number of training captions that have it.
    """
    senses = {
        word: set(synsets[word])
        for word, n in counts.items()
        if n >= _SMALLEST_COUNT and word in synsets and word.isalpha() and not word.endswith("ing")
    }
    words_of = defaultdict(set)
    for word, own in senses.items():
        for sense in own:
            words_of[sense].add(word)
    table = {}
    for word, own in senses.items():
        others = {other for sense in own for other in words_of[sense]} - {word}
        same = [
            other
            for other in sorted(others)
            if len(own & senses[other]) > _OVERLAP * len(own | senses[other]) and stem(word) != stem(other)
        ]
        if same:
            table[word] = same
    return table


def _from_file(path: Path) -> dict[str, list[str]]:
    if not path.is_file():
        raise UserError(f"augment.synonyms: {path}: no such file; give a JSON file, or wordnet")
    values = read_json(path, "synonyms (augment.synonyms)")
    if not isinstance(values, dict) or not all(
        isinstance(choices, list) and all(isinstance(choice, str) and choice.strip() for choice in choices)
        for choices in values.values()
    ):
        raise UserError(f'augment.synonyms: {path}: must map words to lists of words, as {{"sofa": ["couch"]}}')
    return {word.lower(): choices for word, choices in values.items()}
