#!/usr/bin/env python3
"""Makes the tables of a study, stacking or growth, from its rows (dev/results/STUDY.csv): Markdown, with the published numbers beside ours.

Without --write they are printed. With --write they go into STUDY.md in the folder of the rows, each between its marks, the lines
<!-- table: SCALE SECTION --> and <!-- end -->; the text outside the marks is left as it is."""

import argparse
import math
import re
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

sys.dont_write_bytecode = True
import studies
from script import refuse, write_whole
from studies import (
    BOTH,
    CELL,
    DOCUMENT_NORMS,
    GROWTH,
    NORMS,
    RESULTS,
    STACKING,
    STUDIES,
    Sweep,
    level_name,
    machine_name,
    matched,
    means,
    paired,
    shown,
    standard_error,
    t_of,
    verdict,
)

BPB, NATS, STACK, SHARE = 4, 4, 3, 1  # digits: bits per byte, nats of a model, nats of a stack, per cent


# ------------------------------------------------------------------------------------------------------------ pieces of Markdown


def grid(header, rows):
    """A table; an empty list if there are no rows."""
    if not rows:
        return []
    line = lambda cells: "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
    return [line(header), "|" + "---|" * len(header), *map(line, rows), ""]


def with_error(values, digits, sign=False):
    """The mean, and its standard error if there are two or more seeds."""
    values = list(values.values())
    if not values:
        return "–"
    text = f"{mean(values):{'+' if sign else ''}.{digits}f}"
    return text + (f" ± {standard_error(values):.{digits}f}" if len(values) > 1 else "")


def each(values, seeds, digits, sign=False):
    """The values in the order of the seeds, – where a seed has none."""
    return " ".join(f"{values[seed]:{'+' if sign else ''}.{digits}f}" if seed in values else "–" for seed in seeds)


def flops(value):
    if not value:
        return "–"
    power = math.floor(math.log10(value))
    mantissa = f"{value / 10.0 ** power:.2f}"
    return f"1.00e{power + 1}" if mantissa == "10.00" else f"{mantissa}e{power}"


def listed(seeds):
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {' '.join(map(str, seeds))}"


def about(sweep):
    """The text below a table: its seeds and machines, and what is missing or left out."""
    lines = [f"{listed(seeds).capitalize()}, in this order: {machine_name(machine)}." for machine, seeds in sweep.machines.items()]
    return ["  \n".join(lines + sweep.notes), ""]


def stack_unit(row):
    """Stacks without any norm differ by tens of nats: together with them the s.d. of the others could not be seen."""
    return "nats of a stack" + (" without any norm" if row.get("norm_wte") == row.get("norm_lm_head") == "none" else "")


class Comparisons:
    """Collects all comparisons with a verdict, to state at the end how many would hold by chance alone."""

    def __init__(self):
        self.differences = defaultdict(list)

    def judged(self, differences, unit=None):
        if unit and len(differences) > 1:
            self.differences[unit].append(list(differences.values()))
        return verdict(differences.values())

    def pooled(self, unit):
        """The pooled standard deviation of paired differences over seeds, and the number of comparisons."""
        found = self.differences[unit]
        freedom = sum(len(values) - 1 for values in found)
        return math.sqrt(sum((len(values) - 1) * stdev(values) ** 2 for values in found) / freedom) if freedom else None, len(found)


def difference_row(differences, seeds, digits, comparisons, unit=None):
    return [
        with_error(differences, digits, True),
        each(differences, seeds, digits, True),
        len(differences),
        comparisons.judged(differences, unit),
    ]


DIFFERENCE = ["difference", "of each seed", "n", "verdict"]


# ------------------------------------------------------------------------------------------------------------------- both studies


def noise(study, measures, comparisons):
    """How much seeds of one model differ, and so how large a difference must be to be significant."""
    rows = [row for row in study.rows if row["experiment"] == "noise" and (study.name == "growth" or row["val_loss_stack"] is None)]
    models = dict.fromkeys(row["model"] for row in rows)
    # Where another experiment uses a seed of this model, too, the row is there.
    rows += [row for row in study.rows if row["experiment"] != "noise" and row["model"] in models]
    table, notes = [], []
    for model in models:
        machines, of_seed = defaultdict(dict), [row for row in rows if row["model"] == model]
        for row in of_seed:
            machines[row["machine"]][row["seed"]] = row
        machine = max(machines, key=lambda m: len(machines[m]))
        members = machines[machine]
        others = sum(len(found) for m, found in machines.items() if m != machine)
        notes.append(f"`{model}`: {listed(sorted(members))}, in this order: {machine_name(machine)}.")
        if others:
            notes.append(f"Left out: {others} {'row' if others == 1 else 'rows'} of `{model}` on other machines.")
        wanted = {row["seed"] for row in study.expected if (row["experiment"], row["model"]) == ("noise", model)}
        if wanted - members.keys():
            notes.append(f"Missing: {len(wanted - members.keys())} of {len(wanted)} seeds of `{model}`.")
        for column, unit, digits in measures:
            values = {seed: row[column] for seed, row in sorted(members.items()) if row[column] is not None}
            if not values:
                continue
            line = [f"`{model}`, {column} ({unit})", with_error(values, digits), each(values, sorted(members), digits), len(values)]
            if len(values) > 1:
                deviation = stdev(values.values())
                one, three = t_of(len(values)) * math.sqrt(2) * deviation, t_of(3) * math.sqrt(2 / 3) * deviation
                line += [f"{deviation:.{digits}f}", f"{one:.{digits}f}", f"{three:.{digits}f}"]
            else:
                line += ["–"] * 3
            table.append(line)
    if not table:
        return ["Missing: all of it; no row yet.", ""]
    text = grid(["model", "mean ± s.e.", "of each seed", "n", "s.d. over seeds", "one pair shows", "three pairs show"], table)
    pooled = []
    for unit, digits in (("bpb", BPB), ("nats of a model", NATS), ("nats of a stack", STACK), ("nats of a stack without any norm", STACK)):
        deviation, count = comparisons.pooled(unit)
        if deviation is not None:
            pooled.append([unit, count, f"{deviation:.{digits}f}", f"{t_of(3) * deviation / math.sqrt(3):.{digits}f}"])
    text += [
        "*One pair shows*: a larger difference of a single seed is significant (95 %): it exceeds t √2 s.d.; *three pairs "
        "show*: the mean of three must exceed 4.303 √(2/3) s.d. Both assume that the two runs of a pair vary independently. In fact "
        "pairs share seed and data; this is how much their differences varied in "
        "all comparisons below:",
        "",
    ]
    text += grid(["unit", "comparisons of two seeds or more", "s.d. of a paired difference", "three pairs show"], pooled)
    if not pooled:
        text += ["no comparison has two seeds yet.", ""]
    return text + ["  \n".join(notes), ""]


def reading(study, sections, comparisons):
    count = sum(line.count("holds*") + line.count("cannot be told*") for lines in sections.values() for line in lines)
    text = [
        "± is the standard error over seeds (n). Differences are paired: the same seed, data and machine. *holds*: all seeds "
        "agree in sign, and the mean is more than t standard errors from 0 (95 %; t = "
        f"{', '.join(f'{t_of(n):.2f} for {n}' for n in (2, 3, 4, 8))} seeds), with the direction that it has; else *cannot be "
        "told*. "
        f"There are {count} such verdicts here: if there were no difference anywhere, {math.ceil(count / 20)} or fewer would hold by "
        "chance."
    ]
    if study.superseded:
        text.append(
            f"If a run was repeated, its last row counts; {study.superseded} earlier "
            f"{'row is' if study.superseded == 1 else 'rows are'} left out."
        )
    if study.name == "stacking":
        odds = studies.chance(study)
        text.append(
            f"Losses are in nats per token. Chance, a uniform guess over the vocabulary, is {odds:.3f} nats here, and ln 50257 = "
            "10.825 in the published study."
            if odds
            else "Losses are in nats per token. Chance is not known: dev/stacking.study names no --vocab-size of this scale."
        )
    else:
        text.append("Bits per byte (bpb) are of validation text, losses in nats per token; lower is better.")
    return [" ".join(text), ""]


# ------------------------------------------------------------------------------------------------------------------------ growth


def published_growth(experiment, level):
    """The published row of a level, and of its baseline."""
    rows = [row for row in studies.published("growth") if row["experiment"] == experiment]
    wanted = {"shallow_data_ratio" if column == "study_ratio" else column: value for column, value in level.items()}
    found = next((row for row in rows if row["baseline"] and all(row[column] == value for column, value in wanted.items())), None)
    return found, next((row for row in rows if found and row["model"] == found["baseline"]), None)


def level_cells(point):
    return [shown(value) for value in point.level.values()]


def growth_sweep(study, experiment, comparisons):
    sweep = Sweep(study, experiment)
    if not sweep.points:
        return about(sweep)
    seeds, columns = sweep.seeds, list(sweep.experiment.columns)
    twins = len({tuple(point.level.values()) for point in sweep.points}) < len(sweep.points)
    header = columns + (["model"] if twins else [])
    cells = lambda point: level_cells(point) + ([f"`{point.row['model']}`"] if twins else [])

    rows = []
    for point in sweep.points:
        row, base = point.row, next(iter(point.baselines.values()))
        ratios = " + ".join(f"{row[column]:.2f}" for column in ("shallow_data_ratio", "deep_data_ratio") if row[column] is not None)
        rows.append(
            cells(point)
            + [
                ratios,
                flops(row["total_flops"]),
                with_error(point.values("val_bpb"), BPB),
                each(point.values("val_bpb"), seeds, BPB),
                len(point.rows),
                flops(base["total_flops"]),
                with_error(point.values("val_bpb", True), BPB),
                each(point.values("val_bpb", True), seeds, BPB),
            ]
        )
    text = grid(
        header
        + ["data ratios", "FLOPs", "grown, bpb", "of each seed", "n", "FLOPs of the baseline", "baseline, bpb", "of each seed"],
        rows,
    )

    rows = []
    for point in sweep.points:
        printed, printed_base = published_growth(experiment, point.level)
        beside = (
            f"{printed['val_bpb']:.4f} - {printed_base['val_bpb']:.4f} = {printed['val_bpb'] - printed_base['val_bpb']:+.4f}"
            if printed
            else "in a chart only" if experiment in ("miniseries", "warmdown") else "–"
        )
        rows.append(
            cells(point)
            + difference_row(point.against_baseline("val_bpb"), seeds, BPB, comparisons, "bpb")
            + [
                with_error(point.against_baseline("val_loss"), NATS, True),
                comparisons.judged(point.against_baseline("val_loss"), "nats of a model"),
                beside,
            ]
        )
    text += ["Grown minus its baseline:", ""]
    text += grid(header + ["difference, bpb", *DIFFERENCE[1:], "in nats", "verdict", "published, bpb"], rows)

    usual = sweep.experiment.usual
    rows = [
        cells(point) + difference_row(differences, seeds, BPB, comparisons, "bpb")
        for point in sweep.points
        if usual
        for differences in [sweep.against_usual(point, "val_bpb")]
        if differences
    ]
    if rows:
        text += [f"Minus the same with {level_name(usual)}:", ""] + grid(header + ["difference, bpb", *DIFFERENCE[1:]], rows)
    return text + trend(sweep, comparisons) + about(sweep)


def trend(sweep, comparisons):
    """For the sweep early: does a longer shallow round make the result worse, relative to its baseline?"""
    if sweep.name != "early":
        return []
    slopes = {}
    for seed in sweep.seeds:
        line = [
            (point.level["study_ratio"], point.against_baseline("val_bpb")[seed])
            for point in sweep.points
            if seed in point.rows
        ]
        if len(line) == len(sweep.points) > 1:
            slopes[seed] = studies.slope(line)
    if not slopes:
        return []
    document = [
        (ratio, found["val_bpb"] - base["val_bpb"])
        for ratio in map(studies.study_ratio, sweep.declared)
        for found, base in [published_growth("early", {"study_ratio": ratio})]
        if found
    ]
    return ["Trend of the difference, bpb per 1 of the shallow data ratio (least squares, a slope a seed):", ""] + grid(
        ["slope", *DIFFERENCE[1:], "published"],
        [difference_row(slopes, sweep.seeds, 5, comparisons) + [f"{studies.slope(document):+.5f}" if len(document) > 1 else "–"]],
    )


def grown_points(study):
    for experiment in GROWTH:
        sweep = Sweep(study, experiment)
        for point in sweep.points:
            if point.row["experiment"] == experiment:  # a borrowed row is listed in its own sweep
                yield experiment, sweep, point


def starts(study, comparisons):
    rows, seeds = [], study.seeds
    for experiment, sweep, point in grown_points(study):
        start = point.values("start_val_loss")
        if start:
            rows.append(
                [
                    experiment,
                    f"`{point.row['model']}`",
                    with_error(start, NATS),
                    each(start, seeds, NATS),
                    len(start),
                    with_error(point.values("start_val_loss", True), NATS),
                    *[
                        cell
                        for i, cell in enumerate(difference_row(point.against_baseline("start_val_loss"), seeds, NATS, comparisons))
                        if i in (0, 3)
                    ],
                    with_error(point.values("val_loss"), NATS),
                ]
            )
    return grid(
        [
            "sweep",
            "model",
            "grown, before its first step",
            "of each seed",
            "n",
            "baseline, before its first step",
            "difference",
            "verdict",
            "grown, at the end",
        ],
        rows,
    ) + (
        [
            "Validation loss in nats. The published study has only a screenshot of these, without numbers in its text.",
            f"Of each seed: {listed(seeds)}, in this order.",
            "",
        ]
        if rows
        else ["Missing: all of it; no row yet.", ""]
    )


def acceleration(study, comparisons):
    printed = {
        row["model"]: row["train_acceleration"] for row in studies.published("growth") if row["train_acceleration"] is not None
    }
    rows, seeds = [], study.seeds
    for experiment, sweep, point in grown_points(study):
        line = [experiment, f"`{point.row['model']}`"]
        for column in ("train_acceleration", "val_acceleration"):
            saved = {seed: 100 * value for seed, value in point.values(column).items()}
            reached = f"{len(saved)} of {len(point.rows)}"
            says = comparisons.judged(saved) if len(saved) == len(point.rows) else "*cannot be told*: not reached by all"
            line += [with_error(saved, SHARE, True), each(saved, seeds, SHARE, True), reached, says]
        found = published_growth(experiment, point.level)[0]
        rows.append(
            line + [f"{100 * found['train_acceleration']:.1f}" if found and found["train_acceleration"] is not None else "–"]
        )
    head = ["mean", "of each seed", "reached by", "verdict"]
    paper = f"{100 * printed['arXiv 2405.15319']:.0f}"
    return grid(
        [
            "sweep",
            "model",
            *(f"training loss: {h}" for h in head),
            *(f"validation loss: {h}" for h in head),
            "published (training loss)",
        ],
        rows,
    ) + (
        [
            "Per cent of the baseline's FLOPs that were saved in reaching its final loss; negative: more were needed. The 54.5 % that the "
            f"study quotes from arXiv 2405.15319 are, as a share of saved compute, {paper} %.",
            f"Of each seed: {listed(seeds)}, in this order.",
            "",
        ]
        if rows
        else ["Missing: all of it; no row yet.", ""]
    )


# --------------------------------------------------------------------------------------------------------------------- stacking


def published_stacks(experiment, **wanted):
    return [
        row
        for row in studies.published("stacking")
        if row["experiment"] == experiment and all(row[column] == value for column, value in wanted.items())
    ]


def average(rows):
    return mean(row["val_loss_stack"] for row in rows)


def parts(study, comparisons):
    models = defaultdict(dict)
    machines = set()
    for row in study.rows:
        if row["val_loss_stack"] is None and row["seed"] in study.seeds:
            models[row["model"], row["machine"]][row["seed"]] = row
            machines.add(row["machine"])
    rows = []
    for (model, machine), members in models.items():
        row = next(iter(members.values()))
        values = {seed: found["mean_val_loss"] for seed, found in members.items()}
        looping = f"every {shown(row['coconut_every'])}, {row['coconut_targets']}" if row["coconut_every"] else ""
        rows.append(
            [
                f"`{model}`",
                row["norm_wte"] or "",
                row["norm_lm_head"] or "",
                looping,
                row["embeddings"],
                shown(row["mix_every"]) if row["mix_every"] else "",
                shown(row["times"]),
                flops(row["total_flops"]),
                with_error(values, NATS),
                each(values, study.seeds, NATS),
                len(values),
            ]
            + ([machine_name(machine)] if len(machines) > 1 else [])
        )
    if not rows:
        return ["Missing: all of it; no row yet.", ""]
    return grid(
        [
            "part",
            "norm_wte",
            "norm_lm_head",
            "looping",
            "embeddings",
            "mix_every",
            "times",
            "FLOPs",
            "val loss",
            "of each seed",
            "n",
        ]
        + (["machine"] if len(machines) > 1 else []),
        rows,
    ) + [f"Of each seed: {listed(study.seeds)}, in this order. The published parts have 3.28 to 3.31 (mean_val_loss below)."] + missing_parts(study)


def missing_parts(study):
    there = {row["model"] for row in study.rows}
    lacking = [row["model"] for row in study.expected if row["parts"] == row["model"] and row["model"] not in there]
    return [f"Missing, no seed of: {', '.join(f'`{model}`' for model in dict.fromkeys(lacking))}.", ""] if lacking else [""]


def stack_rows(sweep, of_parts=False):
    """The columns that distinguish the points, those of the sweep first, and a function that gives their cells for a point. For the parts,
    without the columns of the layers at the seam, which do not change them."""
    columns = [column for column in sweep.experiment.columns if not (of_parts and column in CELL)]
    columns += [
        column
        for column in studies.VARIED
        if column not in columns
        and not (of_parts and column in CELL)
        and not ("norms" in columns and column.startswith("norm_"))
        and len({point.row[column] for point in sweep.points}) > 1
    ]
    cells = lambda point: [shown(studies.value_of(point.row, column)) for column in columns]
    return ["norm_wte/norm_lm_head" if column == "norms" else column for column in columns], cells


def published_stack(experiment, point):
    """The published losses of a stack and of its parts."""
    row = point.row
    cell = {column: row[column] for column in CELL}
    if experiment == "norms":
        found = published_stacks(
            "norms", norm_wte=row["norm_wte"], norm_lm_head=row["norm_lm_head"], unique_model=row["unique_model"], **cell
        )
    elif experiment == "loop" and row["coconut_targets"] == "next":
        found = published_stacks("loop", coconut_every=row["coconut_every"], unique_model=row["unique_model"], **cell)
    else:
        found = []
    return f"{found[0]['val_loss_stack']:.2f} (parts {found[0]['mean_val_loss']:.2f})" if found else "–"


class Against:
    """A comparison of stacks with those that have the settings `changed`. parts_too: of their parts as well. only: of which stacks."""

    def __init__(self, title, changed, parts_too=False, only=lambda row: True):
        self.title, self.changed, self.parts_too, self.only = title, changed, parts_too, only


def stacks(study, experiment, comparisons, against=()):
    """Losses of the stacks, against their parts and against chance; then against other stacks."""
    sweep = Sweep(study, experiment)
    if not sweep.points:
        return about(sweep)
    header, cells = stack_rows(sweep)
    header_of_parts, cells_of_parts = stack_rows(sweep, of_parts=True)
    seeds, odds = sweep.seeds, studies.chance(study)
    rows = []
    for point in sweep.points:
        loss, of_parts = point.values("val_loss_stack"), point.values("mean_val_loss")
        above = paired(loss, of_parts)
        rows.append(
            cells(point)
            + [
                with_error(loss, STACK),
                each(loss, seeds, STACK),
                len(loss),
                with_error(of_parts, STACK),
                with_error(above, STACK, True),
                comparisons.judged(above),
            ]
            + (
                [
                    with_error({seed: value - odds for seed, value in loss.items()}, STACK, True),
                    comparisons.judged({seed: value - odds for seed, value in loss.items()}),
                ]
                if odds
                else []
            )
            + [published_stack(experiment, point)]
        )
    text = grid(
        header
        + ["val_loss_stack", "of each seed", "n", "mean_val_loss", "stack minus parts", "verdict"]
        + (["stack minus chance", "verdict"] if odds else [])
        + ["published, labels corrected"],
        rows,
    )
    for other in against:
        rows, of_parts, unpaired = [], [], 0
        for point in sweep.points:
            differences = sweep.against(point, other.changed, "val_loss_stack") if other.only(point.row) else None
            if differences is None:
                continue
            unpaired += len(point.rows) - len(differences)
            if differences:
                rows.append(cells(point) + difference_row(differences, seeds, STACK, comparisons, stack_unit(point.row)))
                if other.parts_too and cells_of_parts(point) not in [row[: len(header_of_parts)] for row in of_parts]:
                    of_parts.append(
                        cells_of_parts(point)
                        + difference_row(
                            sweep.against(point, other.changed, "mean_val_loss"), seeds, NATS, comparisons, "nats of a model"
                        )
                    )
        if rows:
            text += [f"{other.title}:", ""] + grid(header + DIFFERENCE, rows)
            if of_parts:
                text += [f"{other.title}, the parts alone (mean_val_loss):", ""] + grid(header_of_parts + DIFFERENCE, of_parts)
        if unpaired:
            sweep.leave_out(unpaired, f'without what it takes for "{other.title}" (of their seed and machine)')
    code = published_stacks(experiment) if experiment in ("long", "mix") else []
    if code:
        losses = sorted(row["val_loss_stack"] for row in code)
        text += [
            f"For comparison, from the study's code (its text has none of these): stacks of {losses[0]:.2f} to {losses[-1]:.2f}.",
            "",
        ]
    say_parts(sweep)
    return text + about(sweep)


def say_parts(sweep):
    """Notes the stacks whose parts were trained with other settings than the stack has."""
    found = defaultdict(dict)
    for point in sweep.points:
        for row in point.rows.values():
            for name in (row["parts"] or "").split("+"):
                part = sweep.study.parts.get((name, row["seed"], row["machine"]))
                for column in studies.TRAINED if part else ():
                    if row[column] != part[column]:
                        has, was = shown(row[column]) or "nothing", shown(part[column]) or "nothing"
                        stack = re.sub("-[FT]{2}$", "", row["model"])  # without the suffix for the layers at the seam
                        found[f"{column}: stacked with {has}, trained with {was}"][stack] = True
    for what, models in found.items():
        sweep.notes.append(f"Parts that were trained with other settings, {what}: {', '.join(f'`{model}`' for model in models)}.")


def has_unmixed(row):
    """Whether the study has the same stack of parts that were never mixed: not for three different models."""
    return row["models"] == 2 or not row["unique_model"]


UNIQUE = Against("Two different models minus the same model twice", {"unique_model": False})
UNLOOPED = Against("Minus the stack of parts without looping", {"coconut_every": 0, "coconut_targets": ""}, parts_too=True)
SHORT = Against("Minus the stack of parts on the usual tokens", {"times": 1}, parts_too=True)
FROZEN = Against("Minus the stack with frozen embeddings", {"embeddings": "frozen", "head": "first"}, parts_too=True)
UNMIXED = Against(
    "Minus the stack of parts that were never mixed", {"mix_every": 0}, parts_too=True, only=has_unmixed
)
THREES = Against("Stacks of three minus stacks of two", {"models": 2})


def whole_norms(study):
    """The sweep over norms, and a predicate for the three norm settings of the published study."""
    return Sweep(study, "norms"), lambda row: (row["norm_wte"], row["norm_lm_head"]) in DOCUMENT_NORMS


def layers(study, comparisons):
    """By the layers kept at the seam: the four cells, and both marginals; means over the published norm settings, and over stacks of two models
    and of one with itself."""
    sweep, of_document = whole_norms(study)
    rows = []
    for first in BOTH:
        for last in BOTH:
            cell = {"use_first_layer": first, "use_last_layer": last}
            values, count = means(
                sweep, lambda row: of_document(row) and all(row[column] == value for column, value in cell.items())
            )
            if values:
                rows.append(
                    [
                        first,
                        last,
                        with_error(values, STACK),
                        each(values, sweep.seeds, STACK),
                        len(values),
                        f"{count} of 6",
                        f"{average(published_stacks('norms', **cell)):.2f}",
                        f"{published_stacks('layers', **cell)[0]['printed']:.2f}",
                    ]
                )
    if not rows:
        return about(sweep)
    text = grid(
        [
            "use_first_layer",
            "use_last_layer",
            "val_loss_stack",
            "of each seed",
            "n",
            "stacks",
            "published, corrected",
            "as printed",
        ],
        rows,
    )
    rows = []
    for column in CELL:
        differences, pairs = matched(sweep, {column: False}, lambda row: of_document(row) and row[column])
        kept, left_out = (average(published_stacks("norms", **{column: value})) for value in (True, False))
        rows.append(
            [f"{column}: True minus False"]
            + difference_row(differences, sweep.seeds, STACK, comparisons, "nats of a stack")
            + [f"{pairs} of 12", f"{kept - left_out:+.2f}"]
        )
    text += ["Both marginals, over pairs of stacks that differ in this alone:", ""] + grid(
        ["", *DIFFERENCE, "pairs a seed", "published, corrected"], rows
    )
    return text + about(sweep)


def norm(study, comparisons):
    """By norm: means over the four cells (which layers at the seam are kept)."""
    sweep = Sweep(study, "norms")
    found, rows, differences = [], [], []
    for pair in NORMS:
        for unique in BOTH[::-1]:
            values, count = means(
                sweep, lambda row: (row["norm_wte"], row["norm_lm_head"]) == pair and row["unique_model"] == unique
            )
            if values:
                found.append((pair, unique))
                printed = published_stacks("norm", norm_wte=pair[0], norm_lm_head=pair[1], unique_model=unique)
                rows.append(
                    [
                        shown(pair),
                        unique,
                        with_error(values, STACK),
                        each(values, sweep.seeds, STACK),
                        len(values),
                        f"{count} of 4",
                        f"{average(printed):.2f}" if printed else "–",
                    ]
                )
    if not rows:
        return about(sweep)
    best = NORMS[0]
    settings = next(
        (
            {column: point.row[column] for column in ("norm_wte", "norm_lm_head", "norm_inter_model")}
            for point in sweep.points
            if point.level["norms"] == best
        ),
        None,
    )
    for pair, unique in found if settings else []:
        values, pairs = matched(
            sweep, settings, lambda row: (row["norm_wte"], row["norm_lm_head"]) == pair and row["unique_model"] == unique
        )
        if pair != best and values:
            printed = [published_stacks("norm", norm_wte=p[0], norm_lm_head=p[1], unique_model=unique) for p in (pair, best)]
            differences.append(
                [shown(pair), unique]
                + difference_row(values, sweep.seeds, STACK, comparisons, stack_unit(dict(norm_wte=pair[0], norm_lm_head=pair[1])))
                + [f"{pairs} of 4", f"{average(printed[0]) - average(printed[1]):+.2f}" if printed[0] else "–"]
            )
    head = ["norm_wte/norm_lm_head", "unique_model"]
    text = grid(head + ["val_loss_stack", "of each seed", "n", "stacks", "published, labels corrected"], rows)
    if differences:
        text += [f"Minus {shown(best)}, the best in the published study:", ""] + grid(
            head + DIFFERENCE + ["pairs a seed", "published, labels corrected"], differences
        )
    return text + about(sweep)


def unique(study, comparisons):
    """Two different models against one model twice: by norm, and over the published norms together."""
    sweep, of_document = whole_norms(study)
    rows = []
    for title, where, printed in [
        *(
            (
                shown(pair),
                lambda row, pair=pair: (row["norm_wte"], row["norm_lm_head"]) == pair,
                dict(norm_wte=pair[0], norm_lm_head=pair[1]),
            )
            for pair in NORMS
        ),
        ("the three published settings together", of_document, {}),
    ]:
        differences, pairs = matched(sweep, {"unique_model": False}, lambda row: row["unique_model"] and where(row))
        if differences:
            both = [published_stacks("norms", unique_model=value, **printed) for value in (True, False)]
            corrected = average(both[0]) - average(both[1]) if both[0] else None
            rows.append(
                [title]
                + difference_row(differences, sweep.seeds, STACK, comparisons, stack_unit(printed))
                + [f"{pairs} of {4 if printed else 12}"]
                + ([f"{corrected:+.2f}", f"{-corrected:+.2f}"] if both[0] else ["–", "–"])
            )
    return (
        ["Two different models minus the same model twice, over pairs of stacks that differ in this alone:", ""]
        + grid(["norm_wte/norm_lm_head", *DIFFERENCE, "pairs a seed", "published, labels corrected", "as printed"], rows)
        if rows
        else []
    ) + about(sweep)


def more(study, comparisons):
    """Experiments that have no section of their own: a generic table of the columns that vary."""
    text = []
    for experiment in study.others():
        sweep = Sweep(study, experiment)
        text += [f"### {sweep.experiment.title}", "", *(generic(sweep, comparisons) if sweep.points else []), *about(sweep)]
    return text or [f"None: every experiment of dev/{study.name}.study has its table.", ""]


def generic(sweep, comparisons):
    seeds, growth = sweep.seeds, sweep.study.name == "growth"
    column, digits, unit = ("val_bpb", BPB, "bpb") if growth else ("val_loss_stack", STACK, "nats of a stack")
    if growth:
        against = {"minus its baseline": lambda point: point.against_baseline(column)}
    else:
        against = {
            "minus its parts": lambda point: paired(point.values(column), point.values("mean_val_loss")),
            "minus one model twice": lambda point: sweep.against(point, {"unique_model": False}, column) or {},
        }
    rows = []
    for point in sweep.points:
        values = point.values(column) or point.values("mean_val_loss")
        line = [f"`{point.row['model']}`", *level_cells(point), with_error(values, digits), each(values, seeds, digits), len(values)]
        for difference in against.values():
            line += difference_row(difference(point), seeds, digits, comparisons, unit)
        rows.append(line)
    header = ["model", *sweep.experiment.columns, column if growth else "val_loss_stack (a part: val loss)", "of each seed", "n"]
    return grid(header + [cell for title in against for cell in (title, *DIFFERENCE[1:])], rows)


def latents(study, comparisons):
    """The output of the program latents, averaged over seeds: columns of numbers are averaged, the others identify the row."""
    rows, others = study.latents()
    there = {row["model"] for row in rows}
    lacking = [row["model"] for row in study.expected if row["csv"] == "stacking_latents" and row["model"] not in there]
    if not rows:
        return ["Missing: all of it; no row yet.", ""]
    numbers, names = studies.split_columns(rows)
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[column] or "" for column in names)].append(row)
    return grid(
        names + [f"{column}, mean ± s.e." for column in numbers] + ["n"],
        [
            list(group)
            + [with_error({i: float(row[column]) for i, row in enumerate(members) if row[column]}, STACK) for column in numbers]
            + [len(members)]
            for group, members in groups.items()
        ],
    ) + [
        *([f"Left out: {others} rows of seeds that are here from another machine, which has more seeds of their model.", ""] if others else []),
        *([f"Missing, no seed of: {', '.join(f'`{model}`' for model in lacking)}.", ""] if lacking else []),
    ]


# --------------------------------------------------------------------------------------------------------------------- sections

SECTIONS = {
    "growth": {
        "noise": (
            "Noise: seeds of one baseline",
            lambda study, c: noise(study, [("val_bpb", "bpb", BPB), ("val_loss", "nats", NATS)], c),
        ),
        "miniseries": (GROWTH["miniseries"].title, lambda study, c: growth_sweep(study, "miniseries", c)),
        "starts": ("Starting losses, right after growth", starts),
        **{
            experiment: (GROWTH[experiment].title, lambda study, c, experiment=experiment: growth_sweep(study, experiment, c))
            for experiment in GROWTH
            if experiment != "miniseries"
        },
        "acceleration": ("Compute acceleration", acceleration),
        "more": ("Other experiments", more),
    },
    "stacking": {
        "noise": ("Noise: seeds of one part", lambda study, c: noise(study, [("mean_val_loss", "nats", NATS)], c)),
        "parts": ("Parts", parts),
        "norms": (STACKING["norms"].title, lambda study, c: stacks(study, "norms", c)),
        "layers": ("By layer use", layers),
        "norm": ("By norm", norm),
        "unique": ("Two different models, and one twice", unique),
        "loop": (STACKING["loop"].title, lambda study, c: stacks(study, "loop", c, [UNLOOPED, UNIQUE])),
        "long": (STACKING["long"].title, lambda study, c: stacks(study, "long", c, [SHORT, UNIQUE])),
        "embeddings": (STACKING["embeddings"].title, lambda study, c: stacks(study, "embeddings", c, [FROZEN, UNIQUE])),
        "mix": (STACKING["mix"].title, lambda study, c: stacks(study, "mix", c, [UNMIXED, THREES, UNIQUE])),
        "latents": ("Latents", latents),
        "more": ("Other experiments", more),
    },
}


def tables(study):
    """Section -> lines. Noise is printed first, but needs the comparisons of all other sections."""
    comparisons = Comparisons()
    sections = {section: make(study, comparisons) for section, (_, make) in SECTIONS[study.name].items() if section != "noise"}
    first = {"noise": SECTIONS[study.name]["noise"][1](study, comparisons)}
    return {"reading": reading(study, {**first, **sections}, comparisons), **first, **sections}


def printed(found):
    for study in found:
        sections = tables(study)
        yield f"## {study.name}, {study.scale}\n"
        for section, lines in sections.items():
            if section in SECTIONS[study.name]:
                yield f"### {SECTIONS[study.name][section][0]}\n"
            yield "\n".join(lines)


# --------------------------------------------------------------------------------------------------------------------- the page

MARK, END = re.compile(r"<!-- table: (\S*) (\S*) -->\s*"), "<!-- end -->"


def fill(page, kind, found):
    """Writes each table of a page between its marks."""
    try:
        lines = page.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        refuse(f"{page}: cannot be read: {error.strerror}; without --write the tables are printed")
    except UnicodeDecodeError as error:
        refuse(f"{page}: is no UTF-8 text: {error.reason}; take the last good version of it (git checkout)")
    of_scale = {study.scale: tables(study) for study in found}
    known = ["reading", *SECTIONS[kind]]
    result, opened = [], None  # the line number of the mark whose old table is being skipped
    for number, line in enumerate(lines, 1):
        mark = MARK.fullmatch(line)
        if mark and opened or line.strip() == END and not opened:
            refuse(
                f"{page}: line {number}: '{line.strip()[:60]}' "
                + (
                    f"comes before the end of the table of line {opened}; write {END} before it"
                    if opened
                    else "ends no table; write <!-- table: SCALE SECTION --> before it, or remove it"
                )
            )
        if mark:
            scale, section = mark.groups()
            if section not in known:
                refuse(f"{page}: line {number}: there is no table '{section[:60]}' of {kind}; there are {', '.join(known)}")
            opened = number
            result += [line, "", *of_scale.get(scale, {}).get(section, [f"No row of {scale} yet.", ""])]
        elif line.strip() == END:
            opened = None
            result.append(line)
        elif not opened:
            result.append(line)
    if opened:
        refuse(f"{page}: line {opened}: '{lines[opened - 1].strip()[:60]}' has no end; write {END} where its table ends")
    text = "\n".join(result) + "\n"
    write_whole(page, lambda temporary: temporary.write_text(text, encoding="utf-8"), studies.NO_ROOM)
    print(page)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--scale", help="only this scale (default: every scale that has rows)")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="the folder with STUDY.csv and STUDY.md (default: dev/results)"
    )
    parser.add_argument("--write", action="store_true", help="write the tables into DIR/STUDY.md, between the marks there")
    arguments = parser.parse_args()
    if arguments.write and arguments.scale is not None:
        refuse("--write fills every table that has marks in the page, at every scale; leave --scale out")
    found = studies.load(arguments.study, arguments.results, arguments.scale)
    if arguments.write:
        fill(arguments.results / f"{arguments.study}.md", arguments.study, found)
    else:
        of_scale = f" of {arguments.scale}" if arguments.scale else ""
        for text in printed(found) if found else [f"No row{of_scale} yet; make -f dev/{arguments.study}.mk makes them."]:
            print(text)


if __name__ == "__main__":
    main()
