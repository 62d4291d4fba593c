"""Builds the fuzz targets, runs them and prints what came of it.

    python3 fuzz/run.py [--seconds 600] [--jobs 3] [TARGET ...]

Needs cargo-fuzz (`cargo install cargo-fuzz --locked`). What is found lies under `fuzz/artifacts`,
and new inputs under `fuzz/corpus`; the first ones, `fuzz/seeds`, are made by `make_seeds.py`.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys

FUZZ = pathlib.Path(__file__).resolve().parent
TRIPLE = subprocess.run(["rustc", "-vV"], capture_output=True, text=True,
                        check=True).stdout.split("host: ")[1].split()[0]
# Seconds of the wall: the targets are built with checks and with little optimisation.
LIMITS = ["-rss_limit_mb=2048", "-timeout=20", "-max_len=16384", "-print_final_stats=1"]


def targets():
    return re.findall(r'^name = "(\w+)"\npath', (FUZZ / "Cargo.toml").read_text(), re.M)


def build():
    # Coverage needs flags that are unstable; the stable compiler has them.
    environment = os.environ | {"RUSTC_BOOTSTRAP": "1"}
    subprocess.run(["cargo", "fuzz", "build", "--sanitizer", "none", "--fuzz-dir", FUZZ],
                   cwd=FUZZ.parent, env=environment, check=True)


def run(target, seconds):
    corpus, artifacts = FUZZ / "corpus" / target, FUZZ / "artifacts" / target
    corpus.mkdir(parents=True, exist_ok=True)
    artifacts.mkdir(parents=True, exist_ok=True)
    binary = FUZZ / "target" / TRIPLE / "release" / target
    command = ["nice", "-n", "10", binary, corpus, FUZZ / "seeds" / target, *LIMITS,
               f"-max_total_time={seconds}", f"-artifact_prefix={artifacts}/"]
    log = FUZZ / "artifacts" / f"{target}.log"
    with log.open("wb") as out:
        code = subprocess.run(command, stdout=out, stderr=out, cwd=FUZZ).returncode
    text = log.read_text(errors="replace")
    number = lambda pattern: (re.findall(pattern, text) or ["-"])[-1]
    executions, seconds = number(r"number_of_executed_units: (\d+)"), number(r"Done \d+ runs in (\d+)")
    edges, memory = number(r"cov: (\d+)"), number(r"peak_rss_mb: +(\d+)")
    found = "nothing found" if code == 0 else f"FOUND something, see {log}"
    print(f"{target:12} {executions:>10} executions, {seconds:>4} s, {edges:>6} edges, "
          f"{memory:>5} MB, {found}", flush=True)
    return code


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", default=targets())
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--jobs", type=int, default=3)
    parser.add_argument("--no-build", action="store_true")
    arguments = parser.parse_args()
    if not arguments.no_build:
        build()
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        codes = list(pool.map(lambda target: run(target, arguments.seconds), arguments.targets))
    sys.exit(any(codes))


if __name__ == "__main__":
    main()
