"""Learning curves of a run as an image: losses and scores against minutes of training."""

import json
from pathlib import Path

import numpy as np

LOSSES = {"loss_und": "understanding", "loss_text": "text", "loss_gen": "generation"}
SCORES = ("held_out/und_accuracy", "shapes/overall")
SMOOTH = 20  # steps that a point of a loss curve is the mean of


def read_curves(workdir):
    """The curves of WORKDIR/metrics.jsonl, by minutes that training steps have taken.

    Returns:
      losses {(stage, name): (minutes, values)}, scores {name: (minutes, values)}, and stages
      {name: minute at which it begins}.
    """
    minutes, step, losses, scores, stages = 0.0, 0, {}, {}, {}
    for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "stage" in row:
            stages.setdefault(row["stage"], minutes)
            minutes += row["seconds"] * (row["step"] - step) / 60  # a line may be one of many steps
            step = row["step"]
        for name in LOSSES:
            if row.get(name):  # 0 where the stage has no such task
                losses.setdefault((row["stage"], name), []).append((minutes, row[name]))
        for name in SCORES:
            if name in row:
                scores.setdefault(name, []).append((minutes, row[name]))
    columns = lambda curves: {key: tuple(np.array(curve).T) for key, curve in curves.items()}
    return columns(losses), columns(scores), stages


def write_curves(workdir):
    """Writes WORKDIR/curves.png."""
    from matplotlib.figure import Figure  # here: it takes half a second

    losses, scores, stages = read_curves(workdir)
    figure = Figure(figsize=(9, 6), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True)
    colors = {name: f"C{i}" for i, name in enumerate(LOSSES)}
    for (_, name), (minutes, values) in losses.items():
        window = np.ones(min(SMOOTH, len(values)))
        mean = lambda x, w=window: np.convolve(x, w / len(w), "valid")
        top.plot(mean(minutes), mean(values), color=colors[name])
    for name in dict.fromkeys(name for _, name in losses):
        top.plot([], [], color=colors[name], label=LOSSES[name])
    top.set(yscale="log", ylabel="loss", title=Path(workdir).name)
    for name, (minutes, values) in scores.items():
        bottom.plot(minutes, values, marker="o", label=name)
    bottom.set(xlabel="minutes of training", ylabel="score", ylim=(0, 1))
    for axes, curves in ((top, losses), (bottom, scores)):
        for name, start in stages.items():
            axes.axvline(start, color="lightgray", zorder=0)
            axes.text(start, 1.0, f" {name}", va="top", transform=axes.get_xaxis_transform())
        if curves:
            axes.legend(loc="lower left" if axes is top else "lower right")
    figure.savefig(Path(workdir) / "curves.png", dpi=100)
