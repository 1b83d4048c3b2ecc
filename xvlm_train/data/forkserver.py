"""Imported by the process that loader workers are forked from, and nowhere else.

A cluster tells all processes of a job to end; the run then finishes its step, for which it needs
its workers, and these the process they come from. It ends by itself when the run does. Ctrl-C is
the same; ``multiprocessing`` sees to that, but only when all is imported that workers need.
"""

from __future__ import annotations

import signal

#: What the loader starts the server with: its forks go on with that until they have handlers.
_blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
if signal.SIGTERM in _blocked:  # not so where somebody only reads this module, as pdoc does
    for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(_number, signal.SIG_IGN)
