"""`python -m compat_tests contract --engine vllm --version 0.33.0`: 0 fits, 1 broken, 2 unknown."""

import argparse
import sys
from pathlib import Path

from compat_tests import levels, matrix
from compat_tests.contract.check import BROKEN, COULD_NOT_CHECK, FITS, check, describe
from compat_tests.contract.engines import ENGINES, ROOT
from compat_tests.contract.sources import CannotCheckError
from compat_tests.environments import environment_of, running_environment


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except CannotCheckError as error:
        print(f"could not check: {error}", file=sys.stderr)
        return COULD_NOT_CHECK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m compat_tests")
    commands = parser.add_subparsers(required=True)
    contract = commands.add_parser(
        "contract", help="hold our connector against an engine's sources"
    )
    contract.add_argument("--engine", choices=ENGINES, required=True)
    contract.add_argument("--version", required=True, help="X.Y.Z, latest, pre, wheel, or checkout")
    contract.add_argument("--all", action="store_true", help="list changes that we ignore, too")
    contract.add_argument("--ours", type=Path, default=ROOT, help="a checkout of this project")
    contract.add_argument("--record", action="store_true", help="keep its interface as history")
    contract.set_defaults(run=_contract)
    table = commands.add_parser("matrix", help="check every version; write MATRIX.md")
    table.add_argument("--engine", choices=ENGINES, action="append", help="these alone")
    table.add_argument("--ours", type=Path, default=ROOT, help="a checkout of this project")
    table.set_defaults(run=_matrix)
    for level in levels.LEVELS:
        tests = commands.add_parser(level, help=f"run the tests of level {level}")
        tests.add_argument("--engine", choices=levels.NAMED, required=True)
        tests.add_argument("--version", help="X.Y.Z in an environment of its own; default: here")
        tests.add_argument("--file", action="append", help="these test files alone")
        tests.add_argument("--record", action="store_true", help="put the result in the matrix")
        tests.set_defaults(run=_run_level, level=level)
    return parser


def _contract(options: argparse.Namespace) -> int:
    engine, version = ENGINES[options.engine], options.version
    verdict = check(engine, version, ours=options.ours, record=options.record)
    print("\n".join(describe(verdict, every_change=options.all)))
    return verdict.status


def _matrix(options: argparse.Namespace) -> int:
    table = matrix.build([ENGINES[name] for name in options.engine or ENGINES], options.ours)
    matrix.write(table)
    troubles = matrix.trouble(table)
    print("\n".join([*troubles, f"{len(table['rows'])} versions, {len(troubles)} in trouble"]))
    return BROKEN if troubles else FITS


def _run_level(options: argparse.Namespace) -> int:
    engine, version = ENGINES[options.engine], options.version
    if version:
        levels.require_rig(engine, options.level, version)
    environment = environment_of(engine, version) if version else running_environment(engine)
    files = levels.files_of(engine, options.level, options.file or ())
    status = levels.run(environment, options.level, files)
    state = levels.state_of(status, len(files), len(levels.files_of(engine, options.level)))
    print(f"{engine.name} {environment.version}: {options.level} {state}")
    if options.record:
        matrix.note_run(engine.name, environment.version, options.level, state)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
