"""A file of JSON lines that several processes fill, and that no kill -9 spoils: examples/predict_folder.py writes it.

While they work each process appends to OUT.part-RANK. At the end all lines go into OUT, at once, and the parts away.
OUT.run.json stays: it tells the settings, and its lock tells that a run is alive.
"""

import fcntl
import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple


class Line(NamedTuple):
    """Where the line of an item stands, and whether it is an error."""

    path: Path
    offset: int
    failed: bool


class ResumableLines:
    """Lines `{"image": NAME, ...}`, in the end one for each name; with an "error" in it the item is not done.

    Args:
        out: the file that is to be.
    """

    def __init__(self, out: Path):
        self.out, self.record, self.file = out, out.with_name(f"{out.name}.run.json"), None

    def part(self, rank: int) -> Path:
        return self.out.with_name(f"{self.out.name}.part-{rank}")

    @property
    def parts(self) -> list[Path]:
        return sorted(path for path in self.out.parent.iterdir() if path.name.startswith(f"{self.out.name}.part-"))

    @property
    def complete(self) -> bool:
        """All that there is stands in `out`, and no error."""
        return not self.parts and not any(line.failed for line in self.lines().values())

    def begin(self, settings: dict[str, str], names: list[str]) -> list[str]:
        """For the first process: the names that are not done.

        Raises:
            ValueError: where `out` is someone else's, another run is alive, or lines were made with other settings.
        """
        self.out.parent.mkdir(parents=True, exist_ok=True)
        if self.out.is_dir() or ((self.out.exists() or self.parts) and not self.record.exists()):
            raise ValueError(f"{self.out}: already there, and not written by this script; choose another --out")
        self.lock(alone=True)
        done = {name for name, line in self.lines().items() if not line.failed}
        if done:
            known = json.loads(self.record.read_text())
            other = [f"{name} {known[name]}, not {value}" for name, value in settings.items() if known[name] != value]
            if other:
                raise ValueError(f"{self.out}: begun with {'; '.join(other)}; keep to it or choose another --out")
        else:
            self.record.write_text(json.dumps(settings) + "\n")
        return [name for name in names if name not in done]

    def lock(self, alone: bool = False) -> None:
        """Held as long as the process lives: with the other processes of a run, or `alone`."""
        self.file = self.file or self.record.open("a")
        try:
            fcntl.flock(self.file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{self.out}: another run is writing it") from None

    def lines(self) -> dict[str, Line]:
        """The line of each name, an error only where there is no better one. What a kill left of a line is cut off."""
        found: dict[str, Line] = {}
        for path in [self.out, *self.parts] if self.out.exists() else self.parts:
            offset = 0
            with path.open("rb") as file:
                for line in file:
                    if path != self.out and not line.endswith(b"\n"):
                        os.truncate(path, offset)
                        break
                    try:
                        document = json.loads(line)
                        name, failed = document["image"], "error" in document
                    except (ValueError, TypeError, KeyError):
                        raise ValueError(f"{path}: what begins at byte {offset} is no line of this script") from None
                    if name not in found or found[name].failed:
                        found[name] = Line(path, offset, failed)
                    offset += len(line)
        return found

    def count_added(self, seen: dict[Path, int]) -> int:
        """Lines that all processes have added; `seen` is how far each part has been read, and is moved on."""
        count = 0
        for part in self.parts:
            with part.open("rb") as file:
                file.seek(seen.get(part, 0))
                new = file.read()
            seen[part] = seen.get(part, 0) + len(new)
            count += new.count(b"\n")
        return count

    def finish(self, names: list[str]) -> int:
        """All lines into `out`, in the order of `names`; the number of errors among them.

        What is done and no longer among the names stays, at the end. `out` is replaced at once, and the parts go
        after it: wherever this is interrupted, the next run ends it.
        """
        lines, parts, wanted = self.lines(), self.parts, set(names)
        missing = [name for name in names if name not in lines]
        if missing:
            raise ValueError(f"{self.out}: no line of {missing[0]}, and {len(missing)} missing in all; run it again")
        names = [*names, *(name for name, line in lines.items() if name not in wanted and not line.failed)]
        whole = self.out.with_name(f"{self.out.name}.merging")
        with ExitStack() as stack, whole.open("wb") as file:
            sources = {path: stack.enter_context(path.open("rb")) for path in {line.path for line in lines.values()}}
            for name in names:
                source = sources[lines[name].path]
                source.seek(lines[name].offset)
                file.write(source.readline().rstrip(b"\n") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        whole.replace(self.out)
        for part in parts:
            part.unlink()
        return sum(lines[name].failed for name in names)
