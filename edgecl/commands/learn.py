"""`edgecl init` and `edgecl learn`."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecl.commands import (
    Intake,
    ProgressBar,
    configuration,
    keep_memory_low,
    print_json,
    socket_path,
    state_path,
)
from edgecl.commands.learned import suggest_nothing, tell
from edgecl.errors import INTERRUPTED, BadInput, StateError
from edgecl.samples import Sample
from edgecl.settings import Settings, format_size, parse_seconds

if TYPE_CHECKING:
    import numpy as np

    from edgecl.commands.direct_or_daemon import Direct, ViaDaemon
    from edgecl.commands.look import ClassSources, Looked, Taker
    from edgecl.results import Learned
    from edgecl.sources.spec import Item

CALIBRATION_SECONDS = 20.0  # of a stream
NORMAL = "normal"           # the one class of an anomaly detector


def settings_of(options: argparse.Namespace) -> Settings:
    """Settings from flags, then --config, then defaults."""
    values = {k: v for k, v in configuration(options).items() if k != "state"}
    for field in fields(Settings):
        given = getattr(options, field.name, None)
        if given is not None:
            values[field.name] = given
    if getattr(options, "int8", False):
        values["precision"] = "int8"
    return Settings.from_table(values, str(options.config) if options.config else "the settings")


def init(options: argparse.Namespace) -> None:
    """Create a state."""
    from edgecl.learner import Learner

    settings = settings_of(options)
    if settings.backbone == "auto" and settings.rate and settings.window:
        settings = Settings(**{**settings.__dict__, "backbone": "rocket"})
    calibration = None if options.calibrate is None else calibration_of(options.calibrate, settings)
    learner = Learner.create(state_path(options), settings, calibration, options.weights)
    status = learner.status()
    if options.json:
        print_json({"state": str(learner.store.path), "backbone": status.backbone, "quota_bytes": status.quota_bytes,
                    "used_bytes": status.used_bytes})
        return
    chosen = "chosen by the first thing taught" if learner.foundation is None else \
        f"{status.backbone} ({status.precision}), statistics {status.statistics}"
    if status.memory == "statistics":
        chosen += "; no samples will be kept"
    print(f"created {learner.store.path}: quota {format_size(status.quota_bytes)}, "
          f"{format_size(status.used_bytes)} used; backbone {chosen}")
    if options.anomaly:
        print(f"next, teach what is normal: edgecl learn --state {learner.store.path} --class {NORMAL} SOURCE; what is "
              f"unlike it is then answered with \"unknown\": true; see docs/anomaly.md")


def calibration_of(source: Path, settings: Settings) -> np.ndarray:
    """Unlabelled samples [n, ...], spread over the whole source."""
    from edgecl.learning.foundation import CALIBRATION_SAMPLES
    from edgecl.sources import is_stream, read, stack
    from edgecl.sources.spec import Spec

    spec = Spec(rate=settings.rate, window=settings.window, hop=settings.hop, vectors=settings.backbone == "identity",
                seconds=CALIBRATION_SECONDS if is_stream(source) else None)
    with ProgressBar("calibrating") as bar:
        def shown() -> Any:
            for item in read(source, spec):
                bar(1)
                yield item
        return stack(shown(), CALIBRATION_SAMPLES)


def learn(options: argparse.Namespace) -> None:
    """Learn a class, a folder of classes, or the last seconds of a daemon source."""
    options.session = check_session(options.session)
    if options.last is not None or options.source is not None:
        learn_last(options)
        return
    if options.label is not None and not options.sources:
        raise BadInput("no source was given", "give photos, recordings or a folder after --class NAME, or --last 5s")
    if options.folder is not None and options.sources:
        raise BadInput("--from takes one folder and no other sources", "leave the other sources out")
    check_streams(options)
    if options.folder is not None and _learned_export(options):
        return
    from edgecl.commands import look
    from edgecl.commands.direct_or_daemon import direct_or_daemon

    keep_memory_low()
    path = state_path(options)
    looked = look.look_at(options)
    if not path.exists():
        from edgecl.learning.foundation import spec_for

        if _looked_at(looked, look.Taker(spec_for(settings_of(options), None, options.seconds)), options):
            return
        create_state(path, options)
    with direct_or_daemon(options) as one:
        taker = look.Taker(one.spec(options.seconds), one.known, one.kind, one.shape)
        if _looked_at(looked, taker, options):
            return
        look.say(looked)
        learned = learn_classes(one, options, looked.classes)
        suggest_nothing(options, learned, one.kind)


def _looked_at(looked: Looked, taker: Taker, options: argparse.Namespace) -> bool:
    """Check all that is to be learned; True if that was all, with --dry-run, after it was shown."""
    from edgecl.commands import look

    look.check(looked, taker, options)
    if options.dry_run:
        look.show(looked, taker, options.json)
    return bool(options.dry_run)


def _learned_export(options: argparse.Namespace) -> bool:
    """Whether a folder was an export of samples, which is learned then."""
    from edgecl.commands.leave import learn_export, show_export
    from edgecl.learning.sample_archive import is_archive

    if not is_archive(options.folder):
        return False
    if options.dry_run:
        show_export(options)
        return True
    keep_memory_low()
    if not state_path(options).exists():
        create_state(state_path(options), options)
    learn_export(options)
    return True


def create_state(path: Path, options: argparse.Namespace) -> None:
    """Create a state, unless another process does so at the same time."""
    from edgecl.learner import Learner

    settings = settings_of(options)
    try:
        learner = Learner.create(path, settings)
    except StateError:
        if not path.exists():
            raise
        return
    print(f"edgecl: created {path} with a quota of {format_size(settings.quota)}", file=sys.stderr)
    learner.close()


def learn_last(options: argparse.Namespace) -> None:
    """Let the daemon learn the last seconds of a source."""
    from edgecl.results import Learned
    from edgecl.runtime.client import Client, NoDaemon

    if options.last is None or options.label is None or options.sources or options.seconds is not None:
        raise BadInput("--last and --source go with --class and no other source",
                       "give for example --class mug --last 5s")
    if options.dry_run:
        raise BadInput("--dry-run looks at files and folders, not at a source of the daemon", "leave it out")
    try:
        with Client(socket_path(options)) as client:
            learned = Learned(**client.ask("learn_last", label=options.label, seconds=parse_seconds(options.last),
                                           source=options.source, session=options.session,
                                           again=options.again, distinct=options.distinct))
            tell(options, learned, 0, client.ask("status")["quota_bytes"])
            suggest_nothing(options, [learned], client.ask("info")["kind"])
    except NoDaemon:
        raise BadInput(f"--last {options.last}: no daemon serves {state_path(options)}",
                       "start `edgecl daemon`, or name a source such as camera:/dev/video0 --seconds 5") from None


def check_streams(options: argparse.Namespace) -> None:
    """Raises BadInput for a stream without an end."""
    from edgecl.sources import endless

    if options.seconds is None and any(map(endless, options.sources)):
        raise BadInput("a stream has no end", "say how much of it shows the class, for example --seconds 20")


def learn_classes(one: Direct | ViaDaemon, options: argparse.Namespace, classes: list[ClassSources]) -> list[Learned]:
    """One generation per class, in order."""
    learned: list[Learned] = []
    try:
        for each in classes:
            learned.append(learn_class(one, options, each))
    except KeyboardInterrupt:
        if options.label is not None:
            raise
        names, done = [each.label for each in classes], len(learned)
        if done < len(names) and one.stored(names[done]):
            done += 1   # stored, though nothing was printed of it
        raise KeyboardInterrupt(interrupted(
            names[:done], names[done:], one.memory != "statistics" and not options.again)) from None
    return learned


def interrupted(kept: list[str], left: list[str], recognises: bool) -> str:
    """What Ctrl-C leaves of a folder, in words. kept: the classes that were learned; left: those that were not, from
    the one that was being learned on; recognises: whether the state recognises what it was taught before."""
    if not left:
        on = "that is all of it"
    elif recognises:
        on = f"the same command goes on with {left[0]!r} and counts nothing twice"
    else:
        on = f"go on with {left[0]!r} class by class, since this state would count the others twice"
    return f"{INTERRUPTED}: {', '.join(kept) or 'nothing yet'}; {on}"


def check_session(name: str | None) -> str:
    """The name of a session; "" for none. Raises BadInput if it is blank."""
    if name is not None and not name.strip():
        raise BadInput("the name of the session is empty",
                       "name what the samples have in common, for example --session monday")
    return (name or "").strip()


def of_session(session: str, items: Iterable[Item]) -> Iterator[Item]:
    """The samples as part of a session, if it has a name; those of an .npz file that names its own stay as they are."""
    for item in items:
        yield replace(item, session=item.session or session) if isinstance(item, Sample) else item


def learn_class(one: Direct | ViaDaemon, options: argparse.Namespace, sources: ClassSources) -> Learned:
    """Learn one class and report it."""
    label = sources.label
    intake = Intake(one.shape, of_session(options.session, sources.items(one.spec(options.seconds))))
    try:
        with ProgressBar(f"learning {label}") as bar:
            learned = one.learn(intake, label, bar, options.again, options.distinct)
    except BadInput as error:
        cause = intake.explain(label) if intake.refused and not intake.taken else error
        intake.report()
        raise cause from None
    intake.report()
    tell(options, learned, len(intake.refused), one.quota, sources.kinds)
    return learned
