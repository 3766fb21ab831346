#!/usr/bin/env python3
"""Sends runs to Weights & Biases from their logs (log.jsonl): the configuration of each, and the numbers of each step and evaluation.

A run that goes on is sent again with the same command, and only what is new goes: what was sent is remembered beside the log, in
log.jsonl.wandb, and W&B itself is asked where it can be. Steps that a run took back (--resume from an earlier step) stay as they were sent. A
step whose evaluation is still to come waits for it. WANDB_MODE=offline writes to a folder, for `wandb sync` later."""
import argparse
import json
import os
import sys
from pathlib import Path

sys.dont_write_bytecode = True
import log_lines
from script import refuse, write_whole


def sent_before(state, path):
    """The last step that was sent of this run to this place; -1: none."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return int(kept["step"]) if {key: kept[key] for key in state} == state else -1
    except FileNotFoundError:
        return -1
    except (OSError, ValueError, TypeError, KeyError):
        refuse(f"{path}: is not what was written there; remove it, and all steps are sent again")


def send(wandb, path, name, log, arguments):
    state = {"id": log.id, "project": arguments.project, "entity": arguments.entity, "mode": os.environ.get("WANDB_MODE", "online")}
    kept = path.with_name(path.name + ".wandb")
    sent = sent_before(state, kept)
    records = [r for r in log.records() if not log.awaits_evaluation(r[0])]
    if not any(step > sent for step, _, _ in records):
        print(f"{name}: nothing new after step {sent}")
        return
    try:
        # Statistics of this machine are none of the run's.
        run = wandb.init(project=arguments.project, entity=arguments.entity, group=arguments.group, dir=arguments.dir, name=name, id=log.id,
                         resume=None if state["mode"] == "offline" else "allow", config=log_lines.settings(log),
                         settings=wandb.Settings(console="off", silent=True, x_disable_stats=True))
    except wandb.errors.Error as error:
        refuse(f"{name}: W&B refuses: {str(error).rstrip('.')}; log in (wandb login), or set WANDB_MODE=offline")
    if run.resumed:                         # the server has this run already, and says up to which step
        sent = max(sent, run.step - 1)
    new = [r for r in records if r[0] > sent]
    for step, *both in new:
        run.log(log_lines.metrics(*both), step=step)
    run.finish()
    if new:
        write_whole(kept, lambda file: file.write_text(json.dumps({**state, "step": new[-1][0]})))
    print(f"{name}: steps {new[0][0]} to {new[-1][0]} sent, run {log.id}" if new else f"{name}: nothing new after step {sent}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or its log.jsonl")
    parser.add_argument("--project", default="deepen", help="W&B's project (default: deepen)")
    parser.add_argument("--entity", help="W&B's user or team (default: W&B's own)")
    parser.add_argument("--group", help="W&B's group, as for the seeds of one run")
    parser.add_argument("--dir", default=os.environ.get("WANDB_DIR", "out"), help="where W&B makes its folder `wandb` (default: WANDB_DIR, else out)")
    arguments = parser.parse_args()
    runs = log_lines.runs_of(arguments.runs)
    try:
        import wandb
    except ImportError:
        refuse("the package wandb is missing; pip install wandb, into a virtual environment say, and run this with its python")
    try:
        Path(arguments.dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        refuse(f"{arguments.dir}: cannot be made a folder: {error.strerror}; give another with --dir")
    for path, name, log in runs:
        send(wandb, path, name, log, arguments)


if __name__ == "__main__":
    main()
