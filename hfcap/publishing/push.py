"""Publishing a run: stage, check permissions, push in one commit (commit.py), prove that it works (verify.py)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

from hfcap import registry
from hfcap.captioners import published
from hfcap.card.code_files import foreign_code
from hfcap.card.kept_sections import merge_sections, split_front_matter
from hfcap.card.run_facts import hub_base_models
from hfcap.card.usage_code import brings_code
from hfcap.data.source import load_split
from hfcap.errors import StoppedError, UserError, WorkError
from hfcap.files import parse_json, read_json, write_json
from hfcap.publishing import hub
from hfcap.publishing.commit import Push, staged_content
from hfcap.publishing.staging import StagedFile, stage_files, staged_files
from hfcap.publishing.verify import CaptionPair, verify, verify_folder
from hfcap.recipe.blocks import Recipe
from hfcap.run_directory.paths import RunDirectory
from hfcap.run_directory.recipe import recipe_of_run
from hfcap.run_directory.records import Environment, Sample, checked_record
from hfcap.scoring.score_table import shown_score

DEFAULT_BRANCH = "main"
N_RUN_IMAGES = 5
"""Sample images of the run that are captioned again after publishing."""


@dataclass(frozen=True, slots=True)
class PublishResult:
    """What `publish` did or, in a dry run, would do.

    Attributes:
        files: everything in the staging folder.
        uploaded: paths that were new or different on the Hub; empty in a dry run.
        deleted: stale weight and configuration files that were removed from the Hub.
        url: page of the repository, or of the pull request.
        commit: commit id that holds the files; None in a dry run.
        comparisons: recorded captions beside those of the published model, if it was verified.
    """

    repo_id: str
    revision: str
    folder: Path
    files: list[StagedFile]
    uploaded: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    url: str | None = None
    commit: str | None = None
    dry_run: bool = False
    comparisons: list[CaptionPair] = field(default_factory=list)

    def __str__(self) -> str:
        """Return a report for the person at the terminal."""
        total = sum(file.size for file in self.files)
        size = f"{len(self.files)} files, {_readable(total)}"
        if self.dry_run:
            target = f"{self.repo_id} ({self.revision})" if "/" in self.repo_id else "no repository given (--repo-id)"
            lines = [f"  {_readable(file.size):>10}  {file.path}" for file in self.files]
            return "\n".join([f"Dry run: {size}, to {target}; staged in {self.folder}", *lines])
        removed = f", {len(self.deleted)} stale files removed" if self.deleted else ""
        done = f"Published {len(self.uploaded)} of {size}{removed}: {self.url} (commit {self.commit})"
        if not self.uploaded and not self.deleted:
            done = f"Nothing to publish: {self.url} already holds these {size}"
        if not self.comparisons:
            return f"{done}\nNot verified; run `hfcap verify` to check that it loads and captions as recorded"
        agreeing = sum(comparison.agrees for comparison in self.comparisons)
        return f"{done}\nVerified in a clean process: {agreeing} of {len(self.comparisons)} captions as recorded"


def _readable(size: int) -> str:
    return f"{size:,} B" if size < 10_000 else f"{size / 1e6:,.2f} MB" if size < 1e9 else f"{size / 1e9:,.2f} GB"


def publish(
    run: RunDirectory,
    repo_id: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    revision: str | None = None,
    force: bool = False,
    model: Path | None = None,
    verified: bool = True,
    trust_remote_code: bool = False,
) -> PublishResult:
    """Stage a run, push it to the Hub and prove that a stranger can use it (see verify.py).

    Args:
        repo_id: namespace/name; default: the recipe's publish.repo_id.
        private: create the repository as private; default: the recipe's publish.private. An existing repository keeps
            its visibility, but is refused if it is public and private was asked for.
        create_pr: open a pull request instead of committing to the branch.
        dry_run: stage only; needs no network and no token.
        revision: branch to commit to; must exist unless it is main.
        force: replace a published model whose scores are better.
        model: folder with merged weights, if not run.model.
        verified: before and after the push, load and caption in a clean process; off only where the user says so.
        trust_remote_code: verifying may run modelling code of the run directory that is not hfcap's own.

    Raises:
        UserError: not signed in, no permission, wrong names, a secret in a file, better scores on the Hub.
        WorkError: the Hub or the network failed, or what was published does not caption as recorded.
    """
    recipe = recipe_of_run(run)
    options = recipe.publish
    repo_id = repo_id or options.repo_id
    _check_target(run, repo_id, dry_run)
    if not dry_run:
        pin_base_model(run, recipe, model)
    folder = stage_files(run, model, repo_id, trust_remote_code=trust_remote_code)
    branch = revision or DEFAULT_BRANCH
    result = PublishResult(repo_id or run.path.name, branch, folder, staged_files(folder), dry_run=True)
    if dry_run or repo_id is None:
        return result
    if verified and not trust_remote_code:
        _refuse_foreign_code(folder, recipe.captioner)
    if not create_pr:
        check_may_publish(repo_id)
    wants_private = options.private if private is None else private
    if not verified:
        return push_folder(folder, repo_id, wants_private, create_pr, branch, force)
    with tempfile.TemporaryDirectory() as temporary:
        images = _sample_images(run, recipe, Path(temporary))
        # Before, so that nothing broken becomes visible; after, because only then it is what a stranger gets.
        human = run.references(recipe.score.split)
        references = human if human.is_file() else None
        stage_again = partial(stage_files, run, model, repo_id, trust_remote_code=trust_remote_code)
        folder = _proven(folder, repo_id, images, references, stage_again)
        result = push_folder(folder, repo_id, wants_private, create_pr, branch, force)
        report = verify(repo_id, result.commit, images, True, references)
    report.require()
    return replace(result, comparisons=report.comparisons)


def _check_target(run: RunDirectory, repo_id: str | None, dry_run: bool) -> None:
    if repo_id is not None:
        hub.check_repo_id(repo_id)
    elif not dry_run:
        raise UserError(f"{run.recipe}: publish.repo_id: say where to publish: --repo-id namespace/name")


def _proven(
    folder: Path,
    repo_id: str,
    images: Mapping[Path, str],
    references: Path | None,
    stage_again: Callable[..., Path],
) -> Path:
    """Verify what is staged; a package that only this shows to be needed goes onto the card, and it is verified again.

    Raises:
        WorkError: a check failed.
    """
    report = verify_folder(folder, repo_id, images, references)
    also_needed: list[str] = []
    while set(report.unnamed) - set(also_needed):
        also_needed += report.unnamed
        folder = stage_again(also_needed=also_needed)
        report = verify_folder(folder, repo_id, images, references)
    report.require()
    return folder


def _refuse_foreign_code(folder: Path, captioner: str) -> None:
    """Raise where verifying a staged model would run code of others: whoever made the run wrote its recipe, too."""
    own = registry.load("captioners", captioner).__file__
    places = {Path(published.__path__[0]), Path(own or "").parent}
    found = foreign_code(folder, [path for place in places for path in place.glob("modeling_*.py")])
    if (folder / "adapter_config.json").is_file() and brings_code(folder):
        found.append("the code of the adapter's base model")
    if found:
        raise UserError(
            f"{folder}: verifying runs code on this machine that is not of this version of hfcap: "
            f"{', '.join(found[:5])}; read it, then give --trust-remote-code, or --skip-verification to run nothing"
        )


def pin_base_model(run: RunDirectory, recipe: Recipe, model: Path | None) -> None:
    """Note the Hub's present commit of an adapter's base model where the run does not know one (a local copy).

    The verification then shows that the adapter captions as recorded on exactly that commit.
    """
    if model is not None or not (run.model / "adapter_config.json").is_file() or not run.environment.is_file():
        return
    environment = checked_record(run.environment, "environment of the run", Environment)
    for base in hub_base_models(recipe, environment)[:1]:
        if base["revision"] is None:
            doing = f"reading the base model {base['id']}"
            commit = hub.with_retries(lambda base=base: HfApi().model_info(base["id"]).sha, doing)  # type: ignore[misc]
            known = environment.get("hub_revisions", {})
            write_json(run.environment, {**environment, "hub_revisions": {**known, base["id"]: commit}})


def _sample_images(run: RunDirectory, recipe: Recipe, folder: Path) -> dict[Path, str]:
    """Return the run's sample images as files with their recorded captions; none where the data is not here."""
    if not run.samples.is_file():
        return {}
    rows = checked_record(run.samples, "sample captions", list[Sample])
    captions = {str(row["image_id"]): str(row["caption"]) for row in rows if "image_id" in row}
    try:
        records = load_split(recipe.data, recipe.score.split, check_images=False)
    except UserError:
        return {}
    images: dict[Path, str] = {}
    for record in records:
        if record.image_id in captions and len(images) < N_RUN_IMAGES:
            path = folder / str(len(images))
            path.write_bytes(record.image.read())
            images[path] = captions[record.image_id]
    return images


def check_may_publish(repo_id: str) -> str:
    """Check sign-in and write permission before long work starts; returns the account's name.

    Raises:
        UserError: not signed in, a token that may only read, or a namespace of other people.
        WorkError: the Hub cannot be reached.
    """
    hub.check_repo_id(repo_id)
    doing = f"checking the permission to publish {repo_id}"
    if get_token() is None:
        raise UserError(f"{doing}: not signed in; run 'hf auth login' or set HF_TOKEN")
    account = hub.with_retries(lambda: HfApi().whoami(), doing)
    access = (account.get("auth") or {}).get("accessToken") or {}
    if access.get("role") == "read":
        raise UserError(f"{doing}: the token may only read; make one with the write role, then 'hf auth login'")
    namespace = repo_id.split("/")[0]
    organizations = {entry["name"]: entry.get("roleInOrg") for entry in account.get("orgs", [])}
    if namespace != account["name"] and organizations.get(namespace, "read") == "read":
        raise UserError(
            f"{doing}: {account['name']} may not write in the namespace {namespace!r}; publish as "
            f"{account['name']}/{repo_id.split('/')[1]}, or ask the organisation for the write role"
        )
    return str(account["name"])


def push_folder(
    folder: Path,
    repo_id: str,
    private: bool,
    create_pr: bool = False,
    revision: str = DEFAULT_BRANCH,
    force: bool = False,
    kind: str = "model",
) -> PublishResult:
    """Push a staging folder: create the repository if needed, commit what differs, check what the Hub then holds.

    Args:
        kind: "model", "space" or "dataset".

    Raises:
        UserError, WorkError: as `publish`.
        StoppedError: Ctrl-C after the repository was made.
    """
    if not create_pr:
        check_may_publish(repo_id)
    api = HfApi()
    is_new = open_repository(api, repo_id, private, create_pr, kind)
    left = (
        f"{repo_id} was made for this and may still be empty: run the command again, or remove it with "
        f"'hf repos delete {repo_id}{'' if kind == 'model' else f' --repo-type {kind}'}'"
    )
    try:
        return _push(api, folder, repo_id, create_pr, revision, force, kind)
    except (UserError, WorkError) as error:
        if not is_new:
            raise
        raise type(error)(f"{error}\n{left}") from error
    except KeyboardInterrupt:
        if not is_new:
            raise
        raise StoppedError(f"stopped\n{left}") from None


def _push(
    api: HfApi, folder: Path, repo_id: str, create_pr: bool, revision: str, force: bool, kind: str
) -> PublishResult:
    card = (folder / "README.md").read_bytes()
    if kind == "model":
        if not force:
            _refuse_worse_scores(api, folder, repo_id, revision)
        card = _card_with_remote_sections(api, card.decode("utf-8"), repo_id, revision)
    push = Push(api, staged_content(folder, card), repo_id, revision, create_pr, kind)
    before = push.read(revision)
    target = push.commit()
    after = push.read(target)
    if different := push.different(after):
        raise WorkError(
            f"publishing {repo_id}: the Hub holds other content than was sent in {', '.join(different[:5])}; "
            "somebody else commits at the same time, or the upload was damaged: run the command again"
        )
    url = f"{api.endpoint}/{'' if kind == 'model' else f'{kind}s/'}{repo_id}"
    if target.startswith("refs/pr/"):
        url += f"/discussions/{target.removeprefix('refs/pr/')}"
    return PublishResult(
        repo_id=repo_id,
        revision=target,
        folder=folder,
        files=staged_files(folder),
        uploaded=push.different(before),
        deleted=sorted(path for path in before.files if path not in after.files),
        url=url,
        commit=after.head,
    )


def open_repository(api: HfApi, repo_id: str, private: bool, create_pr: bool, kind: str) -> bool:
    """Make sure that the repository exists and is not more public than was asked for; returns whether it was made.

    Raises:
        UserError: it is public and must not be, or is missing where a pull request is to be opened.
        WorkError: the Hub or the network failed.
    """
    doing = f"opening {repo_id}"

    def is_private() -> bool | None:
        try:
            return bool(api.repo_info(repo_id, repo_type=kind).private)
        except RepositoryNotFoundError:
            return None

    def create() -> None:
        sdk = "gradio" if kind == "space" else None
        api.create_repo(repo_id, private=private, exist_ok=True, repo_type=kind, space_sdk=sdk)

    found = hub.with_retries(is_private, doing)
    if found is None and create_pr:
        raise UserError(f"{doing}: no such repository; publish once without --create-pr")
    is_new = found is None
    if is_new:
        hub.with_retries(create, f"creating {repo_id}")
        found = hub.with_retries(is_private, doing)
    if private and not found:
        raise UserError(f"{doing}: the repository is public, and --private was asked for; make it private on its page")
    return is_new


def _download(api: HfApi, repo_id: str, path: str, revision: str) -> bytes | None:
    """Return a small file of the repository, or None where there is none."""

    def read() -> bytes | None:
        with tempfile.TemporaryDirectory() as folder:
            try:
                return Path(api.hf_hub_download(repo_id, path, revision=revision, local_dir=folder)).read_bytes()
            except EntryNotFoundError:
                return None

    return hub.with_retries(read, f"reading {path} of {repo_id}")


def _card_with_remote_sections(api: HfApi, staged: str, repo_id: str, revision: str) -> bytes:
    """Return the staged card with sections that somebody wrote on the Hub's page since the last publication."""
    content = _download(api, repo_id, "README.md", revision)
    if content is None:
        return staged.encode()
    metadata, body = split_front_matter(staged)
    merged = merge_sections(body, split_front_matter(content.decode("utf-8", "replace"))[1])
    return f"---\n{metadata}---\n\n{merged.strip()}\n".encode()


def _refuse_worse_scores(api: HfApi, folder: Path, repo_id: str, revision: str) -> None:
    """Raise where the Hub's scores, on as many images of the same split, are better than the staged ones."""
    for path in sorted(folder.glob("scores/*.json")):
        if path.stem.count(".") > 0:
            continue  # a baseline
        content = _download(api, repo_id, f"scores/{path.name}", revision)
        if content is None:
            continue
        try:
            old = parse_json(content.decode("utf-8", "replace"), f"{repo_id}: scores/{path.name}")
        except UserError:
            continue
        if not isinstance(old, dict) or not isinstance(old.get("metrics"), dict):
            continue  # no scores of ours
        new = read_json(path, "scores")
        pair = [scores.get("metrics", {}).get("cider") for scores in (old, new)]
        same = old.get("n_images") == new.get("n_images")
        if same and all(isinstance(value, int | float) for value in pair) and pair[0] > pair[1]:
            theirs, ours = (shown_score("cider", value) for value in pair)
            raise UserError(
                f"{repo_id} at {revision} has a better CIDEr-D on {path.stem} ({theirs}) than this run ({ours}); "
                "publish elsewhere or to another --revision, or give --force"
            )
