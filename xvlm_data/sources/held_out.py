"""Which images a source leaves out because evaluation sets hold them out, by their ids."""

from __future__ import annotations

from xvlm_data.leaks import EvaluationIds, evaluation_ids, usual_evaluation_files
from xvlm_data.sources.base import Request


def held_out_ids(request: Request, *, beside: bool, absent: str | None = None) -> EvaluationIds:
    """The ids in the evaluation files that were given or, failing those, lie beside the release.

    The files are noted as read, so that an interrupted build notices when they change; what could
    not be read of them becomes a note.

    Args:
        request: says which files, and whether leaks are kept.
        beside: look for files where none were given.
        absent: what to tell the user when there are none.

    Raises:
        UserError: a file is missing or broken.
    """
    if request.keep_leaks:
        return EvaluationIds()
    files = request.evaluation_files
    if files is None:
        files = usual_evaluation_files(request.root) if beside else ()
        if not files and absent is not None:
            request.notes.append(absent)
    for file in files:
        with request.reading(file):
            pass
    found = evaluation_ids(files)
    request.notes += found.notes()
    return found
