#!/usr/bin/env python3
"""Draws what growing saved in `make run`: validation bits per byte over FLOPs of the grown models and of those from scratch, every seed thin,
their mean thick, and the FLOPs after which the grown mean has what scratch ends with."""
import argparse
import math
from pathlib import Path

import log_lines
import plot
from script import refuse

GROWN, SCRATCH = plot.COLORS[1], plot.COLORS[2]


def read(folder):
    """How many layers, and FLOPs (those of its parents included) and validation bits per byte of each evaluation."""
    try:
        log = log_lines.read(folder / "log.jsonl")
    except log_lines.BadLog as error:
        refuse(error)
    curve = [(plot.number(e, "total_flops"), plot.number(e, "val_bpb")) for _, e in sorted(log.evals.items())]
    if len(curve) < 2 or not all(map(math.isfinite, sum(curve, ()))):
        refuse(f"{folder}: has fewer than two evaluations in bits per byte; let make run end")
    return log.start["config"]["n_layer"], curve


def reached(curve, goal):
    """FLOPs at which the curve comes down to the goal, by straight lines; None where it does not."""
    for (x0, y0), (x1, y1) in zip(curve, curve[1:]):
        if y1 <= goal:
            return x0 + (x1 - x0) * min(1, max(0, (y0 - goal) / (y0 - y1)))
    return None


def mean(curves):
    return [tuple(sum(values) / len(curves) for values in zip(*points)) for points in zip(*curves)]


def draw(plt, run, seeds):
    runs = {kind: [read(run / f"{kind}-{seed}") for seed in seeds] for kind in ("shallow", "grown", "scratch")}
    layers = {kind: members[0][0] for kind, members in runs.items()}
    curves = {kind: [curve for _, curve in members] for kind, members in runs.items()}
    means = {kind: mean(members) for kind, members in curves.items()}
    figure, axes = plt.subplots(figsize=(8.2, 4.3))
    labels = {
        "shallow": (GROWN, (0, (1.5, 1.5)), f"first {layers['shallow']} layers"),
        "grown": (GROWN, "-", f"then grown to {layers['grown']} layers"),
        "scratch": (SCRATCH, "-", f"{layers['scratch']} layers from the start"),
    }
    for kind, (color, dash, label) in labels.items():
        for curve in curves[kind]:
            axes.plot(*zip(*curve), color=color, linestyle=dash, alpha=0.4, linewidth=0.8)
        axes.plot(*zip(*means[kind]), color=color, linestyle=dash, marker="o", markersize=3.5, label=label)
    end, goal = means["scratch"][-1]
    at = reached(means["grown"], goal)
    if at is not None:
        axes.annotate("", (at, goal), (end, goal), arrowprops=dict(arrowstyle="<->", color=plot.INK, shrinkA=0, shrinkB=0))
        axes.text((at + end) / 2, goal, f"{100 * (1 - at / end):.0f} % of the FLOPs saved", ha="center", va="center", fontweight="bold",
                  bbox=dict(facecolor="white", edgecolor="none", pad=1.5, alpha=0.9))
    low = means["grown"][-1][1]
    high = max(y for members in curves.values() for curve in members for _, y in curve[1:])
    axes.set_ylim(low - 0.06 * (high - low), high + 0.03 * (high - low))
    axes.set_title("Grown against trained deep from the start, at equal FLOPs")
    axes.set_ylabel("validation bits per byte")
    axes.set_xlabel("FLOPs, parents included")
    axes.tick_params(length=0)
    plot.scale_flops([axes])
    axes.legend(title=f"mean of {len(seeds)} seeds; thin: each" if len(seeds) > 1 else "one seed")
    figure.tight_layout()
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", default="out/run", metavar="RUN", help="the folder that make run wrote (default: out/run)")
    parser.add_argument("-o", "--out", default="saving.svg", metavar="FILE", help="the picture: .png, .svg or .pdf (default: saving.svg)")
    arguments = parser.parse_args()
    run = Path(arguments.run)
    seeds = sorted(int(folder.name.split("-")[1]) for folder in run.glob("scratch-*") if folder.is_dir() and folder.name.split("-")[1].isdigit())
    if not seeds:
        refuse(f"{run}: holds no scratch-1, as make run writes it; give its folder")
    out = Path(arguments.out)
    plt = plot.pyplot(out)
    plot.save(plt, draw(plt, run, seeds), out)
    print(out)


if __name__ == "__main__":
    main()
