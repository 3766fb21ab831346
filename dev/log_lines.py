"""Reads the log.jsonl of a run (llmc/io/log.h), for plot.py, saving.py, to_wandb.py and to_tensorboard.py.

A log has a line for each event: `start` (what the run is: flags, configuration, machine), `resume`, `step`, `eval`, `save`. It only grows,
but for --overwrite, which begins a new one."""
import hashlib
import json
import math
import sys
from pathlib import Path

from script import refuse


class BadLog(Exception):
    """One line: the file, what is wrong with it, what to do."""


class NoLog(BadLog):
    """There is none, perhaps not yet."""


class RunLog:
    """A run by its log. steps, evals: records by step; a resume at step n takes back what was logged of the steps after n."""

    def __init__(self):
        self.start = {}                     # the record of the first start
        self.last_start = {}                # of the latest: a run that goes on may have another end
        self.steps, self.evals = {}, {}
        self.id = None                      # of the run and not of its folder: a hash of its start and its first step

    def last_step(self):
        return max(self.steps, default=0)

    def _flag(self, name, default):
        value = self.last_start.get("flags", {}).get(name)
        return default if value is None else value

    def end(self):
        """The step that the run ends at, if the log says so."""
        steps, stop = self.last_start.get("steps"), self._flag("stop-at-step", 0)
        return min(steps, stop) if steps and stop and stop > 0 else steps

    def awaits_evaluation(self, step):
        """Whether the evaluation of this step is due and not logged yet."""
        every = self._flag("eval-every", 0)
        due = every > 0 and bool(self._flag("val-data", "")) and (step % every == 0 or step == self.last_start.get("steps"))
        return due and step not in self.evals

    def ended(self):
        """Whether nothing more is to come. A run that was stopped or killed before its end has not ended: it may go on."""
        end = self.end()
        return bool(end) and self.last_step() >= end and not self.awaits_evaluation(self.last_step())

    def records(self):
        """(step, record of the step or {}, record of its evaluation or {}), by step."""
        return [(step, self.steps.get(step, {}), self.evals.get(step, {})) for step in sorted({*self.steps, *self.evals})]


def log_of(argument):
    """The log that a user's argument names: a run's folder, or the file itself."""
    return Path(argument) / "log.jsonl" if Path(argument).is_dir() else Path(argument)


def read(path):
    """Throws BadLog. Half a line is left out: the last, or that of a run that was killed and went on with another start."""
    try:
        lines = path.read_bytes().decode("utf-8", "replace").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise NoLog(f"{path}: no such file; give a run's folder, or its log.jsonl") from None
    except OSError as error:
        raise BadLog(f"{path}: cannot be read: {error.strerror}; give a run's folder, or its log.jsonl") from None
    log, bad = RunLog(), None
    if lines == [""]:
        return log
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            event = record["event"]
            step = int(record["step"]) if event in ("step", "eval", "resume") else None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if bad:
                raise BadLog(bad) from None
            what = "not JSON" if isinstance(error, (ValueError, RecursionError)) and not _is_json(line) else "no record of a log"
            bad = f"{path}: line {number} is {what}: {line[:60]!r}; mend or remove it"
            continue
        if bad and event != "start":
            raise BadLog(bad)
        bad = None
        if event == "start":
            log.start, log.last_start = log.start or record, record
        elif event == "step":
            log.id = log.id or hashlib.sha256(json.dumps([log.start, record], sort_keys=True).encode()).hexdigest()[:16]
            log.steps[step] = record
        elif event == "eval":
            log.evals[step] = record
        elif event == "resume":
            for records in (log.steps, log.evals):
                for later in [s for s in records if s > step]:
                    del records[later]
    return log


def _is_json(line):
    try:
        json.loads(line)
        return True
    except (ValueError, RecursionError):
        return False


def distinct_names(paths):
    """Of each run its folder's name, and as many folders above as tell it from the others."""
    folders = [path.resolve().parent.parts for path in paths]
    deepest = max(len(parts) for parts in folders)
    for depth in range(1, deepest + 1):
        names = ["/".join(parts[-depth:]) for parts in folders]
        if len(set(names)) == len(set(folders)):
            return names
    return [str(path) for path in paths]


# ------------------------------------------------------------------------------------------------------ for other programs' charts

# Names of what a log has a number for, as charts group them. A number that is not here is train/NAME of a step, val/NAME of an evaluation.
STEP_METRICS = {"loss": "train/loss", "smooth_loss": "train/smooth_loss", "loop_loss": "train/loop_loss", "lr": "train/lr", "norm": "train/grad_norm",
                "ms": "perf/step_ms", "tok_s": "perf/tokens_per_second", "mfu": "perf/mfu_percent", "tokens": "progress/tokens",
                "flops": "progress/flops", "total_flops": "progress/total_flops"}
EVAL_METRICS = {"val_loss": "val/loss", "val_bpb": "val/bpb", "tokens": "progress/tokens", "flops": "progress/flops",
                "total_flops": "progress/total_flops"}


def metrics(step_record, eval_record):
    """Numbers of a step and of its evaluation by the names above; what is null, NaN or no number is left out."""
    found = {}
    for record, names, group in ((eval_record, EVAL_METRICS, "val"), (step_record, STEP_METRICS, "train")):
        for key, value in record.items():
            if key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                found[names.get(key, f"{group}/{key}")] = value
    return found


def settings(log):
    """What a run is, as nested dictionaries: config (the model), flags, build, machine, steps, flops_per_token, argv."""
    return {key: value for key, value in log.start.items() if key != "event"}


def runs_of(arguments):
    """Path, name and log of every run that has a step; the others are named on stderr. Ends the program where none has."""
    paths = [log_of(a) for a in arguments]
    runs = []
    for path, name in zip(paths, distinct_names(paths)):
        try:
            log = read(path)
        except BadLog as error:
            refuse(error)
        if log.id:
            runs.append((path, name, log))
        else:
            print(f"{Path(sys.argv[0]).stem}: {path}: no step logged yet; left out", file=sys.stderr)
    if not runs:
        refuse("nothing to send: no log has a step yet; try again when a run has made its first")
    return runs
