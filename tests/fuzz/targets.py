"""All targets, by name."""

from __future__ import annotations

from collections.abc import Sequence

from tests.fuzz.target import Target

GROUPS = ("files", "runs")


def chosen_targets(names: Sequence[str] | None, group: str | None) -> list[Target]:
    """Return the targets of these names or of a group, or all; those of `runs` need torch.

    Raises:
        SystemExit: there is no such target.
    """
    known: dict[str, Target] = {}
    if group in (None, "files"):
        from tests.fuzz.file_targets import TARGETS as FILES

        known |= {target.name: target for target in FILES}
    if group == "runs" or (group is None and not set(names or ("",)) <= known.keys()):
        from tests.fuzz.kept_targets import TARGETS as KEPT
        from tests.fuzz.run_targets import TARGETS as RUNS

        known |= {target.name: target for target in (*RUNS, *KEPT)}
    if unknown := [name for name in names or [] if name not in known]:
        raise SystemExit(f"no target {unknown[0]!r}; there are: {', '.join(known)}")
    return [known[name] for name in names or known]
