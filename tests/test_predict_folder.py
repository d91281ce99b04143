"""examples/predict_folder.py as a person runs it: in one process and in two, killed, resumed, on films of our own."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("accelerate", reason='this example needs accelerate: pip install "gaze2report[train]"')

SCRIPT = Path(__file__).parents[1] / "examples" / "predict_folder.py"
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
NAMES = ["1.2.840.7", "a/0.png", "a/b/1.JPG", "a/b/2.dcm", "c.jpeg", "d (3).png", "é.png"]


def command(*arguments, processes: int = 1) -> list[str]:
    return [sys.executable, *(LAUNCHER if processes == 2 else []), str(SCRIPT), *map(str, arguments)]


def run(*arguments, processes: int = 1) -> subprocess.CompletedProcess:
    typed = command(*arguments, processes=processes)
    return subprocess.run(typed, capture_output=True, text=True, timeout=120, env=ENVIRONMENT)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def names(path: Path) -> list[str]:
    return [line["image"] for line in lines(path)]


def same(one, other) -> bool:
    """Alike up to the last digits, which depend on what else is in the batch."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == (pytest.approx(other, abs=2e-4) if isinstance(other, float) else other)


def film(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 5), np.uint8)
    Image.fromarray(coarse).resize((96, 112), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module")
def films(tmp_path_factory, save_dicom) -> Path:
    """A folder with the films `NAMES`, and with what is none."""
    folder = tmp_path_factory.mktemp("films")
    for seed, name in enumerate(NAMES):
        if name.endswith((".dcm", ".7")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            save_dicom(folder / name, np.asarray(Image.open(film(folder / "dicom.png", seed))))
            (folder / "dicom.png").unlink()
        else:
            film(folder / name, seed)
    (folder / "a" / "notes.txt").write_text("no film")
    (folder / ".hidden").mkdir()
    for junk in ("._0.png", "DICOMDIR", ".hidden/0.png"):
        shutil.copy(folder / "1.2.840.7", folder / junk)
    return folder


@pytest.fixture(scope="module")
def one(films, tiny_bundle, tmp_path_factory):
    """`(what ran, its --out, its options)`: one process over `films`."""
    out = tmp_path_factory.mktemp("one") / "results.jsonl"
    options = [films, "--out", out, "--model", tiny_bundle, "--batch_size", 3]
    return run(*options), out, options


@pytest.fixture
def begun(one, tmp_path) -> Path:
    """A copy of what `one` wrote, to be gone on with in other ways."""
    for path in one[1].parent.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path / one[1].name


@pytest.fixture
def example(monkeypatch):
    """The modules of the example, as when it is run."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import predict_folder

    yield predict_folder
    predict_folder.PartialState._reset_state()


@pytest.fixture
def predict(example, monkeypatch, capsys):
    """Runs the command in this process: `(exit status, stderr)`."""
    monkeypatch.setattr(example.torch.accelerator, "is_available", lambda: False)

    def call(*arguments) -> tuple[int, str]:
        example.PartialState._reset_state()
        try:
            status = example.main([*map(str, arguments)])
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr()
        assert said.out == ""
        return status, said.err

    return call


def refused(answer: tuple[int, str], *words) -> None:
    status, said = answer
    assert status == 2
    assert said.count("\n") == 1, said
    assert all(str(word) in said for word in words), said


# ---- whole runs


def test_one_process_writes_what_the_command_line_prints(one, films, tiny_bundle, capsys, monkeypatch):
    from gaze_vlm.cli import app

    ran, out, _ = one
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
    assert re.fullmatch(r"7 of 7 films, [\d.e+]+ a second", ran.stderr.splitlines()[-1])
    assert names(out) == NAMES
    assert {path.name for path in out.parent.iterdir()} == {"results.jsonl", "results.jsonl.run.json"}
    monkeypatch.chdir(films)
    app(["report", *NAMES, "--json", "--model", str(tiny_bundle)], standalone_mode=False)
    assert same(lines(out), json.loads(capsys.readouterr().out))


def test_a_whole_run_is_left_as_it_is(begun, one, predict):
    before = {path: path.stat().st_mtime_ns for path in begun.parent.iterdir()}
    status, said = predict(*one[2][:2], begun, *one[2][3:])
    assert (status, said) == (0, f"{begun}: complete, all 7 films are in it; nothing to do\n")
    assert {path: path.stat().st_mtime_ns for path in begun.parent.iterdir()} == before


def test_two_processes_go_on_and_write_the_same(begun, one, films, tmp_path):
    """What a run of more processes left is kept, its half line is not; a film that cannot be read is named."""
    (broken := films / "a" / "broken.png").write_bytes((films / "a" / "0.png").read_bytes()[:200])
    text = begun.read_text()
    begun.unlink()
    kept = [json.dumps(line | {"report": "kept"}) + "\n" for line in map(json.loads, text.splitlines()[5:3:-1])]
    begun.with_name(f"{begun.name}.part-0").write_text(kept[0] + text[:100])
    begun.with_name(f"{begun.name}.part-4").write_text(kept[1])
    ran = run(films, "--out", begun, *one[2][3:5], "--batch_size", 2, processes=2)
    broken.unlink()
    assert (ran.returncode, ran.stdout) == (1, ""), ran.stderr
    assert f"{begun}: 1 of 8 films cannot be read; the same command tries them again\n" in ran.stderr
    assert "8 of 8 films" in ran.stderr
    found, expected = lines(begun), lines(one[1])
    assert found.pop(4) == {"image": "a/broken.png", "error": "PNG file is cut short"}
    for line in expected[4:6]:
        line["report"] = "kept"
    assert same(found, expected)
    assert {path.name for path in tmp_path.iterdir()} == {"results.jsonl", "results.jsonl.run.json"}


# ---- killed and resumed


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def killed(arguments: list, out: Path, count: int, processes: int) -> list[str]:
    """Runs until `count` lines are in the parts, then kill -9; the names in the whole lines that are there."""

    def parts() -> str:
        return "".join(part.read_text() for part in out.parent.glob(f"{out.name}.part-*"))

    with subprocess.Popen(
        command(*arguments, processes=processes), stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as running:
        try:
            while parts().count("\n") < count:
                assert running.poll() is None, running.stderr.read()
                time.sleep(0.01)
        finally:
            for process in [running.pid, *children(running.pid)]:
                os.kill(process, signal.SIGKILL)
    with out.with_name(f"{out.name}.run.json").open() as record:
        fcntl.flock(record, fcntl.LOCK_EX)  # held until the last of them is gone
    assert not out.exists(), "killed too late: it was done"
    return [json.loads(line)["image"] for line in parts().splitlines(True) if line.endswith("\n")]


def mark(out: Path) -> set[str]:
    """A word into each report of the parts, and the beginning of a line at their ends; the names of these reports."""
    marked = set()
    for part in out.parent.glob(f"{out.name}.part-*"):
        whole = [line for line in part.read_text().splitlines(True) if line.endswith("\n")]
        found = [json.loads(line) | {"report": "kept"} for line in whole]
        part.write_text("".join(json.dumps(line) + "\n" for line in found) + '{"image": "0')
        marked |= {line["image"] for line in found}
    return marked


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes to kill in /proc")
def test_two_processes_are_killed_and_one_goes_on(tiny_bundle, predict, tmp_path):
    expected = [f"{number:03}.png" for number in range(60)]
    for number, name in enumerate(expected):
        film(tmp_path / "films" / name, number)
    out = tmp_path / "results.jsonl"
    arguments = [tmp_path / "films", "--out", out, "--model", tiny_bundle, "--batch_size", 1]
    there = killed(arguments, out, 6, processes=2)
    assert 6 <= len(there) == len(set(there)) < 60
    assert mark(out) == set(there)
    status, said = predict(*arguments)
    assert status == 0, said
    assert names(out) == expected
    assert {line["image"] for line in lines(out) if line["report"] == "kept"} == set(there)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["films", out.name, f"{out.name}.run.json"]


def test_films_that_come_later_are_added_and_those_that_go_stay(begun, one, films, predict):
    text = begun.read_text().splitlines(True)
    begun.write_text("".join([text[1].replace('"report": "', '"report": "kept ', 1), *text[2:4], *text[5:]]))
    gone = json.dumps(json.loads(text[0]) | {"image": "gone.png"}) + "\n"
    (begun.parent / f"{begun.name}.part-7").write_text(gone)
    assert predict(films, "--out", begun, *one[2][3:])[0] == 0
    assert names(begun) == [*NAMES, "gone.png"]
    assert lines(begun)[1]["report"].startswith("kept ")
    assert same(
        [line for line in lines(begun) if line["image"] in (NAMES[0], NAMES[4])], [*map(json.loads, text[:5:4])]
    )


def test_films_that_could_not_be_read_are_tried_again(tiny_bundle, film_file, save_dicom, predict, tmp_path, capsys):
    import pydicom
    import typer

    from gaze_vlm.cli import read_films

    whole = film_file("films/1.png", seed=1).read_bytes()
    film_file("films/2.png", seed=2)
    lateral = tmp_path / "films" / "3.dcm"
    (tmp_path / "films" / "1.png").write_bytes(b"")
    save_dicom(lateral, np.asarray(Image.open(tmp_path / "films" / "2.png")))
    turned = pydicom.dcmread(lateral)
    turned.ViewPosition = "LL"
    turned.save_as(lateral)
    out = tmp_path / "out.jsonl"
    arguments = [tmp_path / "films", "--out", out, "--model", tiny_bundle]
    for _ in range(2):
        status, said = predict(*arguments)
        assert status == 1 and said.endswith(": 2 of 3 films cannot be read; the same command tries them again\n")
        errors = ["the file is empty (0 bytes)", None, "a lateral view (LL); the models know frontal films only"]
        assert [line.get("error") for line in lines(out)] == errors
    (tmp_path / "films" / "1.png").write_bytes(whole)
    out.write_text(out.read_text().replace('"report": "', '"report": "kept '))
    assert predict(*arguments)[0] == 1
    assert ["report" in line for line in lines(out)] == [True, True, False]
    assert [line.get("report", "").startswith("kept") for line in lines(out)] == [False, True, False]
    with pytest.raises(typer.Exit):
        read_films([lateral])
    assert capsys.readouterr().err == f"gaze-vlm: {lateral}: {errors[2]}\n"
    lateral.unlink()
    assert predict(*arguments)[0] == 0
    assert names(out) == ["1.png", "2.png"]


# ---- what is read


def test_a_data_set_is_read_by_its_image_ids(one, films, tiny_bundle, predict, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason='data sets need datasets: pip install "gaze2report[train]"')
    from gaze_vlm.data.export import RECORD
    from gaze_vlm.data.schema import SCHEMA, row

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for split, names_of in (("train", ["a/0.png", "c.jpeg", "a/0.png"]), ("test", ["é.png", None, "a/0.png", "side"])):
        rows = [
            row(
                image=name and {"bytes": (films / (name if name in NAMES else "c.jpeg")).read_bytes(), "path": None},
                image_id=name,
                view={"side": "LATERAL", "c.jpeg": "PA"}.get(name),
            )
            for name in names_of
        ]
        file = tmp_path / "export" / "data" / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows, features=SCHEMA).to_parquet(file)
    (tmp_path / "export" / RECORD).write_text("{}")
    options = ["--model", tiny_bundle]
    assert predict(tmp_path / "export", "--out", tmp_path / "all.jsonl", *options)[0] == 1
    *found, side = lines(tmp_path / "all.jsonl")
    known = {line["image"]: line for line in lines(one[1])}
    assert same(found, [known[name] for name in ("a/0.png", "c.jpeg", "é.png")])
    error = "a lateral view (LATERAL); the models know frontal films only"
    assert side == {"image": "side", "error": error}
    assert predict(tmp_path / "export", "--out", tmp_path / "train.jsonl", "--split", "train", *options)[0] == 0
    assert names(tmp_path / "train.jsonl") == ["a/0.png", "c.jpeg"]
    answer = predict(tmp_path / "export", "--out", tmp_path / "x", "--split", "validation", *options)
    refused(answer, "no validation split, only train, test")


def test_without_gaze(one, films, tiny_bundle, predict, tmp_path):
    out = tmp_path / "none.jsonl"
    assert predict(films, "--out", out, "--model", tiny_bundle, "--gaze", "none")[0] == 0
    for line, predicted in zip(lines(out), lines(one[1]), strict=True):
        assert line["scanpath"] == {"x": [], "y": [], "onset": [], "duration": []}
        assert predicted["scanpath"]["x"]
        assert same(line["findings"], predicted["findings"])


def test_a_model_that_predicts_no_gaze_is_refused_unless_none_is_wanted(example, tiny_bundle):
    models = example.ReadingPipeline(tiny_bundle)
    models.vlm[0].model.scanpath_predictor = None
    with pytest.raises(ValueError, match="predicts no gaze; pass --gaze none"):
        example.load(models, "predicted")
    example.load(models, "none")


def test_films_are_decoded_as_they_are_needed(example):
    class Films:
        def __init__(self):
            self.decoded = []

        def read(self, name):
            self.decoded.append(name)
            return example.Film(np.zeros((40, 40), np.uint8), name, "png", "")

    films, numbers = Films(), [str(number) for number in range(11)]
    for count, batch in enumerate(example.batches(films, numbers, 3)):
        assert [name for name, _ in batch] == [film.path for _, film in batch] == numbers[3 * count : 3 * count + 3]
        assert len(films.decoded) <= 3 * (count + 2)
    assert sorted(films.decoded, key=int) == numbers


# ---- what is refused


def test_a_real_refusal_is_one_line(tmp_path):
    ran = run(tmp_path, "--out", tmp_path / "out.jsonl")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == f"predict_folder.py: {tmp_path}: no film in it (DICOM, PNG or JPEG)\n"
    assert not list(tmp_path.iterdir())


def test_other_settings_are_refused(begun, films, tiny_bundle, predict, tmp_path, monkeypatch):
    fine = [films, "--out", begun, "--model", tiny_bundle]
    film(films.parent / "others" / "a.png", 1)
    other = shutil.copytree(tiny_bundle, tmp_path / "models")
    refused(predict(*fine, "--gaze", "none"), begun, "begun with gaze predicted, not none")
    refused(predict(*fine[:3]), f"model {tiny_bundle}, not nano")
    refused(predict(*fine[:3], "--model", other), f"model {tiny_bundle}, not {other}")
    refused(predict(films.parent / "others", *fine[1:]), f"films {films}, not {films.parent / 'others'}")
    assert predict(*fine, "--batch_size", 5)[0] == 0
    assert names(begun) == NAMES


def test_wrong_options_are_refused(films, tiny_bundle, predict, tmp_path):
    out = tmp_path / "out.jsonl"
    refused(predict(films), "--out")
    refused(predict(films, "--out", out, "--batch_size", 0), "--batch_size must be at least 1, got 0")
    refused(predict(films, "--out", out, "--gaze", "recorded"), "recorded")
    refused(predict(films, "--out", out, "--split", "test"), "--split test", films)
    refused(predict(tmp_path / "no", "--out", out), f"{tmp_path / 'no'}: no such folder")
    refused(predict(films, "--out", out, "--model", tmp_path / "no"), tmp_path / "no", "no such folder")
    refused(predict(films, "--out", out, "--model", films), films, "no config.json")
    refused(predict(films, "--out", tmp_path, "--model", tiny_bundle), tmp_path, "choose another --out")
    out = tmp_path / "mine.jsonl"
    out.write_text("mine")
    refused(predict(films, "--out", out), out, "already there, and not written by this script")
    assert out.read_text() == "mine"
    (tmp_path / f"{out.name}.run.json").write_text("{}")
    refused(predict(films, "--out", out), out, "byte 0", "no line of this script")
    assert out.read_text() == "mine"


def test_a_model_that_cannot_be_loaded_leaves_the_out_free(films, tiny_bundle, predict, tmp_path):
    out = tmp_path / "out.jsonl"
    refused(predict(films, "--out", out, "--model", films), "no config.json")
    assert predict(films, "--out", out, "--model", tiny_bundle)[0] == 0


def test_a_second_run_at_the_same_time_is_refused(begun, one, predict):
    with (begun.parent / f"{begun.name}.run.json").open() as record:
        fcntl.flock(record, fcntl.LOCK_SH)
        refused(predict(*one[2][:2], begun, *one[2][3:]), begun, "another run is writing it")


# ---- the lines


@pytest.fixture
def results(example, tmp_path):
    """Makes a `ResumableLines` in an empty folder."""
    counter = iter(range(10_000))

    def make():
        folder = tmp_path / str(next(counter))
        folder.mkdir()
        return example.ResumableLines(folder / "out.jsonl")

    return make


def put(results, rank: int, *found: dict) -> None:
    with results.part(rank).open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in found)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    split=st.lists(st.integers(0, 3), min_size=5, max_size=5),
    cuts=st.lists(st.integers(0, 60), min_size=4, max_size=4),
    failed=st.sets(st.sampled_from("abcde")),
)
def test_wherever_the_parts_are_cut_each_name_comes_out_once(results, split, cuts, failed):
    """Five names over four parts, each part cut somewhere: what is whole and no error is kept, the rest made anew."""
    work, wanted = results(), list("abcde")
    work.begin({}, wanted)
    for rank in range(4):
        here = [name for name, place in zip(wanted, split, strict=True) if place == rank]
        put(work, rank, *({"image": name} | ({"error": "x"} if name in failed else {}) for name in here))
        os.truncate(work.part(rank), max(0, work.part(rank).stat().st_size - cuts[rank]))
    whole = "".join(part.read_text().rpartition("\n")[0] + "\n" for part in work.parts).split()
    kept = {json.loads(line)["image"] for line in "".join(whole).replace("}{", "}\n{").split() if "error" not in line}
    todo = work.begin({}, wanted)
    assert todo == [name for name in wanted if name not in kept]
    put(work, 0, *({"image": name, "new": 1} for name in todo))
    assert work.finish(wanted) == 0
    assert lines(work.out) == [{"image": name} | ({"new": 1} if name in todo else {}) for name in wanted]
    assert not work.parts


@pytest.mark.parametrize("step", ["fsync", "replace", "unlink"])
def test_a_merge_that_is_killed_is_done_again(results, step, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*arguments):
        raise Killed

    work = results()
    assert work.begin({"gaze": "none"}, ["a", "b", "c"]) == ["a", "b", "c"]
    put(work, 0, {"image": "c"}, {"image": "a"})
    put(work, 1, {"image": "b"})
    with monkeypatch.context() as patch:
        patch.setattr(*((os, step) if step == "fsync" else (Path, step)), kill)
        with pytest.raises(Killed):
            work.finish(["a", "b", "c"])
    work.file.close()
    again = type(work)(work.out)
    assert again.begin({"gaze": "none"}, ["a", "b", "c"]) == []
    assert again.finish(["a", "b", "c"]) == 0
    assert work.out.read_text() == '{"image": "a"}\n{"image": "b"}\n{"image": "c"}\n'
    assert sorted(path.name for path in work.out.parent.iterdir()) == ["out.jsonl", "out.jsonl.run.json"]


def test_lines_that_nobody_here_wrote_are_named(results):
    work = results()
    work.begin({}, ["a", "b"])
    work.part(0).write_text('{"image": "a"}\nhello\n{"image": "b"}\n')
    with pytest.raises(ValueError, match=r"part-0: what begins at byte 15 is no line of this script"):
        work.begin({}, ["a", "b"])


def test_nothing_is_merged_while_a_line_is_missing(results):
    work = results()
    work.begin({}, ["a", "b", "c"])
    put(work, 0, {"image": "a"})
    with pytest.raises(ValueError, match="no line of b, and 2 missing in all"):
        work.finish(["a", "b", "c"])
    assert work.parts and not work.out.exists()
