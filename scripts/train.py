"""Train dictionaries: the same as `saetools train`."""

from saetools.cli import run_command


def main() -> None:
    run_command("train")


if __name__ == "__main__":
    main()
