"""Make the page of a run's features: the same as `saetools dashboard`."""

from saetools.cli import run_command


def main() -> None:
    run_command("dashboard")


if __name__ == "__main__":
    main()
