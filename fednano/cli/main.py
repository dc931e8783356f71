"""The entry point of the command ``fednano``."""

import os


def main() -> None:
    # gRPC reads it while it is imported, so before that: the demo's processes are forked, and would each log of it.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from fednano.cli.app import app
    from fednano.telemetry import configure_logging

    configure_logging("cli", level="ERROR")
    app()


if __name__ == "__main__":
    main()
