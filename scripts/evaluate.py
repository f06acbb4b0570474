"""Evaluate dictionaries: the same as `saetools evaluate`."""

from saetools.cli import run_command


def main() -> None:
    run_command("evaluate")


if __name__ == "__main__":
    main()
