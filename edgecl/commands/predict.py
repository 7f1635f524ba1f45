"""`edgecl predict` and `edgecl export`."""
from __future__ import annotations

import argparse

from edgecl.commands import (
    Intake,
    keep_memory_low,
    opened,
    percent,
    print_json,
    read_all,
    report_damage,
)
from edgecl.errors import BadInput
from edgecl.settings import counted, format_size


def predict(options: argparse.Namespace) -> None:
    """One JSON line per sample, for a stream per change: source, label, confidence, unknown, milliseconds, and a
    reason if there is no label, or too little was taught to tell what is unknown; with --why what `Why` says."""
    from edgecl.commands.direct_or_daemon import direct_or_daemon
    from edgecl.commands.predict_stream import predict_stream
    from edgecl.samples import batches_of
    from edgecl.sources import is_stream

    keep_memory_low()
    streams = [source for source in options.sources if is_stream(source)]
    if streams and len(options.sources) > 1:
        raise BadInput(f"{streams[0]} is a stream among other sources", "give one stream, or only files and folders")
    if streams:
        with opened(options) as learner:
            predict_stream(learner, streams[0], options)
        return
    with direct_or_daemon(options) as one:
        intake = Intake(one.shape, read_all(options.sources, one.spec(options.seconds)))
        for batch in batches_of(intake):
            for answer, source in zip(one.predict(batch.data, options.why), batch.sources):
                print_json({**answer.to_json(), "source": source})
        report_damage(one.damage)
        intake.report()
        if not intake.taken:
            raise BadInput("nothing could be read", "give photos, recordings or arrays of the form this state takes")


def export(options: argparse.Namespace) -> None:
    """Write the fused model."""
    from edgecl.commands.learn import calibration_of

    if options.int8 and options.calibrate is None:
        raise BadInput("int8 ranges come from photos, and none were given", "also give --calibrate FOLDER")
    if options.calibrate is not None and not options.int8:
        raise BadInput("--calibrate is only for --int8", "give both or neither")
    with opened(options) as learner:
        calibration = calibration_of(options.calibrate, learner.settings) if options.int8 else None
        answer = learner.export(options.out, calibration)
    if options.json:
        print_json(answer)
        return
    agreement = f", {percent(answer['agreement'])} of labels unchanged" if "agreement" in answer else ""
    print(f"wrote {answer['path']} ({format_size(answer['bytes'])}): {counted(len(answer['classes']), 'class')}, "
          f"parity {answer['max_difference']:.1e}{agreement}")
