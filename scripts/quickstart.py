"""The demo from text to a page of features: the same as `saetools quickstart`."""

from saetools.cli import run_command


def main() -> None:
    run_command("quickstart")


if __name__ == "__main__":
    main()
