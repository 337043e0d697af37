"""Proof that a repository works for a stranger: a clean process, an empty cache, no hfcap, the card's own code.

Every publication of hfcap carries a few images with the captions that hfcap's own decoding gave (images.py);
`verify` captions them with the code that the card shows. Of other people's repositories it checks what can be checked
without such a record, and says so.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from huggingface_hub import get_token

from hfcap.card.example_images import RECORD, drawn_images, read_record
from hfcap.card.machine_paths import is_machine_path
from hfcap.card.requirements import packages_on_card, unmet
from hfcap.errors import UserError, WorkError
from hfcap.files import read_text, write_bytes
from hfcap.publishing import hub
from hfcap.publishing.clean_process import Job, JobResult, run_clean
from hfcap.publishing.published import PICKLES, PublishedModel, download_small
from hfcap.publishing.verify_scores import check_numbers, hub_hashes

_COMMIT = re.compile("[0-9a-f]{40}")

TOLERATED_SHARE = 0.2
"""Of the run's own images: captions that were close to another one change by rounding, since hfcap scores from features
in half precision and resizes to whole levels. Of five images one may differ.

Of 200 captions of the quick start's model none changed with other batch sizes, half-precision features or torch's plain
and AVX2 kernels; the true share is then below 1.5 % (95 %), and two of five differ by rounding in at most one of 400
verifications. A model whose weights are other ones fails by their hashes already."""


@dataclass(frozen=True, slots=True)
class CaptionPair:
    """A caption that the run recorded and the one that the published model gave; white space does not count."""

    image: str
    recorded: str
    published: str

    @property
    def agrees(self) -> bool:
        """Whether both are the same caption."""
        return self.recorded.split() == self.published.split()


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, and what was found."""

    name: str
    outcome: Literal["passed", "failed", "not checked"]
    found: str

    def __str__(self) -> str:
        """One line for the terminal."""
        return f"{self.outcome:>11}  {self.name}: {self.found}"


@dataclass(slots=True)
class Verification:
    """What verification found at one commit.

    Attributes:
        unnamed: packages that the model needs, as far as was found out, and that its card does not name.
    """

    repo_id: str
    commit: str
    checks: list[Check] = field(default_factory=list)
    comparisons: list[CaptionPair] = field(default_factory=list)
    unnamed: tuple[str, ...] = ()

    @property
    def failures(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if check.outcome == "failed"]

    def add(self, name: str, passed: bool | None, found: str) -> bool:
        """Note a check (None: it could not be made); returns whether to go on."""
        outcomes: dict[bool | None, Literal["passed", "failed", "not checked"]]
        outcomes = {True: "passed", False: "failed", None: "not checked"}
        self.checks.append(Check(name, outcomes[passed], found))
        return passed is not False

    def require(self) -> None:
        """Raise WorkError unless every check that was made passed."""
        if self.failures:
            lines = "\n".join(f"{check.name}: {check.found}" for check in self.failures)
            where = f"at {self.commit[:12]}" if _COMMIT.fullmatch(self.commit) else self.commit
            raise WorkError(f"{self.repo_id} {where}: {lines}")

    def __str__(self) -> str:
        """All checks, one a line."""
        return "\n".join([f"{self.repo_id} at commit {self.commit}", *map(str, self.checks)])


def verify(
    repo_id: str,
    revision: str | None = None,
    images: Mapping[Path, str] | None = None,
    trust_remote_code: bool = False,
    references: Path | None = None,
) -> Verification:
    """Check files, card, numbers and code of a model repository, and caption images with it as a stranger would.

    Args:
        revision: branch, tag, pull request (refs/pr/1) or commit; default: main.
        images: more image files with the captions that the run recorded; some may differ (TOLERATED_SHARE), those
            recorded in the repository may not.
        trust_remote_code: run modelling code of the repository; only needed where it brings its own.
        references: human captions of the scored split, to score the published predictions again.

    Raises:
        UserError: no such repository or revision, or it brings code and trust_remote_code is off.
        WorkError: the Hub or the network failed.
    """
    return verify_all({repo_id: revision}, images, trust_remote_code, references)[0]


def verify_all(
    revisions: Mapping[str, str | None],
    images: Mapping[Path, str] | None = None,
    trust_remote_code: bool = False,
    references: Path | None = None,
) -> list[Verification]:
    """Do what `verify` does for several repositories (id -> revision), with one clean process for all."""
    for repo_id in revisions:
        hub.check_repo_id(repo_id, "the repository to verify")
    with tempfile.TemporaryDirectory(prefix="hfcap-verify-") as temporary:
        examinations = []
        for number, (repo_id, revision) in enumerate(revisions.items()):
            model = download_small(repo_id, revision, Path(temporary) / str(number))
            report = Verification(repo_id, str(model.revision))
            examinations.append(_Examination(report, model, images or {}, references))
        _examine(examinations, trust_remote_code)
    return [examination.report for examination in examinations]


def verify_folder(
    folder: Path, repo_id: str, images: Mapping[Path, str] | None = None, references: Path | None = None
) -> Verification:
    """Make the checks of `verify` on a staging folder, before anything of it is visible; its code is trusted.

    Args:
        repo_id: where the folder will go; its card names it.
    """
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    model = PublishedModel(folder, names, str(folder.resolve()), None, False)
    examination = _Examination(Verification(repo_id, "before the push"), model, images or {}, references)
    _examine([examination], trust_remote_code=True)
    return examination.report


@dataclass(slots=True)
class _Examination:
    """One repository on its way through the checks.

    Attributes:
        images: more images with captions, beside those that the repository records.
        references: human captions of the scored split, to score the predictions again.
        recorded: images of the repository with their captions.
        same: whether the same captions must come out (no sampling).
        packages: what the card says to install, and all that the code may find; None where nothing is known of it.
    """

    report: Verification
    model: PublishedModel
    images: Mapping[Path, str]
    references: Path | None = None
    recorded: Mapping[Path, str] = field(default_factory=dict)
    same: bool = True
    packages: tuple[str, ...] | None = None


def _examine(examinations: Sequence[_Examination], trust_remote_code: bool) -> None:
    # Code of a public repository never meets the token that a private one needs, nor packages that its card leaves out.
    shares: dict[tuple[bool, tuple[str, ...] | None], dict[str, Job]] = {}
    with tempfile.TemporaryDirectory(prefix="hfcap-drawn-") as temporary:
        drawn = {Path(temporary) / name: content for name, content in drawn_images().items()}
        for path, content in drawn.items():
            write_bytes(path, content)
        for number, examination in enumerate(examinations):
            if code := _prepare(examination, trust_remote_code):
                job = Job(*code, [*(examination.recorded or drawn), *examination.images])
                share = (examination.model.needs_token, examination.packages)
                shares.setdefault(share, {})[str(number)] = job
        for (closed, packages), jobs in shares.items():
            for name, result in run_clean(jobs, get_token() if closed else None, packages).items():
                _judge(examinations[int(name)], jobs[name], result)


def _judge(examination: _Examination, job: Job, result: JobResult) -> None:
    report = examination.report
    found = result.error or "and captions images"
    if result.unnamed:
        report.unnamed = result.unnamed
        found += f"\nthe card does not name what this needs: {', '.join(result.unnamed)}"
    if report.add("loads without hfcap", result.error is None, found):
        _compare(examination, dict(zip(job.images, result.captions, strict=True)))


def _prepare(examination: _Examination, trust_remote_code: bool) -> tuple[str, str] | None:
    """Make the checks that need no model; returns the code to run, None where none should be."""
    report, model = examination.report, examination.model
    if not _check_files(report, model):
        return None
    _check_card(report, model.files)
    if (model.files / RECORD).is_file():
        hashes = {} if model.revision is None else hub_hashes(report.repo_id, model.revision)
        report.checks += [Check(*found) for found in check_numbers(model.files, hashes, examination.references)]
    try:
        has_code = model.brings_code
        if (model.files / RECORD).is_file():
            record = read_record(model.files)
            examination.recorded = {model.files / name: text for name, text in record["captions"].items()}
            examination.same = record["deterministic"]
        code = _code(report, model)
        if code is not None and not _check_packages(examination):
            return None
    except UserError as error:
        report.add("configuration", False, str(error).replace(f"{model.files}/", ""))
        return None
    if has_code and not trust_remote_code:
        raise UserError(
            f"{report.repo_id}: brings its own modelling code, which would run on this machine; read it, then give "
            "--trust-remote-code"
        )
    return code


def _check_files(report: Verification, model: PublishedModel) -> bool:
    names = model.names
    weights = [name for name in names if name.endswith(".safetensors")]
    pickles = [name for name in names if Path(name).suffix.lower() in PICKLES]
    if not {"config.json", "adapter_config.json"}.intersection(names):
        return report.add("files", False, "neither config.json nor adapter_config.json: not a model of transformers")
    if not weights:
        hint = f"; {pickles[0]} is a pickle, which can run code and is never loaded here" if pickles else ""
        return report.add("files", False, f"no weights as safetensors{hint}")
    extra = f"; besides them {len(pickles)} pickle(s), such as {pickles[0]}, which is not loaded" if pickles else ""
    return report.add("files", True, f"{len(names)} files, weights as safetensors{extra}")


def _check_card(report: Verification, repository: Path) -> None:
    if not (repository / "README.md").is_file():
        report.add("card", False, "there is none")
        return
    errors = hub.card_errors(read_text(repository / "README.md", "model card"))
    report.add("card", not errors, "; ".join(errors) or "the Hub accepts its metadata")


def _check_packages(examination: _Examination) -> bool:
    """Read what the card says to install; whether it can be tried here."""
    report, model = examination.report, examination.model
    if not (model.files / RECORD).is_file():
        return report.add(
            "packages", None, "not a repository of hfcap: tried with all that is installed here but hfcap"
        )
    named = packages_on_card(read_text(model.files / "README.md", "model card"))
    if not named:
        return report.add("packages", False, "the card does not say what to install; publish it again")
    if missing := unmet(named):
        return report.add(
            "packages",
            False,
            f"the card asks for {', '.join(missing)}, which is not here: install it, then verify again",
        )
    examination.packages = tuple(named)
    return report.add("packages", True, f"only {', '.join(named)} and what these bring along")


def _code(report: Verification, model: PublishedModel) -> tuple[str, str] | None:
    """Return the code in two parts: loading the model, captioning one image; None where it must not run.

    The code is written again from the repository's configuration: text that somebody else wrote into a card is never
    executed. A card that hfcap wrote must show it letter by letter.
    """
    if model.base is not None:
        base_id, revision = model.base
        if is_machine_path(base_id) or base_id.count("/") > 1 or base_id == "None":
            report.add("base model", False, f"{base_id!r} is nothing that others could load")
            return None
        pinned = f"revision {revision}" if revision else "no revision is pinned, so it may change"
        report.add("base model", True, f"{base_id}, {pinned}")
    card = model.files / "README.md"
    if (model.files / RECORD).is_file():
        if not card.is_file() or model.shown_code(report.repo_id) not in read_text(card, "model card"):
            report.add("code", False, "the card shows other code than hfcap writes for this model; publish it again")
            return None
        report.add("code", True, "the card shows what hfcap writes for this model")
    else:
        report.add("code", None, "not a repository of hfcap: the usual code of transformers was run, not the card's")
    return model.code()


def _compare(examination: _Examination, printed: Mapping[Path, str]) -> None:
    report, recorded, more = examination.report, examination.recorded, examination.images
    if not recorded and not more:
        shown = "; ".join(f"{path.name}: {caption!r}" for path, caption in printed.items())
        report.add("captions", None, f"no captions are recorded to compare with; of drawn images it says: {shown}")
        return
    for name, expected, tolerated in (
        ("captions", recorded, 0.0),
        ("captions of the run's images", more, TOLERATED_SHARE),
    ):
        compared = [CaptionPair(path.name, caption, printed[path]) for path, caption in expected.items()]
        report.comparisons += compared
        if compared and examination.same:
            report.add(name, *_judged(compared, tolerated))
        elif compared:
            report.add(name, None, "they are sampled, so they differ each time")


def _judged(compared: Sequence[CaptionPair], tolerated_share: float) -> tuple[bool, str]:
    different = [item for item in compared if not item.agrees]
    if len(different) <= tolerated_share * len(compared):
        return True, f"{len(compared) - len(different)} of {len(compared)} as recorded"
    lines = "".join(f"\n  {c.image}: recorded {c.recorded!r}, published {c.published!r}" for c in different[:5])
    return False, (
        f"{len(different)} of {len(compared)} captions of the published model differ from the recorded ones:{lines}\n"
        "look at prompt, processor and decoding: what was measured is not what was published"
    )
