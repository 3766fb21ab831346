#!/usr/bin/env python3
"""Writes TensorBoard's event files from the logs of runs (log.jsonl): the configuration of each, and the numbers of each step and evaluation.

Each run gets a folder of its own under --out, with one event file. Again for a run that went on, it appends what is new, so that a
TensorBoard that watches the folder shows it; for one that began anew, or went back to an earlier step, it writes the file afresh. So no step
is there twice. Then: tensorboard --logdir out/tensorboard"""
import argparse
import io
import json
import struct
import sys
from pathlib import Path

sys.dont_write_bytecode = True
import log_lines
from script import refuse, write_whole

try:
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.text.metadata import create_summary_metadata
    from tensorboard.summary.writer.record_writer import RecordWriter
except ImportError:
    Event = None                           # main() says so, after what is wrong with the logs

EVENTS = "events.out.tfevents.deepen"      # TensorBoard takes any name with tfevents in it
LENGTH = struct.Struct("<Q4x")             # before each record: its bytes, and a checksum of that


def seconds_of(log):
    """When each step ended, in seconds since the first began."""
    now, at = 0.0, {}
    for step, record, _ in log.records():
        now += log_lines.metrics(record, {}).get("perf/step_ms", 0) / 1e3
        at[step] = now
    return at


def event_file(log, begin):
    """The bytes of the event file of a run that began at `begin`, in seconds since 1970. A log that grew gives the same bytes and more."""
    file = io.BytesIO()
    records = RecordWriter(file)

    def add(**fields):
        records.write(Event(**fields).SerializeToString())

    add(wall_time=begin, file_version="brain.Event:2")
    code = "    " + json.dumps(log_lines.settings(log), indent=2, sort_keys=True).replace("\n", "\n    ")      # Markdown for code
    text = Summary.Value(tag="settings", metadata=create_summary_metadata("settings", ""), tensor=TensorProto(dtype=DT_STRING, string_val=[code.encode()]))
    add(wall_time=begin, summary=Summary(value=[text]))
    at = seconds_of(log)
    for step, trained, evaluated in log.records():
        of_step = log_lines.metrics(trained, {})
        of_eval = {tag: value for tag, value in log_lines.metrics({}, evaluated).items() if tag not in of_step}
        for values in (of_step, of_eval):
            if values:
                add(wall_time=begin + at[step], step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=x) for tag, x in values.items()]))
    return file.getvalue()


def begin_of(data):
    """When the run of an event file began; None where it is none of ours."""
    try:
        return Event.FromString(data[LENGTH.size:LENGTH.size + LENGTH.unpack_from(data)[0]]).wall_time
    except (DecodeError, struct.error):
        return None


def write(path, log, folder):
    file = folder / EVENTS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        old = file.read_bytes() if file.exists() else b""
        begin = begin_of(old)
        data = event_file(log, begin) if begin else b""
        if old and data.startswith(old):
            with file.open("ab") as stream:
                stream.write(data[len(old):])
            return file
        begin = path.stat().st_mtime - max(seconds_of(log).values())
    except OSError as error:
        refuse(f"{file}: cannot be written: {error.strerror}; give another folder with --out")
    data = event_file(log, begin)
    write_whole(file, lambda temporary: temporary.write_bytes(data))
    return file


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or its log.jsonl")
    parser.add_argument("-o", "--out", default="out/tensorboard", metavar="DIR", help="folder of the runs' folders (default: out/tensorboard)")
    arguments = parser.parse_args()
    runs = log_lines.runs_of(arguments.runs)
    if Event is None:
        refuse("the package tensorboard is missing; pip install tensorboard, into a virtual environment say, and run this with its python")
    for path, name, log in runs:
        print(write(path, log, Path(arguments.out) / name))


if __name__ == "__main__":
    main()
