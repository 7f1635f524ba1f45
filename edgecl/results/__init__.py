"""The results that a learner returns."""
from __future__ import annotations

from edgecl.results.advice import ClassAdvice, Confusion, TeachingAdvice
from edgecl.results.answers import LIKE_NOTHING, LikelyClass, Prediction, StoredMatch, Why, untold
from edgecl.results.changes import BeforeAndAfter, Corrected, Learned, RoundResult, WorkedOut
from edgecl.results.evaluations import NOT_CALIBRATED, Calibrated, Evaluation, ReliabilityBin, WrongAnswer
from edgecl.results.looking import NOT_SHOWN, ClassSummary, SampleList, SampleSummary, Status, history_rows

__all__ = [
    "LIKE_NOTHING", "NOT_CALIBRATED", "NOT_SHOWN", "BeforeAndAfter", "Calibrated", "ClassAdvice",
    "ClassSummary", "Confusion", "Corrected", "Evaluation", "Learned", "LikelyClass", "Prediction",
    "ReliabilityBin", "RoundResult", "SampleList", "SampleSummary", "Status", "StoredMatch",
    "TeachingAdvice", "Why", "WorkedOut", "WrongAnswer", "history_rows", "untold",
]
