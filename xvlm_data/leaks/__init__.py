"""Images of evaluation sets: which they are, and whether any of them is in a manifest."""

from __future__ import annotations

from xvlm_data.leaks.evaluation import (
    EvaluationFile,
    EvaluationIds,
    evaluation_ids,
    exclude_ids,
    usual_evaluation_files,
)

__all__ = [
    "EvaluationFile",
    "EvaluationIds",
    "evaluation_ids",
    "exclude_ids",
    "usual_evaluation_files",
]
