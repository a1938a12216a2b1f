"""The `cellstate` command. This module imports nothing beyond the standard library, so that it can say what to install."""

import os
import sys


def main() -> None:
    """Run the command; where its libraries are missing, say in one line what to install."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # read when grpc is imported; its notices of each failed handshake would stand between our lines
    try:
        from cellstate.cli.app import run  # noqa: PLC0415 (only here can a missing library be told in one line)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in {"typer", "rich", "grpc_health"}:
            raise
        sys.stderr.write(f"cellstate: the command needs {missing}: pip install '.[cli]' in a checkout of cellstate\n")
        sys.exit(1)
    run()
