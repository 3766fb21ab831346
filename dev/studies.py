"""The code that tables.py and figures.py share: the rows of a study, which of them are compared, and the verdict of a comparison.

A comparison is paired: one difference per seed, of two rows with the same seed and machine (processor, precision, threads).
Rows of different machines are never compared: for each seed a table uses the machine with the most pairs, and reports how many rows
that leaves out."""

import csv
import math
import os
import re
import subprocess
from collections import Counter, defaultdict
from functools import cache, cached_property
from pathlib import Path
from statistics import mean, stdev

from script import refuse

DEV = Path(__file__).resolve().parent
RESULTS = DEV / "results"
STUDIES = ("stacking", "growth")
SCALES = ("smoke", "nano", "small", "paper")
NO_ROOM = "make room there, or name another folder (--results)"   # the way out where a file cannot be written


# ------------------------------------------------------------------------------------------------------------- the columns


def text(value):
    return value


def name(value):
    """A value that becomes part of a file name."""
    if not re.fullmatch(r"[A-Za-z0-9_]{1,40}", value):
        raise ValueError("a word of letters, digits and _")
    return value


def number(value):
    if not re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,4})?", value) or not math.isfinite(float(value)):
        raise ValueError("a finite number")
    return float(value)


def whole(value):
    if not re.fullmatch(r"[0-9]{1,15}", value):
        raise ValueError("a whole number")
    return int(value)


def flag(value):
    if value not in ("True", "False"):
        raise ValueError("True or False")
    return value == "True"


def columns(**kinds):
    return {column: globals()[kind] for kind, names in kinds.items() for column in names.split()}


MACHINE = columns(text="processor precision", whole="threads")
FIRST = columns(name="scale experiment", text="model", whole="seed")
COLUMNS = {
    "growth": FIRST | MACHINE | columns(
        text="baseline order optimizer schedule command",
        whole="depth shallow_depth width",
        number="factor shallow_data_ratio deep_data_ratio shallow_warmdown warmdown total_flops start_val_loss val_loss val_bpb"
        " train_loss train_acceleration val_acceleration",
    ),
    "growth_curves": MACHINE | columns(name="scale", text="model round event", whole="seed step", number="total_flops lr loss"),
    "stacking": FIRST | MACHINE | columns(
        text="parts norm_wte norm_lm_head norm_inter_model coconut_targets embeddings head command",
        flag="use_first_layer use_last_layer unique_model",
        number="val_loss_stack mean_val_loss coconut_every mix_every times models total_flops",
    ),
    "stacking_latents": MACHINE
    | columns(name="scale experiment", text="model quantity model_a position_a model_b position_b", whole="seed"),
    "published_growth": columns(
        name="experiment",
        text="model baseline note",
        number="factor depth shallow_data_ratio deep_data_ratio shallow_warmdown warmdown total_flops val_bpb train_loss"
        " train_acceleration corrected_train_acceleration",
    ),
    "published_stacking": columns(
        name="experiment",
        text="source norm_wte norm_lm_head norm_inter_model note",
        flag="use_first_layer use_last_layer unique_model corrected_unique_model",
        number="val_loss_stack mean_val_loss coconut_every corrected_val_loss_stack",
    ),
}
# Columns whose fields must not be empty.
NEEDED = {
    "growth": {*FIRST, *MACHINE, "val_loss", "val_bpb"},
    "growth_curves": {"scale", "model", "seed", "round", "event", "step", "total_flops", "loss"},
    "stacking": {*FIRST, *MACHINE, "mean_val_loss"},
    "stacking_latents": {"scale", "experiment", "seed"},
    "published_growth": {"experiment"},
    "published_stacking": {"experiment", "val_loss_stack"},
}
# The default that an empty field of a stack stands for.
PLAIN = {
    "coconut_every": 0,
    "coconut_targets": "",
    "embeddings": "frozen",
    "mix_every": 0,
    "times": 1,
    "models": 2,
    "head": "first",
}


def read(path, kind, way_out="remove the line: the study writes it again"):
    """The rows of a file."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return rows_of(file, path, kind, NEEDED[kind], way_out)
    except OSError as error:
        refuse(f"{path}: cannot be read: {error.strerror}; the study writes it (make -f dev/{kind.split('_')[0]}.mk)")
    except UnicodeDecodeError as error:
        refuse(f"{path}: is no UTF-8 text: {error.reason}; take the last good version of it (git checkout)")


def rows_of(file, path, kind, needed, way_out):
    """The rows; fields are converted by COLUMNS, empty ones are None, those of other columns stay text."""
    lines = csv.reader(file, strict=True)
    try:
        header = next(lines, None)
        if not header:
            refuse(f"{path}: is empty; its first line must name the columns")
        twice = [column for column, count in Counter(header).items() if count > 1]
        missing = [column for column in COLUMNS[kind] if column not in header]
        if twice or missing:
            refuse(
                f"{path}: line 1: {'column ' + twice[0] + ' is there twice' if twice else 'there is no column ' + missing[0]}; "
                f"dev/results/README.md lists them"
            )
        rows = []
        for fields in lines:
            if not fields:
                continue
            where = f"{path}: line {lines.line_num}"
            if len(fields) != len(header):
                refuse(f"{where}: has {len(fields)} fields, and there are {len(header)} columns; {way_out}")
            row = {}
            for column, field in zip(header, fields):
                if field == "":
                    if column in needed:
                        refuse(f"{where}: {column} is empty; {way_out}")
                    row[column] = None
                    continue
                try:
                    row[column] = COLUMNS[kind].get(column, text)(field)
                except ValueError as error:
                    refuse(f"{where}: {column} must be {error}, not '{field[:60]}'; {way_out}")
            rows.append(row)
        return rows
    except csv.Error as error:
        refuse(f"{path}: line {lines.line_num}: is no CSV: {error}; {way_out}")


def expected(kind, scale):
    """The rows that the study declares at a scale, with one seed each, and in the experiment noise with all its seeds (dev/study.sh expected).
    Rows of latents have the csv stacking_latents."""
    command = [DEV / "study.sh", "expected"]
    settings = {"STUDY": kind, "SCALE": scale, "SEEDS": "1", "ONLY": ""}
    try:
        said = subprocess.run(command, cwd=DEV.parent, env={**os.environ, **settings}, capture_output=True, text=True, errors="replace")
    except OSError as error:
        refuse(f"{command[0]}: cannot be run: {error.strerror}; it says which rows {kind} has")
    if said.returncode != 0:
        refuse((said.stderr.strip().splitlines() or [f"{command[0]}: ended with exit code {said.returncode}"])[-1])
    name = f"dev/study.sh expected, of dev/{kind}.study"
    rows = rows_of(said.stdout.splitlines(), name, kind, {"csv", "scale", "experiment", "model", "seed"}, "correct its declaration")
    return [plain(kind, row) for row in rows]


def plain(kind, row):
    """Replaces empty fields of a stack by the default setting."""
    if kind == "stacking":
        row.update({column: value for column, value in PLAIN.items() if row[column] is None})
        if row["coconut_every"] == 0:
            row["coconut_targets"] = ""
    return row


class Study:
    """The rows of one study at one scale."""

    def __init__(self, kind, scale, rows, results):
        self.name, self.scale, self.results = kind, scale, results
        newest = {}
        for row in rows:
            newest[row["experiment"], row["model"], row["seed"], row["machine"]] = (
                row  # a repeated run replaces the earlier row
            )
        self.rows = list(newest.values())
        self.superseded = len(rows) - len(self.rows)
        self.seeds = sorted({row["seed"] for row in self.rows if row["experiment"] != "noise"})
        self.index = defaultdict(list)
        for row in self.rows:
            self.index[identity(self.name, row), row["seed"], row["machine"]].append(row)
        # The row of a part holds the settings that the part was trained with.
        self.parts = {
            (row["model"], row["seed"], row["machine"]): row
            for row in self.rows
            if kind == "stacking" and row["val_loss_stack"] is None and row["norm_wte"]
        }

    @cached_property
    def expected(self):
        return expected(self.name, self.scale)

    def experiment(self, name):
        """The experiment of that name; for one that is not in EXPERIMENTS, its sweep is over the columns in which its rows differ."""
        known = EXPERIMENTS[self.name].get(name)
        if known:
            return known
        rows = [row for row in self.declared(name) + self.rows if row["experiment"] == name]
        return Experiment(name.replace("_", " ").capitalize(), varying(rows))

    def declared(self, experiment):
        """The declared rows of an experiment that are compared, one per model."""
        rows = {row["model"]: row for row in self.expected if row["csv"] == self.name and row["experiment"] == experiment}
        return [row for row in rows.values() if experiment not in EXPERIMENTS[self.name] or is_compared(self.name, row)]

    def others(self):
        """Experiments that are not in EXPERIMENTS."""
        names = dict.fromkeys(row["experiment"] for row in self.expected + self.rows if row.get("csv", self.name) == self.name)
        return [name for name in names if name != "noise" and name not in EXPERIMENTS[self.name]]

    def beside(self, kind):
        """The rows of another file of this study, at this scale; none if there is no such file."""
        path = self.results / f"{kind}.csv"
        return [row for row in read(path, kind) if row["scale"] == self.scale] if path.exists() else []

    def latents(self):
        """The rows of latents, a seed of a model once: where several machines have it, from the one with the most seeds of that model.
        And how many rows that leaves out."""
        rows = self.beside("stacking_latents")
        seeds = defaultdict(lambda: defaultdict(set))
        for row in rows:
            seeds[row["model"]][machine_of(row)].add(row["seed"])
        chosen = {}
        for model, machines in seeds.items():
            for machine in sorted(reversed(machines), key=lambda machine: len(machines[machine])):   # the last one wins: the first among equals
                chosen.update({(model, seed): machine for seed in machines[machine]})
        kept = [row for row in rows if chosen[row["model"], row["seed"]] == machine_of(row)]
        return kept, len(rows) - len(kept)

    def find(self, row, wanted):
        """The row with the identity `wanted` that is compared with `row`: of the same seed and machine, and preferably of the same
        experiment. Of stacks, only one whose parts were trained with the same norms; these may differ from the norms of the stack."""
        norms = self.trained_norms(row)
        found = [
            other
            for other in self.index.get((wanted, row["seed"], row["machine"]), [])
            if not norms or self.trained_norms(other) in (norms, None)
        ]
        order = {row["experiment"]: 0, "norms": 1}
        return min(found, key=lambda other: order.get(other["experiment"], 2), default=None)

    def trained_norms(self, row):
        """The norms that a stack's parts were trained with; None where a part has no row."""
        parts = [self.parts.get((part, row["seed"], row["machine"])) for part in (row.get("parts") or "").split("+")]
        return None if None in parts else {(part["norm_wte"], part["norm_lm_head"]) for part in parts}


def identity(kind, row):
    """What distinguishes a row from others of its seed: for a stack all its settings, for a trained model its name."""
    return row["model"] if kind == "growth" or row["val_loss_stack"] is None else tuple(row[column] for column in VARIED)


def is_compared(kind, row):
    """Whether the row is neither a baseline nor a part."""
    return row["baseline"] is not None if kind == "growth" else row["unique_model"] is not None


def varying(rows):
    """The columns with settings (not measurements) that differ between these rows."""
    columns = dict.fromkeys(column for row in rows for column in row)
    said = [column for column in columns if column not in MEASURED and len({row.get(column) for row in rows}) > 1]
    return tuple(said)


def load(kind, results, scale=None):
    """The study at each scale that has rows, or at the given one; an empty list if there is no row yet."""
    if scale is not None and scale not in SCALES:
        refuse(f"--scale '{scale[:60]}': must be {', '.join(SCALES[:-1])} or {SCALES[-1]}")
    if not Path(results).is_dir():
        refuse(f"--results {results}: is no folder; it is where {kind}.csv is")
    path = Path(results) / f"{kind}.csv"
    rows = read(path, kind) if path.exists() else []
    for row in rows:
        row["machine"] = machine_of(row)
        plain(kind, row)
    scales = [s for s in dict.fromkeys(row["scale"] for row in rows) if scale in (None, s)]
    return [Study(kind, s, [row for row in rows if row["scale"] == s], Path(results)) for s in scales]


@cache
def published(kind):
    """The published numbers, corrected; `printed` is the number as published. dev/results/published_*.csv has a note on each mistake."""
    rows = read(RESULTS / f"published_{kind}.csv", f"published_{kind}", "take the last good version of it (git checkout)")
    for row in rows:
        row["printed"] = row.get("val_loss_stack")
        if row.get("corrected_unique_model") is not None:
            row["unique_model"] = row["corrected_unique_model"]
        for column in ("val_loss_stack", "train_acceleration"):
            if row.get(f"corrected_{column}") is not None:
                row[column] = row[f"corrected_{column}"]
    return rows


# --------------------------------------------------------------------------------------------------------------- verdicts

# 97.5 % quantiles of Student's t, for 1, 2, ... degrees of freedom. More seeds use the last one, which is conservative.
T = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
    2.120,
    2.110,
    2.101,
    2.093,
    2.086,
)


def t_of(seeds):
    return T[min(seeds - 1, len(T)) - 1]


def standard_error(values):
    return stdev(values) / math.sqrt(len(values))


def verdict(differences):
    """For paired differences, one per seed: whether they are significant (95 %), and if so in which direction."""
    values = list(differences)
    if len(values) < 2:
        return "one seed" if values else "no pair"
    same_sign = all(d > 0 for d in values) or all(d < 0 for d in values)
    if same_sign and abs(mean(values)) > t_of(len(values)) * standard_error(values):
        return f"*holds*: {'lower' if values[0] < 0 else 'higher'}"
    return "*cannot be told*"


def paired(left, right):
    """Differences of two dicts of values by seed, for the seeds that are in both."""
    return {seed: left[seed] - right[seed] for seed in sorted(left.keys() & right.keys())}


def slope(points):
    """The slope of the least-squares line through the points (x, y)."""
    middle = mean(x for x, _ in points)
    return sum((x - middle) * y for x, y in points) / sum((x - middle) ** 2 for x, _ in points)


# ------------------------------------------------------------------------------------------------------------- the sweeps


class Experiment:
    """A sweep: the columns that it varies; `usual`, their default setting; `borrows`, whether rows of other experiments that have the
    default setting belong to it. Its levels are those that the study declares (Study.declared)."""

    def __init__(self, title, columns, usual=None, borrows=True):
        self.title, self.columns, self.usual, self.borrows = title, columns, usual, borrows


GROWTH = {
    "miniseries": Experiment("Miniseries, with growth and without", ("depth",)),
    "warmdown": Experiment("Warmdown of the deep round", ("warmdown",), {"warmdown": 0.5}),
    "early": Experiment("Early FLOPs: length of the shallow round, against baselines of the same FLOPs", ("study_ratio",)),
    "fixed": Experiment(
        "Fixed FLOPs: length of the shallow round, with and without a warmdown in it",
        ("shallow_warmdown", "study_ratio"),
        {"shallow_warmdown": 0.5},
    ),
    "factor": Experiment("Growth factor", ("factor",), {"factor": 2}),
    "order": Experiment("Order of the layers", ("order",), {"order": "stack"}),
    "state": Experiment(
        "Optimizer state and schedule after growth", ("optimizer", "schedule"), {"optimizer": "reset", "schedule": "restart"}
    ),
}
RATIOS = ("shallow_data_ratio", "shallow_warmdown", "warmdown")
BOTH = [False, True]
CELL = ("use_first_layer", "use_last_layer")
NORMS = [("none", "rms_norm"), ("rms_norm", "rms_norm"), ("layer_norm", "layer_norm"), ("none", "none")]  # norm_wte, norm_lm_head
DOCUMENT_NORMS = NORMS[:3]
STACKING = {
    "norms": Experiment("Every stack", ("norms", "unique_model", *CELL)),
    "loop": Experiment(
        "Parts that were trained with looping",
        ("coconut_targets", "coconut_every", "unique_model", *CELL),
        {"coconut_every": 0, "coconut_targets": ""},
        borrows=False,
    ),
    "long": Experiment(
        "Parts that were trained on five times the tokens", ("times", "unique_model", *CELL), {"times": 1}, borrows=False
    ),
    "embeddings": Experiment(
        "Embeddings frozen from the first model, and each model's own",
        ("embeddings", "unique_model"),
        {"embeddings": "frozen", "head": "first"},
    ),
    "mix": Experiment(
        "Parts that were mixed with each other in training, stacks of two and of three",
        ("mix_every", "models", "unique_model"),
        {"mix_every": 0},
        borrows=False,
    ),
}
EXPERIMENTS = {"growth": GROWTH, "stacking": STACKING}
# Columns that are not settings: measurements and labels.
MEASURED = {"csv", "machine", "command", "commit", "seed", "scale", "experiment", "model", "baseline", "parts", *MACHINE}
MEASURED |= set("val_loss_stack mean_val_loss total_flops tokens parameters start_val_loss val_loss val_bpb train_loss".split())
MEASURED |= set("train_acceleration val_acceleration seconds shallow_data_ratio deep_data_ratio".split())
# Settings of training: in the row of a part its own, in the row of a stack those of its parts.
TRAINED = ("norm_wte", "norm_lm_head", "coconut_every", "coconut_targets", "times", "mix_every")
VARIED = (
    "norm_wte",
    "norm_lm_head",
    "norm_inter_model",
    "coconut_targets",
    "coconut_every",
    "times",
    "embeddings",
    "head",
    "mix_every",
    "models",
    "unique_model",
    "use_first_layer",
    "use_last_layer",
)


def study_ratio(row):
    """The published study's data ratio of a row's shallow round, taken from its name (fixed-3.25-w0). The columns have the actual ratio,
    which is rounded to whole steps and may be multiplied by the scale."""
    found = re.fullmatch(r"[a-z]+-([0-9]+(?:\.[0-9]+)?)(?:-.*)?", row["model"])
    return float(found[1]) if found else row["shallow_data_ratio"]


def value_of(row, column):
    if column == "study_ratio":
        return study_ratio(row)
    return (row["norm_wte"], row["norm_lm_head"]) if column == "norms" else row.get(column)


class Point:
    """One level of a sweep: a row per seed and, in growth, the baseline's row per seed."""

    def __init__(self, level, rows, baselines):
        self.level, self.rows, self.baselines = level, rows, baselines
        self.row = next(iter(rows.values()))

    def values(self, column, of_baseline=False):
        rows = self.baselines if of_baseline else self.rows
        return {seed: row[column] for seed, row in sorted(rows.items()) if row[column] is not None}

    def against_baseline(self, column):
        return paired(self.values(column), self.values(column, of_baseline=True))


class Sweep:
    """The points of an experiment, in order, and notes on rows that are missing or left out."""

    def __init__(self, study, experiment):
        self.study, self.name, self.experiment = study, experiment, study.experiment(experiment)
        self.declared = study.declared(experiment)
        self.notes, self.left_out = [], 0
        growth, known = study.name == "growth", experiment in EXPERIMENTS[study.name]
        rows = [
            row
            for row in study.rows
            if row["experiment"] == experiment
            and (not known or (row["baseline"] if growth else row["val_loss_stack"]) is not None)
        ]
        rows += self.borrowed(rows) if growth else self.borrowed_stacks(rows)
        rows = self.one_machine(rows)
        if growth:
            rows = self.with_baseline(rows)
        groups, twins = defaultdict(dict), []
        for row in rows:
            if groups[identity(study.name, row)].setdefault(row["seed"], row) is not row:
                twins.append(row["model"])
        if twins:
            self.leave_out(len(twins), f"with the settings and the seed of another row: {', '.join(twins)}")
        self.points = []
        for members in groups.values():
            level = self.level(members)
            baselines = {seed: self.baseline(row) for seed, row in members.items() if growth and row["baseline"] is not None}
            self.points.append(Point(level, members, baselines))
        order = {column: list(dict.fromkeys(value_of(row, column) for row in self.declared)) for column in self.experiment.columns}
        self.points.sort(key=lambda point: [place(order[column], value) for column, value in point.level.items()])
        self.seeds = sorted({row["seed"] for row in rows})
        self.machines = defaultdict(list)
        for seed in self.seeds:
            self.machines[next(row["machine"] for row in rows if row["seed"] == seed)].append(seed)
        self.say_missing()

    def borrowed(self, rows):
        """Rows of other sweeps that belong to this one, too (a model that several sweeps declare has its row in the first): those with
        this sweep's default setting that otherwise agree with all its rows."""
        fixed = [
            column
            for column in ("factor", "order", "optimizer", "schedule", "depth", "width", *RATIOS, "baseline")
            if column not in self.experiment.columns and len({row[column] for row in rows}) == 1
        ]
        usual = self.experiment.usual
        if not rows or not usual or any(self.is_usual(row) for row in rows):
            return []
        found = [
            row
            for row in self.study.rows
            if row["baseline"] is not None
            and self.is_usual(row)
            and all(row[column] == rows[0][column] for column in fixed)
            and all(value_of(row, column) is not None for column in self.experiment.columns)
        ]
        model_of = {}  # a level has one model, the first
        for row in found:
            model_of.setdefault(tuple(value_of(row, column) for column in self.experiment.columns), row["model"])
        self.notes += [
            f"`{model}` has its row in another sweep, and serves here too." for model in dict.fromkeys(model_of.values())
        ]
        return [row for row in found if row["model"] in model_of.values()]

    def borrowed_stacks(self, rows):
        """The same for stacks: those with the default setting, whose rows are in the experiment norms."""
        usual = self.experiment.usual
        if not usual or not self.experiment.borrows:
            return []
        there = {identity("stacking", row) for row in rows}
        found = [self.study.find(row, identity("stacking", {**row, **usual})) for row in rows]
        found = [row for row in found if row and identity("stacking", row) not in there]
        unseen = {(row["model"], row["seed"], row["machine"]): row for row in found}
        self.notes += [f"`{model}` has its row in another sweep, and serves here too." for model in {m: None for m, _, _ in unseen}]
        return list(unseen.values())

    def is_usual(self, row):
        return all(row[column] == value for column, value in self.experiment.usual.items())

    def baseline(self, row):
        return self.study.find(row, row["baseline"])

    def one_machine(self, rows):
        by_seed = defaultdict(lambda: defaultdict(list))
        for row in rows:
            by_seed[row["seed"]][row["machine"]].append(row)
        kept, others = [], Counter()
        for machines in by_seed.values():
            pairs = lambda rows: sum(not self.lacks_baseline(row) for row in rows)
            best = max(machines, key=lambda machine: (pairs(machines[machine]), len(machines[machine])))  # the first among equals
            kept += machines[best]
            others.update({machine: len(rows) for machine, rows in machines.items() if machine != best})
        for machine, count in others.items():
            self.leave_out(count, f"on another machine ({machine_name(machine)})")
        return kept

    def with_baseline(self, rows):
        alone = [row for row in rows if self.lacks_baseline(row)]
        if alone:
            self.leave_out(
                len(alone),
                "without a baseline of their seed and machine: "
                + ", ".join(f"{row['model']} of seed {row['seed']}" for row in alone),
            )
        return [row for row in rows if not self.lacks_baseline(row)]

    def lacks_baseline(self, row):
        return self.study.name == "growth" and row["baseline"] is not None and self.baseline(row) is None

    def leave_out(self, count, why):
        self.left_out += count
        self.notes.append(f"Left out: {count} {'row' if count == 1 else 'rows'} {why}.")

    def level(self, members):
        levels = {tuple(value_of(row, column) for column in self.experiment.columns) for row in members.values()}
        if len(levels) > 1:
            model = next(iter(members.values()))["model"]
            refuse(
                f"{self.study.results / self.study.name}.csv: the seeds of {model} differ in "
                f"{' or '.join(self.experiment.columns)}; give each setting a name of its own"
            )
        return dict(zip(self.experiment.columns, levels.pop()))

    def say_missing(self):
        there = [point.level for point in self.points]
        if not there:
            self.notes.append("Missing: all of it; no row yet.")
        # A declared row is identified by its model: two rows may differ in a setting that the table has no column for.
        models = {point.row["model"] for point in self.points} | {row["model"] for row in self.study.rows}
        columns = [*self.experiment.columns]
        columns += [c for c in varying(self.declared) if c not in columns and not ("norms" in columns and c.startswith("norm_"))]
        levels = {row["model"]: {column: value_of(row, column) for column in columns} for row in self.declared}
        wanted = [level for model, level in levels.items() if model not in models]
        if there and wanted:
            self.notes.append("Missing, no seed of: " + summarized(wanted, list(levels.values())) + ".")
        lacking = defaultdict(list)
        for point in self.points:
            seeds = tuple(seed for seed in self.study.seeds if seed not in point.rows)
            if seeds:
                lacking[seeds].append(point)
        for seeds, points in lacking.items():
            which = summarized([point.level for point in points], there)
            self.notes.append(f"Missing, {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))} of: {which}.")

    def against_usual(self, point, column):
        """Differences from the same model with the default setting; None for the default itself."""
        changed = self.experiment.usual
        if self.study.name == "stacking":
            return self.against(point, changed, column)
        if self.is_usual(point.row):
            return None
        usual = next((other for other in self.points if other.level == {**point.level, **changed}), None)
        return {
            seed: value - usual.rows[seed][column]
            for seed, value in point.values(column).items()
            if usual and seed in usual.rows and usual.rows[seed]["machine"] == point.rows[seed]["machine"]
        }

    def against(self, point, changed, column):
        """For a stack: differences from the stack with the settings `changed`; None if it has these itself. For a stack of one model
        with itself, the column embeddings does not matter."""
        differences = {}
        for seed, row in sorted(point.rows.items()):
            other = {**row, **changed}
            if identity("stacking", other) == identity("stacking", row):
                return None
            found = self.study.find(row, identity("stacking", other))
            if found is None and not row["unique_model"]:
                found = self.study.find(row, identity("stacking", {**other, "embeddings": "frozen"}))
            if found is not None:
                differences[seed] = row[column] - found[column]
        return differences


def place(order, value):
    """Sort key: values in the order that the study declares them, then all others."""
    if value in order:
        return order.index(value), 0, ""
    return (len(order), 0, shown(value)) if isinstance(value, (str, tuple)) else (len(order), value or 0, "")


def machine_of(row):
    return tuple(row[column] for column in MACHINE)


def machine_name(machine):
    processor, precision, threads = machine
    return f"{processor}, {precision}, {threads} {'thread' if threads == 1 else 'threads'}"


def shown(value):
    if isinstance(value, tuple):
        return "/".join(value)
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else "" if value is None else str(value)


def level_name(level):
    return ", ".join(f"{column} {shown(value)}" for column, value in level.items())


def summarized(levels, of_all):
    """A short description of some levels out of all; where they include every level with some value of a column, by that value."""
    if len(levels) == len(of_all) > 1:
        return "every row"
    words = []
    for column in of_all[0]:
        for value in dict.fromkeys(level.get(column) for level in levels):
            alike = [level for level in of_all if level.get(column) == value]
            if len(alike) > 1 and all(level in levels for level in alike):
                words.append(f"every row of {column} {shown(value)}")
                levels = [level for level in levels if level not in alike]
    return "; ".join(words + [level_name(level) for level in levels])


def chance(study):
    """The loss of a uniform guess, ln(vocabulary), or None. The vocabulary is read from the .study file, at the study's scale."""
    path = DEV / f"{study.name}.study"
    described = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    of_scale = re.search(rf"^ *{study.scale}\).*?;;", described, re.MULTILINE | re.DOTALL)
    size = re.search(r"--vocab-size ([0-9]{1,9})", of_scale[0]) if of_scale else None
    return math.log(int(size[1])) if size else math.log(50257) if study.scale == "paper" else None


# ----------------------------------------------------------------------------------------------------------- over many stacks


def matched(stacks, changed, where):
    """By seed: the mean difference between the stacks that `where` selects and those that differ from them only by the settings
    `changed`; and the number of pairs."""
    rows = {(seed, identity("stacking", row)): row for point in stacks.points for seed, row in point.rows.items()}
    found = defaultdict(list)
    for (seed, _), row in rows.items():
        other = rows.get((seed, identity("stacking", {**row, **changed}))) if where(row) else None
        if other:
            found[seed].append(row["val_loss_stack"] - other["val_loss_stack"])
    most = max(map(len, found.values()), default=0)
    return {seed: mean(values) for seed, values in sorted(found.items()) if len(values) == most}, most


def means(stacks, where):
    """By seed: the mean loss of the stacks that `where` selects, for the seeds that have all of them; and the number of stacks."""
    found = defaultdict(list)
    for point in stacks.points:
        if where(point.row):
            for seed, row in point.rows.items():
                found[seed].append(row["val_loss_stack"])
    most = max(map(len, found.values()), default=0)
    return {seed: mean(values) for seed, values in sorted(found.items()) if len(values) == most}, most


def split_columns(rows):
    """The columns of rows of latents: those with numbers, and those that identify the row."""
    columns = [column for column in rows[0] if column not in ("scale", "seed", "commit", "tokens", *MACHINE)]
    numbers = [column for column in columns if all(is_number(row[column]) for row in rows) and any(row[column] for row in rows)]
    return numbers, [column for column in columns if column not in numbers]


def is_number(field):
    try:
        return field is None or number(field) is not None
    except ValueError:
        return False
