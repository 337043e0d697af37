"""Publishing a run from Python."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hfcap.api.runs import recipe_of
from hfcap.progress import reported
from hfcap.run_directory.paths import RunDirectory, alone, remove_unfinished

if TYPE_CHECKING:
    from hfcap.publishing.push import PublishResult


def push_to_hub(
    run: str | os.PathLike[str],
    repo_id: str | None = None,
    *,
    private: bool | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    merged: bool = False,
    dry_run: bool = False,
    force: bool = False,
    verify: bool = True,
    trust_remote_code: bool = False,
    progress: bool = False,
) -> PublishResult:
    """Stage a run, push it to the Hub in one commit, and prove that a stranger can use it, as `hfcap publish` does.

    Args:
        run: run directory, what `hfcap.train` returned, or the recipe of a finished run.
        repo_id: namespace/name; default: the recipe's publish.repo_id.
        private: create the repository as private; default: the recipe's publish.private.
        create_pr: open a pull request instead of committing to the branch.
        revision: branch to commit to; default: main.
        merged: of a LoRA run, publish merged weights instead of the adapter; default: the recipe's publish.merged.
        dry_run: only stage the files (into the run's folder `publish`); needs no network and no token.
        force: replace a published model whose scores are better.
        verify: before and after the push, load and caption in a clean process.
        trust_remote_code: verifying may run modelling code of the run that is not hfcap's own.
        progress: show messages on the terminal; otherwise they go to the logger "hfcap".

    Raises:
        UserError: not signed in, no permission, wrong names, a secret in a file, better scores on the Hub.
        WorkError: the Hub or the network failed, or what was published does not caption as recorded.
    """
    from hfcap.captioners.quiet import quiet_libraries
    from hfcap.publishing.push import publish
    from hfcap.run.stages import merged_model

    recipe, place = recipe_of(run, None, trust_remote_code)
    directory = RunDirectory.existing(place.path)
    with reported(progress), quiet_libraries(hub_bars=progress), alone(directory):
        remove_unfinished(directory)
        return publish(
            directory,
            repo_id=repo_id,
            private=private,
            create_pr=create_pr,
            dry_run=dry_run,
            revision=revision,
            force=force,
            model=merged_model(directory, merged or recipe.publish.merged, trust_remote_code),
            verified=verify,
            trust_remote_code=trust_remote_code,
        )
