"""The command gaze-vlm data: check a release as it was published, build Parquet from it."""

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .terminal import complain, console, errors, print_json, shown, waiting


def data(
    name: Annotated[str, typer.Argument(help="Release, such as reflacx; an unknown name lists them.")],
    root: Annotated[Path, typer.Option(help="Folder (or file) of the release as published.", show_default=False)],
    config: Annotated[
        str | None, typer.Option(help="Where it can be read in several ways, which.", show_default=False)
    ] = None,
    mimic_cxr: Annotated[
        Path | None,
        typer.Option(help="MIMIC-CXR folder, to join images and reports by their ids.", show_default=False),
    ] = None,
    siim_acr: Annotated[
        Path | None, typer.Option(help="Folder of the SIIM-ACR films, for their gaze.", show_default=False)
    ] = None,
    sampling_rate: Annotated[
        float | None, typer.Option(help="Samples a second of the SIIM-ACR gaze.", show_default=False)
    ] = None,
    raw_gaze: Annotated[
        bool, typer.Option("--raw-gaze", help="The eye tracker's samples too, where released.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for Parquet shards and card.", show_default=False)] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(help="Upload --out to this data set repository, ORG/NAME.", show_default=False)
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make that repository a private one.")] = False,
    anyway: Annotated[bool, typer.Option("--anyway", help="Build although a check failed.")] = False,
    num_proc: Annotated[int, typer.Option(min=1, help="Processes that build.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Check a raw release and, with --out, build Parquet from it; a build that was stopped goes on."""
    typed = as_typed(root, mimic_cxr, siim_acr)
    options = {"mimic_cxr": mimic_cxr, "siim_acr": siim_acr, "sampling_rate": sampling_rate}
    options |= {"raw_gaze": raw_gaze or None}
    with refusing(root, typed):
        with waiting("Checking", as_json):
            builder = builder_of(name, root, config, options)
            refuse_to_push(builder, out, push_to_hub, private)
            checks = list(builder.checks())
        seen = [replace(one, what=typed(one.what), found=typed(one.found), fix=typed(one.fix)) for one in checks]
        failed = [check for check in seen if not check.ok]
        document = {"name": name, "root": str(root), "configuration": builder.config_chosen}
        document["checks"] = [asdict(check) for check in seen]
        if not as_json:
            print_table([["", "check", "found", "published"], *map(line_of, seen)])
        if out is not None and (anyway or not failed):
            document |= build(builder, out, checks, num_proc, quiet=as_json)
            if push_to_hub is not None:
                document["repository"] = upload(builder, out, push_to_hub, private, quiet=as_json)
    if as_json:
        print_json(document)
    if failed and not anyway:
        complain(first_to_fix(root, failed, built=out is None))
        raise typer.Exit(2)


@contextlib.contextmanager
def refusing(root: Path, typed: Callable[[str], str]) -> Iterator[None]:
    """What is wrong with the release, the disk or the Hub, or is not installed, is said in one line: status 2."""
    try:
        from .data import DataError
    except ImportError as error:
        complain(str(error))
        raise typer.Exit(2) from None
    try:
        yield
    except DataError as error:
        complain(typed(str(error)))
    except OSError as error:
        complain(typed(f"{error.filename or root}: {error.strerror or error}"))
    else:
        return
    raise typer.Exit(2)


def as_typed(*paths: Path | None) -> Callable[[str], str]:
    """A function that puts the paths of the command line in place of what they were resolved to."""
    known = {os.path.realpath(os.path.expanduser(path)): str(path) for path in paths if path is not None}

    def typed(text: str) -> str:
        for resolved, path in known.items():
            text = text.replace(resolved, path)
        return text

    return typed


def builder_of(name: str, root: Path, config: str | None, options: dict):
    """The release's builder with those options that were given, paths among them as text."""
    from .data import BUILDERS, DataError

    if name not in BUILDERS:
        raise DataError(f"unknown data set {name!r}; known: {', '.join(sorted(BUILDERS))}")
    given = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
    given = {key: value for key, value in given.items() if value is not None}
    unknown = given.keys() - inspect.signature(BUILDERS[name].set_options).parameters.keys()
    if unknown:
        raise DataError(f"{name} takes no {', '.join('--' + key.replace('_', '-') for key in sorted(unknown))}")
    return BUILDERS[name](root, config, **given)


def refuse_to_push(builder, out: Path | None, push_to_hub: str | None, private: bool) -> None:
    """Before any work is done."""
    from .data import DataError
    from .data.export import refuse_to_share

    if push_to_hub is None:
        if private:
            raise DataError("--private goes with --push-to-hub")
        return
    if out is None:
        raise DataError("--push-to-hub needs --out, the folder to upload")
    refuse_to_share(builder, push_to_hub, private)


def first_to_fix(root: Path, failed: Sequence, built: bool) -> str:
    first = failed[0]
    parts = [f"{root}: {first.what}: {first.found}" + (f", expected {first.expected}" if first.expected else "")]
    parts += [first.fix] if first.fix else []
    more = len(failed) - 1
    parts += [f"{more} more check{'s' * (more > 1)} failed"] if more else []
    parts += [] if built else ["nothing was built, --anyway builds what is there"]
    return "; ".join(parts)


def line_of(check) -> list[str | Text]:
    mark = Text("ok", "green") if check.ok else Text("no", "bold red")
    return [mark, check.what, check.found, check.expected]


def print_table(table: Sequence[Sequence[str | Text]]) -> None:
    """A header and lines; a file or a pipe has no width to keep to."""
    drawn = Table(*table[0], box=None, header_style="dim")
    for line in table[1:]:
        drawn.add_row(*(cell if isinstance(cell, Text) else shown(cell) for cell in line))
    (console if console.is_terminal else Console(width=200)).print(drawn)


def build(builder, out: Path, checks: Sequence, num_proc: int, quiet: bool) -> dict:
    """Export with a progress bar; what --json says of it."""
    from rich.progress import Progress

    from .data.export import NOT_SHAREABLE, export, is_shareable, table_of

    with Progress(console=errors, transient=True, disable=quiet or not errors.is_terminal) as bar:
        task = bar.add_task("Building", total=None)
        counts = export(
            builder,
            out,
            checks=checks,
            num_proc=num_proc,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if not quiet:
        print_table(table_of(counts))
        console.print(Text("Parquet and card: ") + shown(out), soft_wrap=True)
        if not is_shareable(builder):
            console.print(NOT_SHAREABLE, style="bold yellow", soft_wrap=True)
    return {"splits": {name: asdict(total) for name, total in counts.items()}, "shareable": is_shareable(builder)}


def upload(builder, out: Path, repo_id: str, private: bool, quiet: bool) -> str:
    from .data.export import push

    url = push(builder, out, repo_id, private)
    if not quiet:
        console.print(Text("Pushed to ") + shown(url), soft_wrap=True)
    return url


def prepare(name: str) -> None:
    """What `dataset_scripts/<name>/prepare.py` does: `gaze-vlm data <name>` with the script's options."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(data)
    app(args=[name, *sys.argv[1:]], prog_name="gaze-vlm data")
