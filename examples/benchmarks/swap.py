# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
`DDMScheduler` in the place of the scheduler that a model came with, beside diffusers' schedulers for such models.

    python examples/benchmarks/swap.py --output_dir swap --training_dir training   # resumes where it was
    python examples/benchmarks/swap.py --output_dir swap --quick --models digits   # a minute, only to see that it runs
    python examples/benchmarks/swap.py --output_dir swap --report_only             # table, JSON and plot of what is there

The models predict noise, as DDPM's (linear betas, 1,000 timesteps). `digits` and `fashion_mnist_7x7` are the exact ones of
`samplers.py`, closed formulas, so that what is left is the sampler's own error. `trained` is a network, the DDPM of
`training.py`, `ddpm-0.safetensors` in `--training_dir`. This makes it:

    python examples/benchmarks/training.py --output_dir training --methods ddpm --seeds 0 --train_steps 6000 --train_batch_size 32

which may be stopped when the file is there, since what follows are that script's own measurements.

Samples, distances and floors are those of the two scripts. Of the exact models every setting of diffusers' schedulers runs
with the first seed, and the best of each with the others. Under the trained model each is screened with
`--num_screening_samples`, and the best then run with `--num_samples`, as DDIM, UniPC, DPM-Solver++ and its stochastic variant
do in any case. What counts is the distance above the floor, which is what true images score: that of the swapped scheduler
with its defaults, over that of the best of diffusers' schedulers at the same number of evaluations.
"""

import argparse
import json
from datetime import date
from pathlib import Path

import numpy as np
import samplers
import torch
import training
from diffusers import DDPMScheduler
from fashion_mnist import DEBIAN_FOLDER, FrechetDistance, load_fashion_mnist, to_tensor, train_classifier
from safetensors.torch import load_file

from ddm_diffusers import DDMScheduler


EVALUATIONS = (5, 10, 20)
MODELS = (*samplers.DATASETS, "trained")
# What a setting's distance above the floor is to be at most, as a multiple of the best peer's
TO_REACH = {
    **{dataset: {5: 0.4, 10: 0.3} for dataset in samplers.DATASETS},
    "trained": {5: 0.6, 10: 1.0, 20: 1.0},
}
DEFAULT = training.OURS + "default"
ALWAYS = ("DDIM", "DPM++ 2M", "SDE-DPM++ 2M", "UniPC")


# ---------------------------------------------------------------------------------------------------------- exact models
def SwappedDDMScheduler(**options):
    """[`DDMScheduler`] as it takes over an exact model."""
    # the data of a mixture is not confined to [-1, 1]
    theirs = DDPMScheduler(**samplers.VARIANCE_PRESERVING, clip_sample=False)
    return DDMScheduler.from_config(theirs.config, **options)


def swapped(name, **options):
    # the defaults are spelled out, so that a row knows what it ran
    config = SwappedDDMScheduler(**options).config
    return samplers.Setting(SwappedDDMScheduler, name, {key: config[key] for key in samplers.DDM_OPTIONS})


SWAPPED = [
    swapped("default"),
    swapped("churn 1", churn=1.0),
    swapped("eta 0", eta=0.0),
    swapped("order 3, eta 0", eta=0.0, solver_order=3),
    swapped("order 3, eta 0, shift 0.6", eta=0.0, solver_order=3, shift=0.6),
    swapped("paper", **training.PAPER),
]
# those of diffusers' schedulers that are handed the very same model
PEERS = [setting for setting in samplers.PEERS if setting.options.items() >= samplers.VARIANCE_PRESERVING.items()]


def exact_table(dataset, args):
    """`{line: {evaluations: {"distance", "setting"}}}` of one exact model, and what true samples score."""
    args = argparse.Namespace(**{**vars(args), "num_samples": args.num_exact_samples})
    results = samplers.Results(Path(args.output_dir, "exact.json"))
    if not args.report_only:
        mixture = samplers.load_mixture(dataset, args)
        samplers.benchmark(results, dataset, mixture, PEERS, args)
        for setting in SWAPPED:
            for seed in range(args.num_seeds):
                results.fill(dataset, mixture, setting, args.evaluations, args.num_samples, seed)
    lines = {training.OURS + setting.name: [setting] for setting in SWAPPED} | samplers.by_scheduler(PEERS)
    rows = {name: results.rows_of(dataset, settings, args.num_samples) for name, settings in lines.items()}
    floor = results.floors.get((dataset, args.num_samples), {}).get("frechet", {}).get("mean")
    return {name: samplers.best(group) for name, group in rows.items()}, floor


# ------------------------------------------------------------------------------------------------------------- a network
def trained_table(args):
    """The same of the trained model, with a line for each sampler that ran with all samples."""
    folder = Path(args.output_dir)
    weights = Path(args.training_dir, "ddpm-0.safetensors")
    if not weights.is_file():
        raise FileNotFoundError(f"{weights} is missing: see --help for how to train it, or name other --models.")
    classifier, _ = train_classifier(Path(args.training_dir, "classifier.safetensors"), args.data_dir)
    metric = FrechetDistance(classifier)
    for batch in to_tensor(load_fashion_mnist("test", args.data_dir)[0]).split(500):
        metric.update(batch, real=True)
    rows = training.Rows("ddpm", 0, metric, folder)
    if not args.report_only:
        method = training.METHODS["ddpm"]
        rows.model = method.build().eval()
        rows.model.load_state_dict(load_file(weights))
        for n in args.evaluations:
            peers = [name for name in method.samplers if not name.startswith(training.OURS)]
            peers.sort(key=lambda name: rows.distance(name, n, args.num_screening_samples))
            for name in dict.fromkeys([DEFAULT, *peers[: args.num_finalists], *ALWAYS]):
                rows.distance(name, n, args.num_samples)
    table = {}
    for row in rows.rows:
        if row["num_samples"] == args.num_samples and row["evaluations"] <= row["nfe"]:
            winner = {"distance": row["distance"], "setting": row["sampler"]}
            table.setdefault(row["sampler"], {})[row["nfe"]] = winner
    images = to_tensor(load_fashion_mnist("train", args.data_dir)[0])[: 3 * args.num_samples]
    return table, float(np.mean([metric.distance(part) for part in images.split(args.num_samples)]))


# --------------------------------------------------------------------------------------------------------------- report
def comparisons(model, table, floor):
    """Each of our settings beside the best peer and DDIM, at each number of evaluations, by distances above the floor."""
    found = []
    ours_at = [(n, name) for name, line in table.items() if name.startswith(training.OURS) for n in line]
    for n, name_of_ours in sorted(ours_at, key=lambda key: key[0]):
        ours = table[name_of_ours][n]
        peers = {name: line[n]["distance"] for name, line in table.items() if n in line}
        peers = {name: distance for name, distance in peers.items() if not name.startswith(training.OURS)}
        if not peers:
            continue
        peer = min(peers, key=peers.get)
        excess, peer_excess = ours["distance"] - floor, peers[peer] - floor
        entry = {
            "model": model,
            "evaluations": n,
            "setting": name_of_ours,
            "distance": ours["distance"],
            "floor": floor,
        }
        entry |= {"peer": peer, "peer_setting": table[peer][n]["setting"], "peer_distance": peers[peer]}
        # at the floor there is nothing left to compare
        entry["ratio"] = excess / peer_excess if peer_excess > 0 else None
        entry["to_reach"] = TO_REACH[model].get(n)
        if entry["to_reach"] is not None and entry["ratio"] is not None:
            entry["reached"] = excess <= entry["to_reach"] * peer_excess
        if "DDIM" in peers:
            entry |= {"ddim_distance": peers["DDIM"], "better_than_ddim": ours["distance"] <= peers["DDIM"]}
        found.append(entry)
    return found


def report(tables, floors, args):
    """Print the tables and what was to be reached; write `swap.json` and `swap.png`."""
    compared = []
    for model, table in tables.items():
        lines = [
            (name, [line.get(n, {}).get("distance", "") for n in args.evaluations]) for name, line in table.items()
        ]
        lines = [line for line in lines if any(line[1])] + [("floor", [floors[model]] * len(args.evaluations))]
        print("\n" + training.markdown(model, args.evaluations, lines) + "\n")
        compared += comparisons(model, table, floors[model])
    for entry in compared:
        ratio = "no ratio, the peer is at the floor" if entry["ratio"] is None else f"{entry['ratio']:.2f}"
        verdict = {True: ", reached", False: ", not reached", None: ""}[entry.get("reached")]
        target = "" if entry["to_reach"] is None else f" (to reach: {entry['to_reach']:.2f}{verdict})"
        ddim = {True: "", False: "; worse than DDIM"}[entry.get("better_than_ddim", True)]
        print(
            f"{entry['model']} at {entry['evaluations']}, {entry['setting']}: {entry['distance']:.4g}, best peer"
            f" {entry['peer_distance']:.4g} ({entry['peer']}: {entry['peer_setting']}), floor {entry['floor']:.4g}, above the"
            f" floor: {ratio}{target}{ddim}"
        )
    content = {
        "date": date.today().isoformat(),
        "versions": samplers.versions(),
        "settings": {k: v for k, v in vars(args).items() if k not in ("output_dir", "training_dir", "data_dir")},
        "training": training_record(args) if "trained" in tables else None,
        "default": {key: value for key, value in SwappedDDMScheduler().config.items() if key in samplers.DDM_OPTIONS},
        "compared": compared,
        "floors": floors,
        "tables": tables,
    }
    training.write_json(Path(args.output_dir, "swap.json"), content)
    plot(tables, floors, args)


def training_record(args):
    """What `training.py` has written of how it trained the model."""
    path = Path(args.training_dir, "ddpm-0.training.json")
    return json.loads(path.read_text()) if path.is_file() else None


def plot(tables, floors, args):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(tables), figsize=(6 * len(tables), 5), squeeze=False)
    for axis, (model, table) in zip(axes[0], tables.items(), strict=True):
        for name, line in table.items():
            own = name.startswith(training.OURS)
            style = {"color": "tab:red", "linewidth": 2.5 if name == DEFAULT else 1} if own else {"linewidth": 1}
            style["linestyle"] = "--" if own and name != DEFAULT else "-"
            axis.loglog(
                list(line),
                [winner["distance"] for winner in line.values()],
                marker="o",
                markersize=3,
                label=name,
                **style,
            )
        axis.axhline(floors[model], color="gray", linewidth=1, label="true images")
        axis.set_title(model)
        axis.set_xlabel("evaluations of the model")
        axis.set_ylabel("Frechet distance")
        axis.set_xticks(args.evaluations, [str(n) for n in args.evaluations])
        axis.set_xticks([], minor=True)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(Path(args.output_dir, "swap.png"), dpi=120)
    plt.close(figure)


# ----------------------------------------------------------------------------------------------------------------- main
def parse_args(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="swap", help="Where rows, swap.json and swap.png go.")
    parser.add_argument("--training_dir", default="training", help="The folder of ddpm-0.safetensors.")
    parser.add_argument("--data_dir", default=DEBIAN_FOLDER, help="The folder of Fashion-MNIST's four files.")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--evaluations", type=int, nargs="+", default=EVALUATIONS)
    parser.add_argument("--num_samples", type=int, default=5000, help="Of the trained model, for the rows reported.")
    parser.add_argument("--num_screening_samples", type=int, default=500, help="Of it, to choose these rows.")
    parser.add_argument("--num_exact_samples", type=int, default=4000, help="Of the exact models.")
    parser.add_argument("--num_seeds", type=int, default=3, help="Of the exact models.")
    parser.add_argument("--num_finalists", type=int, default=2, help="Settings of diffusers' that run on all samples.")
    parser.add_argument("--quick", action="store_true", help="Few samples, one seed.")
    parser.add_argument("--report_only", action="store_true", help="Sample nothing.")
    args = parser.parse_args(arguments)
    if args.quick:
        args.num_samples, args.num_screening_samples, args.num_exact_samples, args.num_seeds = 200, 150, 500, 1
        args.evaluations = args.evaluations[:2]
    return args


def main(arguments=None):
    args = parse_args(arguments)
    torch.set_num_threads(1)  # one number of threads, one result
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    tables, floors = {}, {}
    for model in args.models:
        table, floor = trained_table(args) if model == "trained" else exact_table(model, args)
        if any(table.values()):
            tables[model], floors[model] = table, floor
    report(tables, floors, args)


if __name__ == "__main__":
    main()
