"""hfcap compares, cheaply fine-tunes and publishes image captioners on the Hugging Face stack.

    captioner = hfcap.load_captioner("runs/mine")
    captions = captioner.caption(["cat.jpg", "dog.jpg"], num_beams=5)

Importing this package imports nothing else: each name brings what it needs when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hfcap.api.judges import judge, measure_judge
    from hfcap.api.probes import probe_objects
    from hfcap.api.publishing import push_to_hub
    from hfcap.api.runs import TrainedRun, train
    from hfcap.api.scores import compare, compare_languages, judge_metrics, score
    from hfcap.arena.ranking import Ranking
    from hfcap.captioning.captioner import ImageCaptioner, load_captioner
    from hfcap.comparison.result import Comparison, LanguageComparison
    from hfcap.data.images import UnreadableImageError
    from hfcap.errors import MissingPackageError, OptionError, StoppedError, UserError, WorkError
    from hfcap.judgments.agreement import AgreementReport
    from hfcap.publishing.push import PublishResult
    from hfcap.recipe.problems import RecipeError
    from hfcap.schema import Candidate, Caption, ScoreReport

__version__ = "0.1.0"

__all__ = [
    "AgreementReport",
    "Candidate",
    "Caption",
    "Comparison",
    "ImageCaptioner",
    "LanguageComparison",
    "MissingPackageError",
    "OptionError",
    "PublishResult",
    "Ranking",
    "RecipeError",
    "ScoreReport",
    "StoppedError",
    "TrainedRun",
    "UnreadableImageError",
    "UserError",
    "WorkError",
    "compare",
    "compare_languages",
    "judge",
    "judge_metrics",
    "load_captioner",
    "measure_judge",
    "probe_objects",
    "push_to_hub",
    "score",
    "train",
]

_HOMES = {
    "hfcap.api.judges": ("judge", "measure_judge"),
    "hfcap.api.probes": ("probe_objects",),
    "hfcap.api.publishing": ("push_to_hub",),
    "hfcap.api.runs": ("TrainedRun", "train"),
    "hfcap.api.scores": ("compare", "compare_languages", "judge_metrics", "score"),
    "hfcap.arena.ranking": ("Ranking",),
    "hfcap.captioning.captioner": ("ImageCaptioner", "load_captioner"),
    "hfcap.comparison.result": ("Comparison", "LanguageComparison"),
    "hfcap.data.images": ("UnreadableImageError",),
    "hfcap.errors": ("MissingPackageError", "OptionError", "StoppedError", "UserError", "WorkError"),
    "hfcap.judgments.agreement": ("AgreementReport",),
    "hfcap.publishing.push": ("PublishResult",),
    "hfcap.recipe.problems": ("RecipeError",),
    "hfcap.schema": ("Candidate", "Caption", "ScoreReport"),
}
"""Module -> the names above that it defines."""


if not TYPE_CHECKING:  # type checkers would take any name for one of this package

    def __getattr__(name: str) -> Any:
        """Import a name when it is first asked for."""
        for module, names in _HOMES.items():
            if name in names:
                value = globals()[name] = getattr(import_module(module), name)
                return value
        raise AttributeError(f"module 'hfcap' has no attribute {name!r}{_did_you_mean(name)}")


def _did_you_mean(name: str) -> str:
    if name.startswith("_"):  # asked for by tools, which take no advice
        return ""
    close = import_module("difflib").get_close_matches(name, __all__, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
