"""What a metric is worth: how well it agrees with what people said of the same captions."""

from hfcap.judgments.agreement import AgreementReport, MetricAgreement, judge_metrics
from hfcap.judgments.reading import read_judgments
from hfcap.judgments.records import Judgments
from hfcap.judgments.showing import agreement_table, write_agreement

__all__ = [
    "AgreementReport",
    "Judgments",
    "MetricAgreement",
    "agreement_table",
    "judge_metrics",
    "read_judgments",
    "write_agreement",
]
