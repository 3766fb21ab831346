#!/usr/bin/env python3
"""Draws the figures of a study, stacking or growth, from its rows (dev/results/STUDY.csv): STUDY_SCALE_NAME.png and .svg beside them.

A dot is a seed, a bar the mean, whiskers one standard error, a diamond a published number (corrected where the publication is wrong).
The comparisons are those of tables.py. The same rows give the same SVG, byte for byte."""

import argparse
import math
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

sys.dont_write_bytecode = True
import studies
from plot import COLORS, INK, mean_curve, scale_flops, style
from script import refuse, write_whole
from studies import (
    BOTH,
    DOCUMENT_NORMS,
    GROWTH,
    NORMS,
    RESULTS,
    STUDIES,
    Sweep,
    level_name,
    published,
    shown,
    standard_error,
)

CHANCE, PUBLISHED = "#999999", "#888888"


# ------------------------------------------------------------------------------------------------------------------------- pieces


def marks(axes, x, values, color, label=None, width=0.3, spread=0.0):
    """Every seed as a dot, `spread` apart; the mean as a bar with its standard error."""
    values = list(values)
    if not values:
        return
    places = [x + spread * (i - (len(values) - 1) / 2) for i in range(len(values))]
    axes.plot(places, values, "o", color=color, markersize=4, alpha=0.55, markeredgewidth=0, zorder=3)
    error = standard_error(values) if len(values) > 1 else None
    axes.errorbar([x], [mean(values)], yerr=error, color=color, capsize=4, linewidth=1.4, zorder=4)
    axes.plot([x - width / 2, x + width / 2], [mean(values)] * 2, color=color, linewidth=2.4, zorder=4, label=label)


def line(axes, points, color, label):
    """A series of points (x, values of the seeds); a line joins the means."""
    points = sorted((x, list(values)) for x, values in points if values)
    if not points:
        return
    for x, values in points:
        axes.plot([x] * len(values), values, "o", color=color, markersize=4, alpha=0.45, markeredgewidth=0)
    errors = [standard_error(values) if len(values) > 1 else 0 for _, values in points]
    axes.errorbar(
        [x for x, _ in points],
        [mean(values) for _, values in points],
        yerr=errors,
        color=color,
        capsize=4,
        label=label,
        marker="_",
        markersize=11,
    )


def level_line(axes, values, color, label):
    """A value that does not depend on x: the mean as a line, its standard error as a band."""
    values = list(values)
    if not values:
        return
    axes.axhline(mean(values), color=color, linewidth=1.4, label=label)
    if len(values) > 1:
        axes.axhspan(
            mean(values) - standard_error(values), mean(values) + standard_error(values), color=color, alpha=0.15, linewidth=0
        )


def diamonds(axes, points, label="published"):
    if points:
        axes.plot(
            *zip(*points), "D", color=PUBLISHED, markerfacecolor="white", markersize=5.5, linestyle="none", label=label, zorder=5
        )


def zero_line(axes):
    axes.axhline(0, color=INK, linewidth=0.9)


def names_below(axes, names):
    slanted = len(names) > 6 or max(len(part) for name in names for part in name.split("\n")) > 18
    axes.set_xticks(range(len(names)), names, rotation=35 if slanted else 0, ha="right" if slanted else "center")


def panels(plt, columns, rows=1, width=5.6, height=4.2, **more):
    figure, grid = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False, **more)
    for axes in grid.flat:
        axes.tick_params(length=0)
        axes.margins(x=0.06, y=0.08)
    return figure, grid


def legend(axes, **more):
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles))
    if unique:
        axes.legend(unique.values(), unique, fontsize=8.5, **more)


def usable(study, experiment):
    sweep = Sweep(study, experiment)
    return sweep if sweep.points else None


# ------------------------------------------------------------------------------------------------------------------------- growth


def miniseries(plt, study):
    sweep = usable(study, "miniseries")
    if not sweep:
        return None
    figure, [[axes]] = panels(plt, 1, width=6.6)
    for of_baseline, color, label in ((True, COLORS[0], "regular"), (False, COLORS[1], "grown from half the depth")):
        series = []
        for point in sweep.points:
            flops = mean(point.values("total_flops", of_baseline).values())
            values = point.values("val_bpb", of_baseline).values()
            series.append((flops, values))
            axes.annotate(
                f"{shown(point.row['depth'])} layers",
                (flops, mean(values)),
                textcoords="offset points",
                xytext=(7, 5),
                fontsize=8.5,
                color=color,
            )
        line(axes, series, color, label)
    axes.set_title("Miniseries: regular and grown")
    axes.set_ylabel("validation bits per byte")
    scale_flops([axes])
    legend(axes)
    return figure


def starts(plt, study):
    """Losses before the first step of the deep round, for the miniseries (the study shows a screenshot of these) and for the growth orders."""
    found = [sweep for sweep in (usable(study, "miniseries"), usable(study, "order")) if sweep]
    if not found:
        return None
    figure, [row] = panels(plt, len(found))
    for axes, sweep in zip(row, found):
        for i, point in enumerate(sweep.points):
            marks(
                axes,
                i - 0.2,
                point.values("start_val_loss", True).values(),
                COLORS[0],
                "regular, before its first step",
                spread=0.05,
            )
            marks(axes, i + 0.2, point.values("start_val_loss").values(), COLORS[1], "grown, before its first step", spread=0.05)
            marks(axes, i + 0.2, point.values("val_loss").values(), COLORS[2], "grown, at the end", spread=0.05)
        names_below(axes, [", ".join(map(shown, point.level.values())) for point in sweep.points])
        axes.set_xlabel(", ".join(sweep.experiment.columns))
        axes.set_title(f"Starting losses: {sweep.name}")
        axes.set_ylabel("validation loss, nats")
    legend(row[0])
    return figure


def with_baselines(plt, sweep, column, title, label, printed=()):
    """A sweep over one column. Left: bits per byte, with the baselines'. Right: the differences, with the published ones."""
    figure, [[left, right]] = panels(plt, 2)
    groups = defaultdict(list)
    for point in sweep.points:
        groups[tuple((c, v) for c, v in point.level.items() if c != column)].append(point)
    models = {point.row["baseline"] for point in sweep.points}
    for i, (rest, points) in enumerate(groups.items()):
        name = "grown" + (f", {level_name(dict(rest))}" if rest else "")
        line(left, [(point.level[column], point.values("val_bpb").values()) for point in points], COLORS[1 + i], name)
        line(right, [(point.level[column], point.against_baseline("val_bpb").values()) for point in points], COLORS[1 + i], name)
    if len(models) == 1:
        most = max(sweep.points, key=lambda point: len(point.rows))
        level_line(left, most.values("val_bpb", True).values(), COLORS[0], "baseline")
    else:
        line(
            left,
            [(point.level[column], point.values("val_bpb", True).values()) for point in sweep.points],
            COLORS[0],
            "baseline of the same FLOPs",
        )
    zero_line(right)
    diamonds(right, list(printed))
    left.set_title(title)
    left.set_ylabel("validation bits per byte")
    right.set_title("Against the baseline of the same seed")
    right.set_ylabel("difference in bits per byte")
    for axes in (left, right):
        axes.set_xlabel(label)
        legend(axes)
    return figure


def warmdown(plt, study):
    sweep = usable(study, "warmdown")
    return sweep and with_baselines(plt, sweep, "warmdown", "Warmdown of the deep round", "warmdown ratio of the deep round")


def printed_differences(experiment):
    rows = [row for row in published("growth") if row["experiment"] == experiment]
    base = {row["model"]: row["val_bpb"] for row in rows}
    return [(row["shallow_data_ratio"], row["val_bpb"] - base[row["baseline"]]) for row in rows if row["baseline"]]


def early(plt, study):
    sweep = usable(study, "early")
    return sweep and with_baselines(
        plt, sweep, "study_ratio", "Early FLOPs", "tokens a parameter in the shallow round", printed_differences("early")
    )


def fixed(plt, study):
    sweep = usable(study, "fixed")
    return sweep and with_baselines(
        plt, sweep, "study_ratio", "Fixed FLOPs", "tokens a parameter in the shallow round", printed_differences("fixed")
    )


def rounds(plt, study):
    """Training loss and learning rate of the deep round, with a warmdown of 0.5 and of 1."""
    sweep = usable(study, "warmdown")
    curves = defaultdict(lambda: defaultdict(list))
    for row in study.beside("growth_curves") if sweep else []:
        if row["event"] == "step":
            curves[row["model"]][row["seed"], row["round"]].append(row)
    points = (
        [point for point in sweep.points if point.level["warmdown"] in (0.5, 1) and curves.get(point.row["model"])] if sweep else []
    )
    if not points:
        return None
    figure, [[loss], [rate]] = panels(plt, 1, rows=2, width=7.4, height=3.2, sharex=True, gridspec_kw={"height_ratios": [2, 1]})
    series = [(points[0].row["baseline"], "baseline", COLORS[0])] + [
        (point.row["model"], f"warmdown {shown(point.level['warmdown'])}", COLORS[1 + i]) for i, point in enumerate(points)
    ]
    machine_of = {seed: machine for machine, seeds in sweep.machines.items() for seed in seeds}
    low, high = math.inf, -math.inf
    for model, label, color in series:
        of_rounds = defaultdict(list)
        for (seed, of_round), rows in sorted(curves.get(model, {}).items()):
            rows = [row for row in rows if tuple(row[column] for column in studies.MACHINE) == machine_of.get(seed)]
            if rows:
                of_rounds[of_round].append(sorted(rows, key=lambda row: row["step"]))
        for of_round, found in of_rounds.items():
            lines = [([row["total_flops"] for row in rows], [row["loss"] for row in rows]) for rows in found]
            dashes = "--" if of_round == "shallow" else "-"
            for x, y in lines:
                loss.plot(x, y, color=color, alpha=0.3, linewidth=0.7, linestyle=dashes)
            x, y = mean_curve(lines)
            loss.plot(x, y, color=color, linestyle=dashes, label=label + (", shallow round" if of_round == "shallow" else ""))
            if of_round != "shallow":
                low, high = min(low, *y), max(high, y[len(y) // 10])
            rates = [(row["total_flops"], row["lr"]) for row in found[0] if row["lr"] is not None]
            if rates:
                rate.plot(*zip(*rates), color=color, linestyle=dashes)
    loss.set_ylim(low - 0.05 * (high - low), high + 0.15 * (high - low) or None)
    loss.set_title("The deep round at two warmdowns")
    loss.set_ylabel("training loss, nats, smoothed")
    rate.set_ylabel("learning rate")
    scale_flops([rate])
    legend(loss)
    return figure


def differences(plt, sweep, titles):
    """A sweep over named settings: against the baseline, and against the default setting."""
    figure, [row] = panels(plt, 2)
    ways = [point.against_baseline for point in sweep.points], [
        lambda column, point=point: sweep.against_usual(point, column) for point in sweep.points
    ]
    for axes, title, ways_of in zip(row, titles, ways):
        for i, way in enumerate(ways_of):
            marks(axes, i, (way("val_bpb") or {}).values(), COLORS[1], spread=0.06, width=0.5)
        zero_line(axes)
        names_below(axes, [", ".join(map(shown, point.level.values())) for point in sweep.points])
        axes.set_xlim(-0.6, len(sweep.points) - 0.4)
        axes.set_title(title)
        axes.set_ylabel("difference in bits per byte")
        axes.set_xlabel(", ".join(sweep.experiment.columns))
    return figure


def over_names(experiment):
    def draw(plt, study):
        sweep = usable(study, experiment)
        usual = ", ".join(map(shown, GROWTH[experiment].usual.values()))
        return sweep and differences(
            plt, sweep, [f"{experiment.capitalize()}: against the baseline", f"{experiment.capitalize()}: against {usual}"]
        )

    return draw


def acceleration(plt, study):
    found = []
    for experiment in GROWTH:
        sweep = Sweep(study, experiment)
        found += [
            (f"{point.row['model']}", point, experiment)
            for point in sweep.points
            if point.row["experiment"] == experiment and (point.values("train_acceleration") or point.values("val_acceleration"))
        ]
    if not found:
        return None
    figure, [[axes]] = panels(plt, 1, width=max(6.5, 0.36 * len(found) + 1.5), height=4.8)
    printed = {
        (row["experiment"], row["shallow_data_ratio"], row["shallow_warmdown"]): row["train_acceleration"]
        for row in published("growth")
        if row["train_acceleration"] is not None
    }
    for i, (name, point, experiment) in enumerate(found):
        for shift, column, color, label in (
            (-0.17, "train_acceleration", COLORS[0], "to the baseline's training loss"),
            (0.17, "val_acceleration", COLORS[1], "to its validation loss"),
        ):
            marks(axes, i + shift, [100 * value for value in point.values(column).values()], color, label, width=0.3)
        key = (experiment, studies.study_ratio(point.row), point.row["shallow_warmdown"])
        if key in printed:
            diamonds(axes, [(i, 100 * printed[key])], "published (training loss)")
    zero_line(axes)
    names_below(axes, [name for name, _, _ in found])
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlim(-0.7, len(found) - 0.3)
    axes.set_title("Compute acceleration: FLOPs of the baseline that were not needed")
    axes.set_ylabel("per cent")
    legend(axes)
    return figure


# ----------------------------------------------------------------------------------------------------------------------- stacking

CELLS = [(first, last) for first in BOTH for last in BOTH]
MODELS = {True: ("two different models", COLORS[1]), False: ("the same model twice", COLORS[0])}


def cell_name(first, last):
    return {
        (False, False): "neither",
        (True, False): "first layer\nof the second",
        (False, True): "last layer\nof the first",
        (True, True): "both",
    }[first, last]


def chance_lines(axes, study, printed=False):
    odds = studies.chance(study)
    if odds:
        axes.axhline(odds, color=CHANCE, linewidth=1.2, linestyle=(0, (6, 2)), label="chance")
    if printed:
        axes.axhline(math.log(50257), color=CHANCE, linewidth=1.2, linestyle=(0, (1.5, 1.5)), label="chance in the published study")


def over_cells(axes, points, color, label, shift, width=0.3):
    """The stacks of the four cells (which layers at the seam are kept); the mean of their parts as a thin line."""
    for point in points:
        x = CELLS.index((point.row["use_first_layer"], point.row["use_last_layer"])) + shift
        marks(axes, x, point.values("val_loss_stack").values(), color, label, width=width, spread=0.04)
    of_parts = [value for point in points for value in point.values("mean_val_loss").values()]
    if of_parts:
        axes.axhline(mean(of_parts), color=color, linewidth=0.9, linestyle=":", label=f"parts: {label}")


def cells_below(axes):
    axes.set_xticks(range(4), [cell_name(*cell) for cell in CELLS], fontsize=8.5)
    axes.set_xlim(-0.6, 3.6)
    axes.set_xlabel("layers kept at the seam")


def stacks(plt, study):
    sweep = usable(study, "norms")
    if not sweep:
        return None
    pairs = [pair for pair in NORMS if any(point.level["norms"] == pair for point in sweep.points)]
    pairs += sorted({point.level["norms"] for point in sweep.points} - set(pairs))
    figure, grid = panels(plt, 2, rows=math.ceil(len(pairs) / 2), height=4.4, sharey=True)
    for axes in list(grid.flat)[len(pairs) :]:
        axes.set_visible(False)
    for axes, pair in zip(grid.flat, pairs):
        for unique, (label, color) in MODELS.items():
            shift = 0.18 if unique else -0.18
            over_cells(
                axes,
                [point for point in sweep.points if point.level["norms"] == pair and point.row["unique_model"] == unique],
                color,
                label,
                shift,
            )
            printed = [
                (CELLS.index((r["use_first_layer"], r["use_last_layer"])) + shift, r["val_loss_stack"])
                for r in published("stacking")
                if r["experiment"] == "norms" and (r["norm_wte"], r["norm_lm_head"]) == pair and r["unique_model"] == unique
            ]
            if printed:
                axes.plot(
                    *zip(*printed),
                    "D",
                    color=color,
                    markerfacecolor="white",
                    markersize=5.5,
                    linestyle="none",
                    label=f"published: {label}",
                    zorder=5,
                )
        chance_lines(axes, study, pair in DOCUMENT_NORMS)
        axes.set_title(f"norm_wte {pair[0]}, norm_lm_head {pair[1]}", fontsize=9.5)
        cells_below(axes)
        axes.tick_params(labelleft=True)
        axes.set_ylabel("validation loss of the stack, nats")
    if grid.flat[0].get_ylim()[1] > 50:  # some stacks are far beyond chance, and the others must stay readable
        grid.flat[0].set_yscale("log")
        for axes in grid.flat:
            axes.set_yticks([2, 5, 10, 20, 50, 100, 200], [2, 5, 10, 20, 50, 100, 200])
            axes.minorticks_off()
    below(figure)
    return figure


def below(figure):
    """One legend for all panels, below them."""
    unique = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        unique.update(zip(labels, handles))
    columns = min(4, len(unique))
    extra = 0.2 + 0.22 * math.ceil(len(unique) / columns)
    height = figure.get_figheight()
    figure.set_figheight(height + extra)
    figure.tight_layout(rect=(0, extra / (height + extra), 1, 1), h_pad=2, w_pad=2.5)
    figure.legend(unique.values(), unique, loc="lower center", ncol=columns, fontsize=9)
    figure.laid_out = True


def loop(plt, study):
    sweep = usable(study, "loop")
    if not sweep:
        return None
    targets = [kind for kind in ("same", "next") if any(point.level["coconut_targets"] == kind for point in sweep.points)]
    if not targets:
        return None
    figure, grid = panels(plt, 2, rows=len(targets), height=4.0, sharey=True)
    title = {"same": "Looping on its own targets", "next": "Looping as published"}
    for row, kind in zip(grid, targets):
        for axes, unique in zip(row, (True, False)):
            members = [
                point for point in sweep.points if point.level["coconut_targets"] == kind and point.level["unique_model"] == unique
            ]
            seen = []
            for point in members:
                for seed, looped in point.rows.items():
                    other = study.find(looped, studies.identity("stacking", {**looped, "coconut_every": 0, "coconut_targets": ""}))
                    if other and other not in seen:
                        seen.append(other)
            for cell, at in zip(CELLS, range(4)):
                values = [row["val_loss_stack"] for row in seen if (row["use_first_layer"], row["use_last_layer"]) == cell]
                marks(axes, at - 0.25, values, COLORS[0], "without looping", width=0.22)
            for i, every in enumerate(sorted({point.level["coconut_every"] for point in members}, reverse=True)):
                points = [point for point in members if point.level["coconut_every"] == every]
                for point in points:
                    x = CELLS.index((point.row["use_first_layer"], point.row["use_last_layer"])) + 0.25 * i
                    marks(
                        axes,
                        x,
                        point.values("val_loss_stack").values(),
                        COLORS[1 + i],
                        f"looping every {shown(every)} steps",
                        width=0.22,
                    )
                    printed = [
                        r["val_loss_stack"]
                        for r in published("stacking")
                        if kind == "next"
                        and r["experiment"] == "loop"
                        and r["coconut_every"] == every
                        and all(r[column] == point.row[column] for column in ("unique_model", "use_first_layer", "use_last_layer"))
                    ]
                    diamonds(axes, [(x, value) for value in printed])
            chance_lines(axes, study)
            axes.set_title(f"{title[kind]}: {MODELS[unique][0]}", fontsize=9.5)
            cells_below(axes)
            axes.tick_params(labelleft=True)
        row[0].set_ylabel("validation loss of the stack, nats")
    below(figure)
    return figure


def by_models(experiment, title, say):
    """A few kinds of stacks, each of different models and of one model with itself. `say` names the kind of a row."""

    def draw(plt, study):
        sweep = usable(study, experiment)
        if not sweep:
            return None
        points = [(say(point.row), point) for point in sweep.points]
        usual = sweep.experiment.usual
        for point in sweep.points:  # the points of other sweeps that they are compared with
            rows = {seed: study.find(row, studies.identity("stacking", {**row, **usual})) for seed, row in point.rows.items()}
            rows = {seed: row for seed, row in rows.items() if row}
            if rows and not any(
                studies.identity("stacking", next(iter(rows.values()))) == studies.identity("stacking", other.row)
                for _, other in points
            ):
                other = studies.Point(point.level, rows, {})
                points.append((say(other.row), other))
        names = sorted(dict.fromkeys(name for name, _ in points))
        figure, [[axes]] = panels(plt, 1, width=max(6.2, 1.5 * len(names) + 1))
        for name, point in points:
            label, color = MODELS[point.row["unique_model"]]
            marks(
                axes,
                names.index(name) + (0.18 if point.row["unique_model"] else -0.18),
                point.values("val_loss_stack").values(),
                color,
                label,
                spread=0.03,
            )
        of_parts = [value for _, point in points for value in point.values("mean_val_loss").values()]
        axes.axhline(mean(of_parts), color=INK, linewidth=0.9, linestyle=":", label="parts, their mean")
        chance_lines(axes, study)
        names_below(axes, names)
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.set_title(title)
        axes.set_ylabel("validation loss of the stack, nats")
        below(figure)
        return figure

    return draw


def kept(row):
    return {(False, False): "neither kept", (True, False): "first kept", (False, True): "last kept", (True, True): "both kept"}[
        row["use_first_layer"], row["use_last_layer"]
    ]


mix = by_models(
    "mix",
    "Parts that were mixed with each other in training",
    lambda row: (f"mixed every {shown(row['mix_every'])}" if row["mix_every"] else "not mixed")
    + f",\n{shown(row['models'])} models,\n{kept(row)}",
)
long = by_models("long", "Parts on more tokens", lambda row: f"{shown(row['times'])} x the tokens,\n{kept(row)}")
embeddings = by_models(
    "embeddings",
    "Embeddings frozen from the first model, and each model's own",
    lambda row: f"{row['embeddings']},\nhead {row['head']},\n{kept(row)}",
)


def latents(plt, study):
    """Cosines between positions, within a model and across two: one heat map per pair of models, each cell the mean over seeds."""
    cosines = [row for row in study.latents()[0] if row["quantity"] == "cosine"]
    rows = [row for row in cosines if row.get("mean") and studies.is_number(row["mean"])]
    maps = defaultdict(lambda: defaultdict(list))
    for row in rows:
        a, b = row["model_a"], row["model_b"] or row["model_a"]
        maps[a, b][row["position_a"], row["position_b"]].append(float(row["mean"]))
        if a == b:   # within a model each pair of positions has one row
            for one in {row["position_a"], row["position_b"]}:
                maps[a, b][one, one] = [1.0]
            maps[a, b][row["position_b"], row["position_a"]].append(float(row["mean"]))
    if not maps:
        return None
    columns = min(4, len(maps))
    figure, grid = panels(plt, columns, rows=math.ceil(len(maps) / columns), width=3.7, height=3.5)
    for axes, ((a, b), cells) in zip(grid.flat, maps.items()):
        order = {"in": 0, "first": 1, "last": 2, "out": 3}
        down, across = (sorted({pair[i] for pair in cells}, key=lambda position: order.get(position, 4)) for i in (0, 1))
        values = [[mean(cells[p, q]) if (p, q) in cells else math.nan for q in across] for p in down]
        axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
        for i, line_of in enumerate(values):
            for j, value in enumerate(line_of):
                if math.isfinite(value):
                    axes.text(
                        j, i, f"{value:.2f}", ha="center", va="center", fontsize=9, color="white" if abs(value) > 0.6 else INK
                    )
        axes.set_xticks(range(len(across)), across)
        axes.set_yticks(range(len(down)), down)
        axes.set_xlabel(b)
        axes.set_ylabel(a)
        axes.grid(False)
        axes.set_title("within a model" if a == b else "across models", fontsize=9.5)
    for axes in list(grid.flat)[len(maps) :]:
        axes.set_visible(False)
    figure.suptitle("Cosine of the latents, mean over seeds", fontsize=11.5, fontweight="bold", x=0.02, ha="left", color=INK)
    return figure


# -------------------------------------------------------------------------------------------------------------------- the figures

FIGURES = {
    "growth": {
        "miniseries": miniseries,
        "starts": starts,
        "warmdown": warmdown,
        "rounds": rounds,
        "early": early,
        "fixed": fixed,
        "acceleration": acceleration,
        "factor": over_names("factor"),
        "order": over_names("order"),
        "state": over_names("state"),
    },
    "stacking": {"stacks": stacks, "loop": loop, "long": long, "embeddings": embeddings, "mix": mix, "latents": latents},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--scale", help="only this scale (default: every scale that has rows)")
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        metavar="DIR",
        help="the folder with STUDY.csv, where the figures go too (default: dev/results)",
    )
    arguments = parser.parse_args()
    try:
        import matplotlib
    except ImportError:
        refuse("matplotlib is missing; install it (make deps)")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style(plt)
    plt.rcParams.update({"svg.hashsalt": "deepen", "svg.fonttype": "none", "font.family": ["DejaVu Sans", "sans-serif"]})
    for study in studies.load(arguments.study, arguments.results, arguments.scale):
        for name, draw in FIGURES[study.name].items():
            figure = draw(plt, study)
            path = Path(arguments.results) / f"{study.name}_{study.scale}_{name}"
            if figure is None:
                print(f"figures: {path.name}: no row for it yet; not drawn", file=sys.stderr)
                continue
            if not getattr(figure, "laid_out", False):
                figure.tight_layout(h_pad=2, w_pad=2.5)
            for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
                write_whole(
                    path.with_name(f"{path.name}.{kind}"),
                    lambda temporary: figure.savefig(temporary, format=kind, dpi=110, metadata=metadata),
                    studies.NO_ROOM,
                )
                print(path.with_name(f"{path.name}.{kind}"))
            plt.close(figure)


if __name__ == "__main__":
    main()
