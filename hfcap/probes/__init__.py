"""Asking captioners whether objects are in images, with questions made of annotations."""

from hfcap.probes.asking import Asking, probe_objects
from hfcap.probes.questions import KINDS, Question, object_questions
from hfcap.probes.values import ProbeReport, probe_table, probe_values, says_yes

__all__ = [
    "KINDS",
    "Asking",
    "ProbeReport",
    "Question",
    "object_questions",
    "probe_objects",
    "probe_table",
    "probe_values",
    "says_yes",
]
