"""How a study ends: one sentence and an exit code for what its user can mend."""

from __future__ import annotations

import sys
from collections.abc import Callable

from common import UserError


def exit_code(work: Callable[[], object], stopped: str = "stopped") -> int:
    """Do the work: 0, or 1 after "error: ..." for a UserError or a file that fails, or 130 after Ctrl-C."""
    try:
        work()
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'writing'}: {error.strerror or error}.", file=sys.stderr)
        return 1
    return 0
