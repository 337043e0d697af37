"""Publish a finished run: its card, weights, scores and example captions, in one commit.

    python examples/publish.py runs/mine you/name --dry-run

Without --dry-run you must be signed in (hf auth login). Before and after the push, a clean process without hfcap loads
the model and compares its captions with those recorded.
"""

import argparse

import hfcap

parser = argparse.ArgumentParser(description="Publish a run.")
parser.add_argument("run", help="run directory")
parser.add_argument("repo_id", help="namespace/name on the Hub")
parser.add_argument("--private", action="store_true")
parser.add_argument("--dry-run", action="store_true", help="only stage the files and list them")
parser.add_argument("--skip-verification", action="store_true")
arguments = parser.parse_args()

run = hfcap.train(arguments.run, until="card")  # what is finished is skipped
result = hfcap.push_to_hub(
    run,
    arguments.repo_id,
    private=arguments.private,
    dry_run=arguments.dry_run,
    verify=not arguments.skip_verification,
)
print(result)
