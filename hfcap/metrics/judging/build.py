"""The judge that options name."""

from __future__ import annotations

from hfcap.metrics.judging.judge import Judge, JudgeOptions, check_options


def build_judge(options: JudgeOptions, block: str) -> Judge:
    """Return the judge that the options name.

    Args:
        block: of the options, for messages: a metric's name, or "judge".

    Raises:
        UserError: there is no such model, it cannot be asked, or images would leave this machine unasked.
        WorkError: the Hub cannot be reached.
    """
    check_options(options, block)
    if options.base_url is not None:
        from hfcap.metrics.judging.served import ServedJudge

        return ServedJudge(options, block)
    from hfcap.metrics.judging.local import LocalJudge

    return LocalJudge(options, block)
