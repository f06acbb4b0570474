"""The command line: `saetools train | evaluate | dashboard | encode | convert | ...`: see `_parser`."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from saetools import __version__
from saetools.errors import ConfigError, RunError, SaetoolsError, printable
from saetools.safeio import expanded

PROGRAM = "saetools"
ELSEWHERE = "what is meant to differ from what it was made for: host, point, ..."
OTHERS = "another library's checkpoint, or hf://organisation/repository[/directory][@revision]"
OVERRIDES = "Any field of the config is set as --section.field VALUE; `saetools train --fields topk` lists them all."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0, or 2 with one paragraph on stderr at an error that the user can mend."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    handler = _AboveBars()
    handler.setFormatter(_PlainFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger(PROGRAM).setLevel(logging.INFO)
    try:
        own, overrides = split_overrides(argv)
        options, unknown = _parser().parse_known_args(own)
        if unknown:
            _refuse(unknown[0], own[0])
        if overrides and not options.has_config:
            raise ConfigError(f"`{PROGRAM} {own[0]}` reads no config, so {overrides[0]} says nothing. Leave it out.")
        options.run(options, overrides)
        return 0
    except SaetoolsError as error:
        sys.stderr.write(printable(f"{PROGRAM}: error: {error}\n"))
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141


class _AboveBars(logging.StreamHandler):
    """Writes to stderr above the progress bars there, which are drawn again below."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode(self.stream):
            super().emit(record)


class _PlainFormatter(logging.Formatter):
    """Messages may hold names and text from elsewhere: no terminal obeys them."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _tell(text: str) -> None:
    sys.stdout.write(printable(text))


def run_command(command: str) -> None:
    """Entry of `scripts/<command>.py`: the same as `saetools <command>`."""
    sys.exit(main([command, *sys.argv[1:]]))


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(a command's own arguments, config overrides): an option with a dot in its name overrides a field."""
    own, overrides = [], []
    items = iter(argv)
    for item in items:
        name, equals, _ = item.partition("=")
        if name.startswith("--") and "." in name:
            overrides.append(item)
            if not equals:
                value = next(items, None)
                if value is None:
                    raise ConfigError(f"{name} has no value: write {name} VALUE.")
                overrides.append(value)
        else:
            own.append(item)
    return own, overrides


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROGRAM, description="Sparse dictionaries of transformer activations.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[..., None], text: str, has_config: bool = True) -> argparse.ArgumentParser:
        epilog = OVERRIDES if has_config else None
        sub = commands.add_parser(name, help=text, description=text, epilog=epilog, allow_abbrev=False)
        sub.set_defaults(run=run, has_config=has_config)
        return sub

    sub = command("train", _train, "Train a dictionary per config, on one stream of rows; begun runs go on.")
    sub.add_argument("config", nargs="*", type=Path, help="YAML file, shipped config by name, or run directory")
    sub.add_argument("--config", dest="more_configs", action="append", type=Path, default=[], help=argparse.SUPPRESS)
    sub.add_argument("--allow-inexact", action="store_true", help="go on though threads, versions or kernels differ")
    sub.add_argument("--print-config", action="store_true", help="print the resolved config as YAML and stop")
    sub.add_argument("--dry-run", action="store_true", help="print shapes, tokens, disk, memory and time, and stop")
    sub.add_argument("--fields", metavar="KIND", help="list every config field, for a kind of dictionary, and stop")

    sub = command("harvest", _harvest, "Store activations on disk for runs with activations.source cached.")
    sub.add_argument("config", type=Path, help="YAML file, shipped config by name, or run directory")
    sub.add_argument("--out", type=Path, required=True, help="directory for the stores, one per point")
    sub.add_argument("--rows", type=int, help="rows to store; default: what a run of this config reads")
    sub.add_argument("--points", nargs="+", help="hook points; default: activations.point")

    sub = command("evaluate", _evaluate, "Evaluate dictionaries on held-out data; writes eval.json.")
    sub.add_argument("source", nargs="+", help=f"run or dictionary directories, {OTHERS}")
    sub.add_argument("--config", type=Path, help="config that names host, corpus and point, for a bare dictionary")
    sub.add_argument("--fresh", action="store_true", help="compute again what is there")
    sub.add_argument(
        "--out", type=Path, help="directory of the comparison (CSV, page); default: `comparison` beside the first run"
    )
    sub.add_argument("--elsewhere", nargs="+", default=[], metavar="WHAT", help=ELSEWHERE)

    sub = command("dashboard", _dashboard, "Explore a run's features: a live app on this machine, or a page to mail.")
    sub.add_argument("source", help=f"run (one that still trains, too) or dictionary directory, {OTHERS}")
    sub.add_argument(
        "--export",
        type=Path,
        metavar="PATH",
        help="write a page instead: PATH.html is one file with a sample of the features, any other a folder with all",
    )
    sub.add_argument("--features", type=int, metavar="N", help="features in the page; default: 200, in a folder all")
    sub.add_argument("--compare", metavar="OTHER", help="show another run, checkpoint or dictionary beside it")
    sub.add_argument("--loss-effects", type=int, default=0, metavar="N", help="ablate N features in their top contexts")
    sub.add_argument("--map", choices=["pca", "umap"], default="pca", help="places on the map; umap: the extra map")
    sub.add_argument("--fresh", action="store_true", help="collect again what is there; the two above need it then")
    sub.add_argument("--config", type=Path, help="config that names host, corpus and point, for a bare dictionary")
    sub.add_argument("--elsewhere", nargs="+", default=[], metavar="WHAT", help=ELSEWHERE)
    sub.add_argument("--host", default="127.0.0.1", help="address of the app; any but this machine needs --token")
    sub.add_argument("--port", type=int, default=8050, help="port of the app")
    sub.add_argument("--token", help="what a browser must give once; auto: make one and print it")

    sub = command("encode", _encode, "Write the sparse codes of a text or a rows file, in shards.")
    sub.add_argument("source", help=f"run or dictionary directory, {OTHERS}")
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument("--corpus", help="stdlib, a hub data set, or a json, jsonl, parquet or txt file or directory")
    what.add_argument("--rows", type=Path, metavar="FILE", help="x [N, D] in a .safetensors or .npy file")
    sub.add_argument("--out", type=Path, required=True, help="directory to write; it must not exist")
    sub.add_argument("--n-rows", type=int, help="stop after so many rows; default: all")
    sub.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the values")
    sub.add_argument("--config", type=Path, help="config that names host and point; default: what it was made for")
    sub.add_argument("--elsewhere", nargs="+", default=[], metavar="WHAT", help=ELSEWHERE)

    text = "Read a dictionary of any known layout, and write it as ours or another library's."
    sub = command("convert", _convert, text, has_config=False)
    sub.add_argument("source", help="directory, file, or hf://organisation/repository[/directory][@revision]")
    sub.add_argument("--out", type=Path, required=True, help="directory to write; it must not exist")
    sub.add_argument("--to", default="saetools", metavar="FORMAT", help="saelens, sparsify, ...; default: ours")
    sub.add_argument("--from-pt", action="store_true", help="open a .pt file, in a sandbox that takes tensors alone")
    sub.add_argument("--k", type=int, help="features per row, for layouts whose files do not say")
    sub.add_argument("--not-strict", action="store_true", help="warn of unknown settings and tensors, and go on")

    text = "Save a dictionary to the Hugging Face hub, with a card of what it is and how good."
    sub = command("push", _push, text, has_config=False)
    sub.add_argument("source", type=Path, help="run or dictionary directory")
    sub.add_argument("destination", help="hf://organisation/repository[/directory]")
    sub.add_argument("--public", action="store_true", help="where the repository is made: for everyone to see")

    command("quickstart", _quickstart, "Train, evaluate and show a dictionary of the embedded model.")
    command("doctor", _doctor, "Print versions, devices, memory and disk.", has_config=False)
    return parser


def _refuse(argument: str, command: str) -> None:
    from saetools.arguments import unknown_argument
    from saetools.pipeline import dictionary_configs

    raise ConfigError(unknown_argument(argument, f"{PROGRAM} {command}", dictionary_configs()))


def _configs(options: argparse.Namespace, overrides: Sequence[str]) -> list[Any]:
    from saetools.arguments import parse_run
    from saetools.pipeline import dictionary_configs, read_config

    paths = [*options.config, *options.more_configs]
    if not paths:
        return [parse_run(None, overrides, dictionary_configs())]
    return [read_config(path, overrides) for path in paths]


def _train(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from saetools import pipeline
    from saetools.arguments import help_text, to_yaml

    if options.fields:
        kinds = pipeline.dictionary_configs()
        if options.fields not in kinds:
            raise ConfigError(f"unknown kind {options.fields!r}. Known: {', '.join(kinds)}.")
        _tell(help_text("saetools train", kinds, options.fields))
        return
    configs = _configs(options, overrides)
    if options.print_config:
        _tell("---\n".join(to_yaml(config) for config in configs))
        return
    if options.dry_run:
        from saetools.dry_run import describe

        for config in configs:
            _print_table(f"dry run of {config.run.dir}", ("what", "amount"), describe(config))
        return
    for result in pipeline.train(configs, allow_inexact=options.allow_inexact):
        skipped = f", of which {result.n_skipped} were not finite and not applied" if result.n_skipped else ""
        _tell(f"dictionary: {result.dictionary}   ({result.n_tokens:,} tokens in {result.n_steps:,} steps{skipped})\n")


def _harvest(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from saetools import pipeline

    config = pipeline.read_config(options.config, overrides)
    points = options.points or [config.activations.point]
    stores = pipeline.harvest(config, options.out, points, options.rows)
    for point, path in stores.items():
        _tell(f"{point}: {path}\n")


def _evaluate(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from saetools import pipeline

    sources = [pipeline.local_source(source) for source in options.source]
    for source in sources:
        config = _config_for(source, options.config, overrides)
        others = [other for other in sources if other != source]
        told = pipeline.evaluate(source, config, fresh=options.fresh, others=others, elsewhere=options.elsewhere)
        _tell(told + "\n")
    if len(sources) > 1 or options.out is not None:
        _tell(pipeline.compare(sources, options.out) + "\n")


def _dashboard(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from saetools import exploring, pipeline

    source = pipeline.local_source(options.source)
    compare = pipeline.local_source(options.compare) if options.compare else None
    config = _config_for(source, options.config, overrides)
    how = exploring.Collecting(options.fresh, options.map, options.loss_effects, options.elsewhere)
    if options.export is not None:
        page = exploring.export(source, config, options.export, options.features, compare, how)
        _tell(f"features: {page}   (open it in a browser)\n")
        return

    def started(address: str) -> None:
        _tell(f"features: {address}   (open it in a browser; ctrl-c stops)\n")
        sys.stdout.flush()

    where = (options.host, options.port, options.token)
    exploring.serve(source, config, compare, *where, how=how, started=started)


def _config_for(source: Path, config: Path | None, overrides: Sequence[str]) -> Any:
    from saetools import pipeline

    return pipeline.read_config(config, overrides) if config else pipeline.config_of(source, overrides)


def _new(path: Path) -> Path:
    """The path in full; RunError, before anything is computed for it, where it exists."""
    path = expanded(path)
    if path.exists():
        raise RunError(f"{path} already exists. Remove it or choose another directory.")
    return path


def _encode(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from saetools import encoding

    out = _new(options.out)
    if options.rows is not None:
        if overrides or options.config or options.elsewhere:
            raise ConfigError("--rows are encoded as they are: no config, field or --elsewhere says anything.")
        info = encoding.encode_rows(options.source, options.rows, out, options.dtype, options.n_rows)
    else:
        info = encoding.encode_corpus(
            *(options.source, options.corpus, out, options.config, overrides),
            elsewhere=options.elsewhere,
            dtype=options.dtype,
            n_rows=options.n_rows,
        )
    per_row = info.n_values / max(1, info.n_rows)
    _tell(
        f"{out}: {info.n_rows:,} rows, {info.n_values:,} values ({per_row:.1f} per row) of "
        f"{info.n_features:,} features, in {len(info.shards)} shards\n"
    )


def _convert(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from saetools.formats.load import load, save_as

    out = _new(options.out)
    dictionary = load(options.source, strict=not options.not_strict, allow_pt=options.from_pt, k=options.k)
    save_as(dictionary, out, options.to)
    layout = dictionary.provenance.get("layout", "a saetools dictionary")
    _tell(
        f"{options.source} ({layout}) -> {out}: {dictionary.kind}, {dictionary.config.n_features} features of "
        f"width {dictionary.d_model}\n"
    )


def _push(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from saetools.formats.hub import push

    _tell(f"saved: {push(options.source, options.destination, private=not options.public)}\n")


def _quickstart(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from saetools import exploring, pipeline

    config = pipeline.read_config("quickstart", overrides)
    pipeline.train([config])
    _tell(pipeline.evaluate(config.run.dir, config) + "\n")
    page = exploring.export(config.run.dir, config)
    _tell(
        f"dictionary: {config.run.dir / 'dictionary'}   (saetools.load({str(config.run.dir)!r}))\n"
        f"figures:    {config.run.dir / 'eval.json'}\n"
        f"features:   {page}   (open it in a browser)\n"
        f"live app:   saetools dashboard {config.run.dir}   (also prompts, steering, labels)\n"
    )


def _doctor(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from saetools.doctor import facts

    _print_table("saetools doctor", ("what", "found"), facts())


def _print_table(title: str, columns: tuple[str, str], rows: Sequence[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    Console(file=sys.stdout, markup=False).print(table)


if __name__ == "__main__":
    sys.exit(main())
