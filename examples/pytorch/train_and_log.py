#!/usr/bin/env python3
"""Trains a small network on imbalanced made-up classes and logs neural collapse against the epoch.

    train_and_log.py [--ncollapse COMMAND] [--log run.jsonl] [--epochs 200]
    ncollapse plot run.jsonl --out pictures

What to copy are dump() and log_step(): they take any model whose last layer is a torch.nn.Linear.
"""
import argparse
import math
import pathlib
import subprocess
import tempfile

import numpy as np
import torch


@torch.no_grad()
def dump(model, head, loader, folder, device="cpu"):
    """Saves what `head` is given for every sample, the labels, and `head` itself."""
    features, labels = [], []
    hook = head.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0].float().cpu()))
    was_training = model.training
    model.eval()  # batch norm by its running statistics, no dropout
    for inputs, targets in loader:  # the training set, without augmentation
        model(inputs.to(device))
        labels.append(targets)
    hook.remove()
    model.train(was_training)
    np.save(folder / "features.npy", torch.cat(features).numpy())
    np.save(folder / "labels.npy", torch.cat(labels).numpy())
    np.save(folder / "weights.npy", head.weight.detach().float().cpu().numpy())
    if head.bias is not None:
        np.save(folder / "bias.npy", head.bias.detach().float().cpu().numpy())


def log_step(command, log, epoch, loss, model, head, loader, device="cpu"):
    """Measures the model as it is and puts the step behind those in `log`."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        dump(model, head, loader, folder, device)
        call = [command, "analyze", "--log", log, "--epoch", str(epoch), "--quiet"]
        call += [f"--{file.stem}={file}" for file in folder.glob("*.npy")]
        if math.isfinite(loss):
            call.append(f"--loss={loss!r}")
        subprocess.run(call, check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ncollapse", default="ncollapse", help="the command")
    parser.add_argument("--log", default="run.jsonl")
    parser.add_argument("--epochs", type=int, default=200)
    options = parser.parse_args()
    if pathlib.Path(options.log).exists():
        parser.error(f"{options.log} is there: name another --log for another run")

    torch.manual_seed(1)
    counts, dim = [200, 200, 50, 50, 10, 10], 32
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    inputs = torch.randn(len(counts), dim)[labels] + 0.5 * torch.randn(len(labels), dim)
    data = torch.utils.data.TensorDataset(inputs, labels)
    training = torch.utils.data.DataLoader(data, batch_size=64, shuffle=True)
    plain = torch.utils.data.DataLoader(data, batch_size=256)

    head = torch.nn.Linear(64, len(counts))
    model = torch.nn.Sequential(torch.nn.Linear(dim, 128), torch.nn.BatchNorm1d(128), torch.nn.ReLU(),
                                torch.nn.Linear(128, 64), head)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.epochs)
    for epoch in range(1, options.epochs + 1):
        total = 0.0
        for batch, targets in training:
            optimiser.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(batch), targets)
            loss.backward()
            optimiser.step()
            total += loss.item() * len(targets)
        schedule.step()
        if epoch <= 10 or epoch % 10 == 0:
            log_step(options.ncollapse, options.log, epoch, total / len(data), model, head, plain)


if __name__ == "__main__":
    main()
