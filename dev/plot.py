#!/usr/bin/env python3
"""Draws the curves of runs from their logs: train loss and validation bits per byte, against FLOPs and against steps.

FLOPs are those of the run and of the parents that it was grown or started from. Runs NAME-1, NAME-2, ... are one with several seeds:
each is a thin line, their mean a thick one. --watch draws again while they go on."""
import argparse
import functools
import math
import os
import re
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True
import log_lines
from script import refuse, write_whole

COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5f4690", "#7a5c2e", "#444444", "#94c11f"]
DASHES = ["-", (0, (5, 1.5)), (0, (1.5, 1.5))]               # of the runs after the tenth, the twentieth
INK, GRID = "#333333", "#e4e4e4"


@functools.cache                            # once, however often --watch draws
def tell(words):
    print(f"plot: {words}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------------------- the logs

def number(record, *keys):
    """The first of the keys that the record has a number for; NaN leaves a gap in a curve."""
    for key in keys:
        if isinstance(record.get(key), (int, float)):
            return float(record[key])
    return math.nan


def column(records, *keys):
    return [number(record, *keys) for record in records]


def by_step(records):
    return [record for _, record in sorted(records.items())]


def load_runs(arguments):
    """Name and records of every run that has something to show, and whether all runs have ended."""
    paths = [log_lines.log_of(a) for a in arguments.runs]
    runs, ended = [], True
    for path, name in zip(paths, log_lines.distinct_names(paths)):
        try:
            log = log_lines.read(path)
        except log_lines.BadLog as error:
            if not (arguments.watch and isinstance(error, log_lines.NoLog)):
                refuse(error)
            tell(f"{path}: not there yet")
            ended = False
            continue
        ended = ended and log.ended()
        if log.steps or log.evals:
            runs.append((name, {"step": by_step(log.steps), "eval": by_step(log.evals)}))
        else:
            tell(f"{path}: no step logged yet; left out")
    return runs, ended


# ------------------------------------------------------------------------------------------------------------- the figure

def style(plt):
    plt.rcParams.update({
        "font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 11.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
        "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": "#999999",
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID,
        "grid.linewidth": 0.8, "lines.linewidth": 1.8, "lines.solid_capstyle": "round", "legend.frameon": False,
    })


def top_of(curves):
    """Highest value worth showing: what the curves are after their first tenth (the first point at least), for they fall from far above."""
    finite = [[y for y in curve if math.isfinite(y)] for curve in curves]
    return max(y for curve in finite for y in curve[max(len(curve) // 10, 1 if len(curve) > 2 else 0):])


def set_height(axes, curves):
    finite = [y for curve in curves for y in curve if math.isfinite(y)]
    if not finite:
        return
    low, high = min(finite), top_of(curves)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1
    axes.set_ylim(low - margin, high + margin)


def scale_flops(column_of_axes):
    """Puts the power of ten into the label, where it reads as a unit."""
    largest = max(axes.dataLim.x1 for axes in column_of_axes)
    if not math.isfinite(largest) or largest <= 0:
        return
    power = math.floor(math.log10(largest))
    for axes in column_of_axes:
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 10.0 ** power:g}")
        axes.set_xlabel(f"$10^{{{power}}}$ FLOPs, parents included")


def groups_of(runs):
    """Name and runs of each group: NAME-1, NAME-2, ... are a group, and any other run is one by itself."""
    groups = {}
    for name, records in runs:
        groups.setdefault(re.sub(r"-\d+$", "", name), []).append((name, records))
    for name, members in list(groups.items()):
        if len(members) == 1:
            groups[members[0][0]] = groups.pop(name)
    return [(name, [records for _, records in members]) for name, members in groups.items()]


def mean_curve(curves):
    """Where all of the (x, y) have a point: by their place in the list, for the seeds log at the same steps."""
    if len(curves) == 1:
        return curves[0]
    return [[sum(values) / len(values) for values in zip(*(curve[i] for curve in curves))] for i in (0, 1)]


def draw_group(axes, curves, thick, thin):
    """Every curve thin, and their mean thick; one curve alone is thick."""
    if len(curves) > 1:
        for x, y in curves:
            axes.plot(x, y, **thin)
    axes.plot(*mean_curve(curves), **thick)


def draw(plt, runs):
    # Rows: the loss, and how the validation was measured, if it was.
    bpb = any(math.isfinite(number(r, "val_bpb")) for _, records in runs for r in records["eval"])
    measure, title = ("val_bpb", "Validation, bits per byte") if bpb else ("val_loss", "Validation loss, nats per token")
    evaluated = any(math.isfinite(number(r, measure)) for _, records in runs for r in records["eval"])
    columns = [(("total_flops", "flops"), "FLOPs, parents included"), (("step",), "step")]

    rows = 2 if evaluated else 1
    figure, grid = plt.subplots(rows, 2, figsize=(12, 4.1 * rows), squeeze=False, sharex="col", sharey="row")
    handles, smoothed, validated = [], [], []
    for i, (name, members) in enumerate(groups_of(runs)):
        line = dict(color=COLORS[i % len(COLORS)], linestyle=DASHES[i // len(COLORS) % len(DASHES)])
        thin = dict(color=line["color"], alpha=0.45, linewidth=0.8)
        smooth = [column(records["step"], "smooth_loss", "loss") for records in members]
        values = [column(records["eval"], measure) for records in members]
        smoothed += smooth
        validated += values
        for j, (keys, _) in enumerate(columns):
            steps = [column(records["step"], *keys) for records in members]
            if len(members) == 1:
                grid[0, j].plot(steps[0], column(members[0]["step"], "loss"), color=line["color"], alpha=0.16, linewidth=0.8)
            draw_group(grid[0, j], list(zip(steps, smooth)), dict(marker="o" if len(steps[0]) == 1 else "", **line), thin)
            if evaluated:
                draw_group(grid[1, j], [(column(records["eval"], *keys), value) for records, value in zip(members, values)],
                           dict(marker="o", markersize=3.5, **line), thin)
        final = [[v for v in value if math.isfinite(v)][-1] for value in values if any(map(math.isfinite, value))]
        label = f"{name}   {sum(final) / len(final):.4f}" if final else name
        handles.append(plt.Line2D([], [], label=label + (f", mean of {len(final)}" if len(final) > 1 else ""), **line))
        if evaluated and not final:
            tell(f"{name}: no {measure} logged; only its train loss is drawn")

    grid[0, 0].set_title("Train loss, nats per token, smoothed")
    set_height(grid[0, 0], smoothed)
    if evaluated:
        grid[1, 0].set_title(title)
        set_height(grid[1, 0], validated)
    for j, (_, label) in enumerate(columns):
        for axes in grid[:, j]:
            axes.set_xlabel(label)
            axes.margins(x=0.02)
            axes.tick_params(length=0, labelleft=True, labelbottom=True)
    scale_flops(grid[:, 0])
    figure.tight_layout(h_pad=2, w_pad=2.5)
    add_legend(figure, handles, f"run   last {measure}" if evaluated else "run")
    return figure


def add_legend(figure, handles, title):
    """Below the panels, in as many columns as the longest name leaves room for."""
    longest = max(len(handle.get_label()) for handle in handles)
    columns = max(1, min(len(handles), 4, 120 // (longest + 8)))
    lines = math.ceil(len(handles) / columns) + 1
    height = figure.get_figheight()
    extra = 0.22 * lines + 0.1
    figure.set_figheight(height + extra)
    figure.subplots_adjust(bottom=(figure.subplotpars.bottom * height + extra) / (height + extra),
                           top=(figure.subplotpars.top * height + extra) / (height + extra))
    figure.legend(handles=handles, title=title, loc="lower center", ncol=columns, handlelength=2.4, columnspacing=3, fontsize=10)


def save(plt, figure, out):
    write_whole(out, lambda file: figure.savefig(file, format=out.suffix[1:].lower(), dpi=150))
    plt.close(figure)


def stamps(arguments):
    """What changes when a log does: one that grows, one that is begun anew, one that goes away."""
    found = []
    for run in arguments.runs:
        try:
            stat = os.stat(os.path.join(run, "log.jsonl") if os.path.isdir(run) else run)
            found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
        except OSError:
            found.append(None)
    return found


def watch(plt, arguments, out):
    """Draws again whenever a log has changed, until all runs have ended or the user stops it. The picture of before stays while there is none."""
    before = None
    try:
        while True:
            now = stamps(arguments)         # of before the reading, so that nothing that is logged meanwhile is missed
            if now != before:
                runs, ended = load_runs(arguments)
                if runs:
                    save(plt, draw(plt, runs), out)
                    print(f"{out}: step {', '.join(str(records['step'][-1]['step']) if records['step'] else '0' for _, records in runs)}", flush=True)
                if ended:
                    print("plot: all runs have ended")
                    return
                before = now
            time.sleep(arguments.every)
    except KeyboardInterrupt:
        print()


def pyplot(out):
    """matplotlib's, in our style, for a picture of this name."""
    if out.suffix[1:].lower() not in ("png", "svg", "pdf"):
        refuse(f"{out}: must end in .png, .svg or .pdf")
    try:
        import matplotlib
    except ImportError:
        refuse("matplotlib is missing; install it (make deps)")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style(plt)
    return plt


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or its log.jsonl")
    parser.add_argument("-o", "--out", default="curves.png", metavar="FILE", help="the picture: .png, .svg or .pdf (default: curves.png)")
    parser.add_argument("--watch", action="store_true", help="draw again whenever a log has changed, until all runs have ended; runs may begin later")
    parser.add_argument("--every", type=float, default=2, metavar="SECONDS", help="with --watch: how often to look (default: 2)")
    arguments = parser.parse_args()
    out = Path(arguments.out)
    if not 0 < arguments.every <= 86400:
        refuse(f"--every is {arguments.every:g}, but must be above 0 and at most 86400 seconds")
    plt = pyplot(out)
    if arguments.watch:
        watch(plt, arguments, out)
        return
    runs, _ = load_runs(arguments)
    if not runs:
        refuse("nothing to plot: no log has a step yet; --watch waits for it")
    save(plt, draw(plt, runs), out)
    print(out)


if __name__ == "__main__":
    main()
