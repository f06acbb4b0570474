"""Store activations on disk: the same as `saetools harvest`."""

from saetools.cli import run_command


def main() -> None:
    run_command("harvest")


if __name__ == "__main__":
    main()
