"""Which members to put into a soup (one network with averaged weights), chosen on validation data.

How weights are averaged and how a soup is evaluated is not known here: `score` does it.

Axes: M members.
"""

import math
from collections.abc import Callable, Sequence


def greedy_order(val_accuracy_M: Sequence[float], val_nll_M: Sequence[float]) -> list[int]:
    """Member indices, best first: by accuracy, then by lower NLL, then by index.

    Raises:
        ValueError: if the lengths differ, or if a value is NaN and so has no place in an order.
    """
    if len(val_accuracy_M) != len(val_nll_M):
        raise ValueError(f"{len(val_accuracy_M)} accuracies and {len(val_nll_M)} NLLs")
    if any(math.isnan(value) for value in (*val_accuracy_M, *val_nll_M)):
        raise ValueError(f"members cannot be ordered by NaN: accuracies {val_accuracy_M}, NLLs {val_nll_M}")
    return sorted(range(len(val_accuracy_M)), key=lambda i: (-val_accuracy_M[i], val_nll_M[i], i))


def greedy_soup(order: Sequence[int], score: Callable[[tuple[int, ...]], float]) -> tuple[int, ...]:
    """Greedy recipe of Wortsman et al. (2022): start from the best member, add each next one that helps.

    A member helps if validation accuracy strictly increases, as in the authors' code: ties are left out. Each
    member is tried once.

    Args:
        order: member indices, best first (`greedy_order`).
        score: validation accuracy of the uniform soup of these members; called once for each member.

    Returns:
        Member indices in the order in which they were accepted, the best single member first.

    Raises:
        ValueError: if the order is empty or names a member twice.
    """
    if not order or len(set(order)) != len(order):
        raise ValueError(f"the order must name each member once, and at least one, got {list(order)}")
    ingredients = [order[0]]
    best = score((order[0],))
    for member in order[1:]:
        accuracy = score((*ingredients, member))
        if accuracy > best:
            ingredients.append(member)
            best = accuracy
    return tuple(ingredients)
