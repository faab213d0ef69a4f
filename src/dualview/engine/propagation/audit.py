"""The last look at the graph: every node between output and input was made by a rule, or it raises.

Custom autograd functions, scripted modules and whatever else torch's function mode does not show
leave nodes that nobody signed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from dualview.engine.propagation.tape import Tape, is_leaf

# Views are made anew when the memory behind them was written to; nobody can sign for that in time.
REARRANGING = {
    f"{name}Backward{k}"
    for name in """
        Alias AsStrided Clone Diagonal Expand Permute ReshapeAlias Select Slice Split SplitWithSizes Squeeze T
        Transpose Unbind Unfold UnsafeView Unsqueeze View
    """.split()
    for k in range(4)
}


def is_known(node: Any, tape: Tape) -> bool:
    """Tell whether a rule made the node, or it only rearranges."""
    if node in tape.nodes:
        return True
    return not _is_custom(node) and node.name() in REARRANGING


def check_visible(model: nn.Module) -> None:
    """Raise where a module runs out of sight as a whole, or changes gradients.

    Raises:
        NotImplementedError: a module is scripted or traced, or has a backward hook; it is named.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise NotImplementedError(
                f"no relevance rule for module {name!r}: it is scripted or traced, so that nothing inside can be seen; "
                "put the plain Python module in its place"
            )
        if module._backward_hooks or module._backward_pre_hooks:
            raise NotImplementedError(
                f"module {name!r} ({type(module).__name__}) has a backward hook, which would change relevance as it "
                "changes gradients: remove it for this call"
            )


def _is_custom(node: Any) -> bool:
    """Tell a custom autograd.Function from torch's own nodes, whose names it may bear."""
    return isinstance(node, BackwardCFunction)


def check_made_by_rules(tensor: Tensor, tape: Tape, where: str) -> None:
    """Raise if a tensor was made by something no rule saw.

    Args:
        tensor: depends on the input.
        tape: knows which nodes were made by rules.
        where: ends the sentence: "before operation ...", "inside module ...".
    """
    if not is_known(tensor.grad_fn, tape):
        raise hidden(tensor.grad_fn, where)


def hidden(node: Any, where: str) -> NotImplementedError:
    """Return the error for a node that no rule made."""
    if _is_custom(node):
        reason = "a custom autograd.Function has a backward of its own, which no rule covers"
    else:
        reason = "it ran out of sight (a scripted or compiled block, or an extension): run plain Python instead"
    return NotImplementedError(f"no relevance rule for {node.name()!r}, made {where}: {reason}")


def audit(starts: list[Any], leaves: list[Any], tape: Tape) -> None:
    """Walk from the output, and from the sites to be read, down to the leaves of the graph.

    Args:
        starts: the nodes that made them.
        leaves: the inputs' own nodes.
        tape: knows which nodes were made by rules.

    Raises:
        NotImplementedError: a node was made by no rule; it is named.
        ValueError: something depends on a leaf that is no input.
    """
    ours = {*leaves, tape.anchor_edge.node}
    pending, seen = [(node, "the model's output") for node in starts], set()
    while pending:
        node, above = pending.pop()
        if node is None or node in seen or node in ours:
            continue
        seen.add(node)
        if is_leaf(node):
            shape = tuple(node.variable.shape)
            raise ValueError(f"{above} depends on a tensor of shape {shape} that asks for gradients and is no input")
        if not is_known(node, tape):
            raise hidden(node, f"before {above}")
        below = str(tape.nodes.get(node, above))
        pending.extend((next_node, below) for next_node, _ in node.next_functions)
