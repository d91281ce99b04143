"""How long one waits at the Space: in a browser alone, and among many clients at once.

`gaze-vlm space` runs in a process of its own. A browser picks an example: the first result is the findings, the whole
one the evidence page with its scanpath drawn; then the other example, in turns. After that as many clients as asked
for send the same film at one moment, each in a session of its own.

python tests/benchmarks/space.py [--model DIR] [--clients 50] [--films 6] [--threads 2] [--markdown]

needs the extra "space", playwright and Chromium.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import resources
from statistics import median

from gaze_vlm.space_reader import EXAMPLES

# a step is on the page for a moment only: its first sight is written down there
WATCH = """() => {
    window.first = null;
    const see = () => { if (first === null && document.querySelector("#steps .findings")) first = performance.now(); };
    new MutationObserver(see).observe(document.body, {childList: true, subtree: true});
}"""


@contextmanager
def served(model: str | None, threads: int) -> Iterator[tuple[str, float]]:
    """Address of the Space, and the seconds until it was there."""
    command = [sys.executable, "-m", "gaze_vlm.cli", "space", *(["--model", model] if model else [])]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    started = time.perf_counter()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as space:
        try:
            line = space.stdout.readline()
            yield re.search(r"http://\S+/", line)[0], time.perf_counter() - started
        finally:
            space.terminate()


def in_browser(address: str, films: int) -> list[tuple[float, float]]:
    """Seconds from the click on an example to the findings and to the drawn scanpath, film by film."""
    from playwright.sync_api import sync_playwright

    seconds = []
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        page = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"]).new_page()
        page.set_default_timeout(300_000)
        page.goto(address)
        page.wait_for_selector("#read")
        page.evaluate(WATCH)
        for number in range(films):
            example, file = list(EXAMPLES.items())[number % 2]
            started = page.evaluate("() => { first = null; return performance.now(); }")
            page.get_by_label(example).check()
            frame = page.frame_locator("#viewer iframe")
            frame.locator("#name", has_text=file).wait_for()
            frame.locator(".fixation").first.wait_for()
            done, first = page.evaluate("() => [performance.now(), first]")
            # the page may show a reading that is done at once without its steps
            seconds.append((((first or done) - started) / 1000, (done - started) / 1000))
    return seconds


def at_once(address: str, clients: int) -> tuple[int, float, list[float], int]:
    """Failures, seconds until all are done, seconds of each, and the longest queue that one was told of."""
    from gradio_client import Client, handle_file

    film = resources.files("gaze_vlm") / "films" / "normal.jpg"
    with resources.as_file(film) as path, ThreadPoolExecutor(clients) as pool:
        all_clients = list(pool.map(lambda _: Client(address, verbose=False, analytics_enabled=False), range(clients)))
        started, ranks = time.perf_counter(), [0]

        def read(client) -> float | None:
            job = client.submit(handle_file(path), None, "Predicted", None, api_name="/read")
            while not job.done():
                ranks.append(job.status().rank or 0)
                time.sleep(0.2)
            if job.exception() is not None:
                print(f"failed: {job.exception()!r}")
                return None
            return time.perf_counter() - started

        seconds = list(pool.map(read, all_clients))
        whole = time.perf_counter() - started
    done = [each for each in seconds if each is not None]
    return clients - len(done), whole, done, max(ranks) + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or repository; the embedded nano by default")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--films", type=int, default=6, help="in the browser, at least 2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    with served(arguments.model, arguments.threads) as (address, start):
        (first, whole), *later = in_browser(address, arguments.films)
        failures, seconds, each, queue = at_once(address, arguments.clients)
    rows = [
        ("from the command to the page", f"{start:.1f} s"),
        ("first film: findings", f"{first:.2f} s"),
        ("first film: scanpath and report", f"{whole:.2f} s"),
        (f"{len(later)} later films: findings, median (longest)", spread([one for one, _ in later])),
        (f"{len(later)} later films: scanpath and report, median (longest)", spread([one for _, one in later])),
        (f"{arguments.clients} clients at once: failures", str(failures)),
        (f"{arguments.clients} clients at once: until all are done", f"{seconds:.1f} s"),
        (f"{arguments.clients} clients at once: each, median (longest)", spread(each)),
        (f"{arguments.clients} clients at once: longest queue that one was told of", str(queue)),
    ]
    if arguments.markdown:
        rows = [("what", "measured"), ("---", "---"), *rows]
    for what, measured in rows:
        print(f"| {what} | {measured} |" if arguments.markdown else f"{what:<62} {measured}")


def spread(seconds: list[float]) -> str:
    return f"{median(seconds):.2f} s ({max(seconds):.2f})" if seconds else "none"


if __name__ == "__main__":
    main()
