"""The command line: a thin layer over `edgecl.Learner`. Nothing heavy is imported until a command runs."""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path

from edgecl import __version__
from edgecl.errors import INTERRUPTED, EdgeclError

# name -> (module in edgecl.commands, help line)
COMMANDS = {
    "demo": ("demo", "learn the included real data end to end, print the table, write the report"),
    "init": ("learn", "create a state: backbone, quota, windows"),
    "learn": ("learn", "learn one class from photos, recordings or arrays, or a folder of classes"),
    "predict": ("predict", "classify photos or recordings, one JSON line each"),
    "evaluate": ("evaluate", "measure accuracy on a folder with one subfolder per class, or on an .npz file"),
    "classes": ("inspect", "list the known classes"),
    "sync": ("sync", "follow a folder of classes: learn what is new, remove what is gone, move what moved"),
    "samples": ("samples", "list the stored samples, or those whose class looks wrong"),
    "advise": ("advise", "say which classes are confused, which need more samples, and when more will not help"),
    "status": ("inspect", "show bytes, backbone, head and generation"),
    "history": ("inspect", "list every generation, and which ones a rollback can restore"),
    "remove": ("correct", "remove stored samples, given by id, exactly"),
    "move": ("correct", "move stored samples, given by id, to another class"),
    "rename": ("correct", "give a class another name, or make two classes one"),
    "forget": ("manage", "forget a class"),
    "rollback": ("manage", "go back to an earlier generation"),
    "merge": ("manage", "merge other states' statistics (exact)"),
    "check": ("check", "read everything, and say what is damaged, what can be restored and what is lost"),
    "backup": ("backup", "copy a state, while it is in use, to a folder, a .tar or stdout"),
    "restore": ("backup", "make a state from a backup: a folder, a .tar or stdin"),
    "export-samples": ("leave", "write all stored samples to a folder, with a manifest; `learn --from` reads it back"),
    "export": ("predict", "write backbone and head as one ONNX file"),
    "round": ("round", "tune the backbone on stored samples in a worker process; a gate accepts or refuses the result"),
    "methods": ("bench", "list every method with its parts and its paper; `methods show NAME` prints its .toml"),
    "bench": ("bench", "compare methods on a scenario: accuracy, forgetting, bytes, seconds, memory"),
    "review": ("review", "list what a daemon did not know or was not sure of, in clusters, and name them or throw them "
               "away"),
    "daemon": ("daemon", "read sources, predict, learn, run rounds when idle; see docs/daemon.md"),
    "replay": ("replay", "play a labelled recording to the learner, each sample predicted before it is taught; "
               "accuracy over time"),
    "profile": ("profile", "measure this board: milliseconds, memory, bytes per class; write a .toml to start from"),
    "doctor": ("doctor", "check this machine: ONNX Runtime, cameras, ports, heat, disk"),
}

SOURCES = ("file, folder, .npz, .csv, or a stream: serial:PORT, udp:HOST:PORT, csv:FILE, camera:/dev/video0, csi://0, "
           "fake:FOLDER")
IDS = "as `edgecl samples` lists it, such as 12-5"


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    root = argparse.ArgumentParser(
        prog="edgecl", description="Learn new classes on the device, in a fixed number of bytes, without forgetting.")
    root.add_argument("--version", action="version", version=f"edgecl {__version__}")
    commands = root.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.add_argument("--state", type=Path, help="the state directory (default ./edgecl-state)")
        command.add_argument("--config", type=Path, metavar="FILE", help="a .toml file with settings")
        command.add_argument("--json", action="store_true", help="print only JSON on stdout")
        if name in ARGUMENTS:
            ARGUMENTS[name](command)
    return root


def _init(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--backbone", metavar="NAME|FILE.onnx",
        help="efficientnet-lite0, rocket, identity, a torchvision name, or an ONNX file (default: chosen by the "
             "first thing taught)")
    add("--quota", metavar="SIZE", help="hard limit of the whole state directory (default 64MB)")
    add("--exemplars", metavar="SIZE", help="bytes of the quota for stored samples (default 1/16)")
    add("--memory-kind", dest="memory", choices=["exemplars", "statistics"], help="statistics: no sample is ever "
        "written to the disk, see docs/privacy.md (default exemplars)")
    add("--codec", metavar="NAME",
        help="how an exemplar is stored: auto, raw, jpeg[:QUALITY], delta16, int8-feature, pq (default auto)")
    add("--admission", metavar="POLICY", help="which exemplars stay: reservoir, herding, boundary, ring (default "
        "reservoir)")
    add("--head", metavar="KIND", help="auto, nearest-mean, cosine, slda, ridge, ridge-projected (default auto)")
    add("--rate", type=float, metavar="HZ", help="sample rate of recordings")
    add("--window", type=float, metavar="SECONDS", help="length of a window")
    add("--hop", type=float, metavar="SECONDS", help="from the start of one window to the next (default half a window)")
    add("--calibrate", type=Path, metavar="SOURCE",
        help="unlabelled samples that set scales, kernel biases and int8 ranges")
    add("--int8", action="store_true", help="store and run the image backbone with 8-bit integers")
    add("--weights", type=Path, metavar="FILE", help="a .pth or .safetensors checkpoint for the backbone")
    add("--threads", type=int, metavar="N", help="threads of ONNX Runtime (default 1)")
    add("--anomaly", action="store_true", help="for an anomaly detector: one class, `normal`; what is unlike it is "
        "unknown. Only says what to do next, see docs/anomaly.md")
    add("--seed", type=int, metavar="N", help="seed of random kernels and projections (default 0)")


def _learn(command: argparse.ArgumentParser) -> None:
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--class", dest="label", metavar="NAME", help="the class that all sources show")
    what.add_argument("--from", dest="folder", type=Path, metavar="FOLDER",
                      help="one class per subfolder, in order; or an .npz file")
    command.add_argument("sources", nargs="*", type=Path, metavar="SOURCE", help=SOURCES)
    command.add_argument("--seconds", type=float, metavar="N", help="take only the first N seconds of each")
    command.add_argument("--session", metavar="NAME",
                         help="what the samples have in common besides their class: a day, a person, a drive; accuracy "
                         "is estimated by leaving out whole sessions, so use the same name for all classes of one")
    yes = {
        "--again": "also count samples that the class was taught before (default: they are left out)",
        "--dry-run": "only look at it, and print what would be learned: names, kinds, sizes, copies, layout",
        "--skip-empty": "with --from, leave out classes without anything that can be read, instead of learning nothing",
        "--subfolders": "all subfolders of a class show that class, whatever they are called",
        "--distinct": "the class is another one than a known one of nearly the same name, such as Mug and mug"}
    for flag, text in yes.items():
        command.add_argument(flag, action="store_true", help=text)
    command.add_argument("--last", metavar="TIME", help="learn the last TIME of a daemon source, e.g. 5s")
    command.add_argument("--source", metavar="NAME", help="which one, if the daemon has several sources")


def _sources(command: argparse.ArgumentParser) -> None:
    command.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help=SOURCES)
    command.add_argument("--seconds", type=float, metavar="N", help="take only the first N seconds of each")
    command.add_argument("--why", action="store_true", help="also print the three likeliest classes, the three stored "
                         "samples that are most like it, and how far outside of what is known it is (unknown above 1)")
    command.add_argument("--debounce", type=int, metavar="N",
                         help="for a stream, print a label once N sure windows in a row, or more that are less sure, "
                         "agree on a new one (default 3; 0: print every window)")


def _export(command: argparse.ArgumentParser) -> None:
    command.add_argument("out", type=Path, metavar="OUT.onnx")
    command.add_argument("--int8", action="store_true", help="quantise the backbone; needs --calibrate")
    command.add_argument("--calibrate", type=Path, metavar="SOURCE", help="photos that set the int8 ranges")


def _sync(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("folder", type=Path, metavar="FOLDER", help="a folder with a subfolder per class")
    add("--dry-run", action="store_true", help="only say what would be done")
    add("--yes", action="store_true", help="do it without asking; needed without a terminal")
    add("--delete-most", action="store_true", help="also if more than half of what is known would be removed")
    add("--subfolders", action="store_true", help="all subfolders of a class show that class, whatever they are called")
    add("--distinct", action="store_true", help="new classes are others than known ones of nearly the same name")


def _export_samples(command: argparse.ArgumentParser) -> None:
    command.add_argument("out", type=Path, metavar="DIR", help="a new or empty folder")
    command.add_argument("--class", dest="label", metavar="NAME", help="only the samples of this class")


def _demo(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, default=Path("edgecl-demo"),
                         help="folder of the report (default ./edgecl-demo)")
    command.add_argument("--serial", action="store_true", help="also send the recordings through the compiled "
                         "firmware and a serial line, and compare; needs gcc")


def _profile(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--out", type=Path, default=Path("edgecl-profile.toml"), metavar="FILE.toml",
        help="file for the recommended settings (default ./edgecl-profile.toml)")
    add("--report", type=Path, metavar="FILE.html", help="also write tables and bar plots; needs edgecl[report]")
    add("--seconds", type=float, default=20.0, metavar="N",
        help="time for all latency measurements together (default 20)")


def _evaluate(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path, metavar="FOLDER|FILE.npz")
    command.add_argument("--report", type=Path, metavar="FILE.html",
                         help="also write a page with pictures of the wrong answers")


def _samples(command: argparse.ArgumentParser) -> None:
    command.add_argument("--class", dest="label", metavar="NAME", help="only those of this class")
    command.add_argument("--suspicious", action="store_true", help="only those that fit another class better, or are "
                         "in two classes, worst first")


def _forget(command: argparse.ArgumentParser) -> None:
    command.add_argument("--class", dest="label", required=True, metavar="NAME")
    command.add_argument("--certificate", type=Path, metavar="FILE", help="write what was removed to a new file "
                         "outside the state, which `edgecl check --certificate FILE` checks against it")


def _remove(command: argparse.ArgumentParser) -> None:
    command.add_argument("ids", nargs="+", metavar="ID", help=IDS)
    command.add_argument("--erase", action="store_true", help="leave nothing of them on the disk; then no older "
                         "generation can be restored")


def _move(command: argparse.ArgumentParser) -> None:
    command.add_argument("ids", nargs="+", metavar="ID", help=IDS)
    command.add_argument("--class", dest="label", required=True, metavar="NAME", help="the class that they show, new "
                         "or known")


def _rename(command: argparse.ArgumentParser) -> None:
    command.add_argument("old", metavar="OLD", help="the class as it is called now")
    command.add_argument("new", metavar="NEW", help="what it is to be called")
    command.add_argument("--into", action="store_true", help="NEW is a class already, and the two become one")


def _rollback(command: argparse.ArgumentParser) -> None:
    command.add_argument("generation", nargs="?", type=int, metavar="N",
                         help="the generation to restore (default: the previous one)")


def _merge(command: argparse.ArgumentParser) -> None:
    command.add_argument("others", nargs="+", type=Path, metavar="STATE")
    command.add_argument("--nothing", action="store_true", help="merge their class `nothing` too: what is nothing "
                         "there may be something here, so it is left out by default")


def _check(command: argparse.ArgumentParser) -> None:
    command.add_argument("--repair", action="store_true", help="restore what can be restored; damaged files are set "
                         "aside, not deleted")
    command.add_argument("--discard", action="store_true", help="delete what is set aside")
    command.add_argument("--certificate", type=Path, metavar="FILE", help="check a certificate of `edgecl forget` "
                         "against the state, and nothing else")


def _backup(command: argparse.ArgumentParser) -> None:
    command.add_argument("out", type=Path, metavar="OUT", help="a new folder, a new OUT.tar, or - for a tar on stdout")


def _restore(command: argparse.ArgumentParser) -> None:
    command.add_argument("backup", type=Path, metavar="BACKUP",
                         help="what `edgecl backup` wrote: a folder, a .tar, or - for a tar on stdin")


def _replay(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("recording", type=Path, metavar="RECORDING", help="a folder of classes, an .npz file (its training part), or a "
        ".csv with a column `label`, in recorded order")
    add("--speed", type=float, default=1.0, metavar="N", help="play N times as fast as recorded (default 1)")
    add("--fps", type=float, default=10.0, metavar="N",
        help="photos or vectors per second in the recording (default 10)")
    add("--batch", type=int, default=10, metavar="N", help="samples predicted and then taught at a time (default 10)")
    add("--teach", type=float, default=1.0, metavar="SHARE",
        help="share of the batches that are taught; 0 only predicts (default 1)")


def _round(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--method", metavar="NAME|FILE.toml", help="see `edgecl methods` (default first-session, in later rounds er)")
    add("--time", metavar="TIME", help="time for the whole round (default 60s)")
    add("--memory", metavar="SIZE", help="peak memory of the worker process (default 400MB)")
    add("--blocks", type=int, metavar="N",
        help="tune the last N blocks of the backbone (default: those of the last feature map)")
    add("--epochs", type=int, metavar="N", help="most epochs, if the time allows (default 8)")
    add("--threads", type=int, metavar="N", help="threads of the worker (default 1)")
    add("--max-regression", type=float, default=0.1, metavar="SHARE", help="allowed drop in accuracy "
        "per class; a drop of fewer than 3 samples is ignored (default 0.1)")


def _methods(command: argparse.ArgumentParser) -> None:
    command.add_argument("show", nargs="?", choices=["show"],
                         help="print one method's .toml, with the source of each number")
    command.add_argument("name", nargs="?", metavar="NAME|FILE.toml", help="the method to show")


def _bench(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--method", required=True, metavar="A,B", help="names of methods (see `edgecl methods`) or .toml files")
    add("--data", required=True, metavar="NAME|FILE.npz", help="digits, watch, fashion, or an .npz file")
    add("--scenario", default="nc", metavar="KIND", help="nc: new classes; ni: new sessions of the same classes; nic: "
        "both; online: one pass in small batches (default nc)")
    add("--steps", type=int, metavar="N", help="steps of the scenario (default 5; nic: 20)")
    add("--memory", default="200KB", metavar="SIZE", help="bytes for exemplars (default 200KB); other state is "
        "reported, not limited")
    add("--epochs", type=int, default=1, metavar="N", help="epochs per step (default 1)")
    add("--batch", type=int, metavar="N", help="samples per batch (default 32; online: 10)")
    add("--rate", type=float, metavar="R", help="learning rate (default: the method's)")
    add("--backbone", metavar="NAME|FILE.onnx", help="mlp, cnn, resnet32, tcn, package.module:function of your own, "
        "or a pretrained image backbone whose last blocks are tuned (default: by the data)")
    add("--blocks", type=int, metavar="N",
        help="tune the last N blocks of a pretrained backbone (default: those of the last feature map)")
    add("--seeds", default="0,1,2", metavar="0,1,2", help="one run per seed (default 0,1,2)")
    add("--multi-head", action="store_true", help="also report the accuracy with the step known")
    add("--per-class", type=int, metavar="N", help="only the first N training samples of each class")
    add("--order", default="natural", metavar="ORDER",
        help="order of the classes: natural, seeded, or numbers such as 2,0,1")
    add("--out", type=Path, metavar="FOLDER", help="keep results there, resume an earlier run, write report.html; "
        "needs edgecl[report]")


def _review(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("action", nargs="?", choices=["list", "export", "name", "drop"], default="list", help="list the clusters "
        "(default); `export DIR [CLUSTER...]`: write their frames as pictures or .csv files; `name CLUSTER CLASS`: "
        "teach all its frames as a class; `drop CLUSTER...`: throw them away")
    add("values", nargs="*", metavar="VALUE", help="what the action takes")
    add("--frames", metavar="3,5", help="for name and drop: single frames, by the number that is the name of their "
        "file in an export")
    add("--all", action="store_true", help="for drop: everything that was gathered")
    add("--distinct", action="store_true", help="for name: the class is another one than a known one of nearly the "
        "same name, such as Mug and mug")


ARGUMENTS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "demo": _demo, "init": _init, "learn": _learn, "predict": _sources, "evaluate": _evaluate, "samples": _samples,
    "sync": _sync, "remove": _remove, "move": _move, "rename": _rename, "forget": _forget, "rollback": _rollback,
    "merge": _merge, "check": _check, "backup": _backup, "restore": _restore, "export": _export,
    "export-samples": _export_samples, "profile": _profile, "round": _round, "replay": _replay, "review": _review,
    "methods": _methods, "bench": _bench}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command: 0; 1 if it was refused (one line on stderr says why and the cure); 2 for wrong usage."""
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):  # one core of the board, unless set
        os.environ.setdefault(variable, "1")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")   # a name that a terminal can't show ends no command
    try:
        options = parser().parse_args(arguments)
        module = import_module(f"edgecl.commands.{COMMANDS[options.command][0]}")
        return int(getattr(module, options.command.replace("-", "_"))(options) or 0)
    except EdgeclError as error:
        from edgecl.settings import short_names

        print(f"edgecl: {short_names(str(error))}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output is gone, as in `edgecl predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as interrupt:
        print(f"edgecl: {interrupt if interrupt.args else INTERRUPTED}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
