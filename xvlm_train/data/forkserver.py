"""Imported by the process that loader workers are forked from, and nowhere else.

A cluster tells all processes of a job to end; the run then finishes its step, for which it needs
its workers, and these the process they come from. It ends by itself when the run does.
"""

from __future__ import annotations

import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
