"""Relevance of many samples: one trace and one pass a batch, and one account of them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dualview.engine.batches import Inputs, num_rows
from dualview.engine.propagation.account import Account, joined_account
from dualview.engine.propagation.composites import Composite
from dualview.engine.propagation.trace import Trace, trace
from dualview.engine.site import Site

Seed = Callable[[slice, Trace], Tensor]


@dataclass(frozen=True, eq=False)
class Passes:
    """Relevance of many samples, on the CPU.

    Attributes:
        inputs: relevance of every floating-point input "sample ...", by its place in the inputs.
        sites: relevance at the sites that were asked for, "sample ...".
        logits: the model's outputs "sample cls".
        account: where all of it went, sample by sample.
    """

    inputs: dict[str, Tensor]
    sites: dict[Site, Tensor]
    logits: Tensor
    account: Account


def relevance(
    model: nn.Module,
    batches: Iterable[Inputs],
    composite: Composite,
    seed: Seed,
    *,
    at: Site | None = None,
    sites: Iterable[Site] = (),
) -> Passes:
    """Propagate relevance batch by batch; what the account says of it is for the caller to warn of.

    Args:
        model: the network.
        batches: inputs as the model takes them, in the order of the samples.
        composite: which rule stands where.
        seed: (which samples, their trace) → the seed as a modified gradient, relevance / activation,
            shaped like the activation at `at`.
        at: where relevance begins; None for the logits.
        sites: where it is to be read besides the inputs.
    """
    sites = tuple(dict.fromkeys(sites))
    watched = sites if at is None else tuple(dict.fromkeys((*sites, at)))
    done, logits, found = 0, [], []
    for inputs in batches:
        passed = trace(model, inputs, composite, sites=watched)
        rows = slice(done, done + num_rows(inputs))
        found.append(passed.propagate(gradient=seed(rows, passed), at=at))
        logits.append(passed.logits.cpu())
        done = rows.stop
    if not found:
        raise ValueError("`inputs` hold no samples")
    account = joined_account([one.account for one in found])
    return Passes(
        {name: torch.cat([one.inputs[name].cpu() for one in found]) for name in found[0].inputs},
        {site: torch.cat([one.sites[site].cpu() for one in found]) for site in sites},
        torch.cat(logits),
        account,
    )
