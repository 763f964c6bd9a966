"""The command line, `vtc <command>`: reads the words, imports the module of that command and no other."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from vtc import InputError, __version__

# what each command does; `vtc.commands.<command>` has add_arguments(parser) and main(args) -> exit code
COMMANDS = {
    "reproduce": "run the five notebooks here and compare with the recorded rows",
    "train": "train one cell of the sweep, or a model on your own images",
    "evaluate": "ask a trained model the test questions: error per task",
    "sweep": "train and ask every cell of a profile's sweep, resumable",
    "bench": "clock this machine stage by stage: latency, memory, what binds",
    "fit": "fit the law to your own scores (a CSV with N, V, score), with intervals",
    "predict": "the error of every N and V from two cheap curves: told in words, and one LLM over all V",
    "plan": "which N and V to deploy on given hardware",
    "record": "take rows and figures measured here into results/ and figures/",
}


def _top() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vtc",
        usage="vtc <command> [options]   (vtc <command> --help tells its options)",
        description="Few visual tokens or a small LLM? A companion to arXiv 2411.03312.",
        epilog="commands:\n" + "\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vtc {__version__}")
    parser.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code: 2 for input that a person can mend, 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] not in COMMANDS:
        top = _top()
        if argv:
            top.parse_args(argv)  # --help, --version, or a word that is no command: all leave here
        top.print_help(sys.stderr)
        return 2
    name, words = argv[0], argv[1:]
    what = COMMANDS[name]
    try:
        command = importlib.import_module(f"vtc.commands.{name}")
        parser = argparse.ArgumentParser(prog=f"vtc {name}", description=f"{what[0].upper()}{what[1:]}.")
        command.add_arguments(parser)
        return command.main(parser.parse_args(words))
    except InputError as error:
        print("vtc:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nvtc: stopped; the same command continues where this one was", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `vtc plan | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def run() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    run()
