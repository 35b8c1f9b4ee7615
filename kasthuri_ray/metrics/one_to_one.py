"""Maximum one-to-one matching of predicted and true objects, on the sparse graph of their candidate pairs.

Which pairs are candidates is the criterion: any common voxel (`match_by_overlap`), or what the caller lists
(`match_one_to_one`). Each object gets at most one partner, and there are as many pairs as possible. One object over
everything is therefore one pair, and of the pieces of an object one is right.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from kasthuri_ray.metrics.matching import LabelPairs

FREE = -1  # in place of a partner


class MatchedPairs(NamedTuple):
    """Partners: `true[i]` and `predicted[i]` are one pair, int64, in the order of the true objects."""

    true: np.ndarray
    predicted: np.ndarray


def match_by_overlap(pairs: LabelPairs, scores: np.ndarray | None = None) -> MatchedPairs:
    """Match objects that share a voxel.

    Parameters
    ----------
    pairs : LabelPairs
        Voxels that each true and each predicted object share, each pair once.
    scores : ndarray of float, optional
        See `match_one_to_one`; its entry i is that of the predicted object i. Objects counted from 1 need an entry for
        0.

    Returns
    -------
    MatchedPairs
        As numbered in `pairs`. The more voxels two objects share, the rather they are partners.
    """
    true, predicted, voxels = pairs
    return match_one_to_one(true, predicted, voxels, scores)


def match_one_to_one(
    true: np.ndarray, predicted: np.ndarray, weights: np.ndarray, scores: np.ndarray | None = None
) -> MatchedPairs:
    """Match as many objects as possible, one to one.

    Parameters
    ----------
    true, predicted : ndarray of int, (candidates,)
        The objects of each candidate pair, numbered from 0 or 1; each pair once.
    weights : ndarray, (candidates,)
        Above 0. Of the matchings of the same predicted objects, the one with the highest sum is taken.
    scores : ndarray of float, (predicted objects,), optional
        Which predicted objects come first; by default those with lower numbers.

    Returns
    -------
    MatchedPairs
        A maximum matching. For every cut of the score, its pairs whose predicted objects reach the cut are as many as
        a maximum matching of these objects has.

    Notes
    -----
    Predicted objects are added by falling score, each with a shortest augmenting path (Berge, "Two theorems in graph
    theory", PNAS 1957). A matched object stays matched, which yields the property of the cuts: the sets of predicted
    objects that can be matched are the independent sets of a transversal matroid (Edmonds and Fulkerson, 1965). What a
    search without a path has reached is on no later path, and is not searched again. Time and memory therefore grow
    with the candidate pairs. SciPy then assigns the partners (Jonker and Volgenant, 1987, for sparse graphs).
    """
    true_ids, rows = np.unique(true, return_inverse=True)
    predicted_ids, columns = np.unique(predicted, return_inverse=True)
    if not len(rows):
        return MatchedPairs(np.zeros(0, np.int64), np.zeros(0, np.int64))
    order = np.arange(len(predicted_ids))
    if scores is not None:
        order = np.argsort(-np.asarray(scores, np.float64)[predicted_ids], kind="stable")
    shape = (len(predicted_ids), len(true_ids))
    graph = csr_array((np.asarray(weights, np.float64), (columns, rows)), shape=shape)
    matched = _matchable(graph, order)
    of_matched, partners = min_weight_full_bipartite_matching(graph[matched], maximize=True)
    found = MatchedPairs(true_ids[partners].astype(np.int64), predicted_ids[matched[of_matched]].astype(np.int64))
    by_true = np.argsort(found.true)
    return MatchedPairs(found.true[by_true], found.predicted[by_true])


def _matchable(graph: csr_array, order: np.ndarray) -> np.ndarray:
    """Return the rows that a maximum matching has which prefers the first ones of an order; rising."""
    starts, columns = graph.indptr.tolist(), graph.indices.tolist()
    row_of, column_of = [FREE] * graph.shape[1], [FREE] * graph.shape[0]
    closed = set[int]()  # columns from which no path leads to a free one
    for row in order.tolist():
        reached, queue, free = dict[int, int](), [row], FREE
        for at in queue:  # grows meanwhile
            for column in columns[starts[at] : starts[at + 1]]:
                if column in closed or column in reached:
                    continue
                reached[column] = at
                if row_of[column] == FREE:
                    free = column
                    break
                queue.append(row_of[column])
            if free != FREE:
                break
        if free == FREE:
            closed.update(reached)
            continue
        while free != FREE:  # each row on the path moves on to the column that it reached
            at = reached[free]
            row_of[free] = at
            column_of[at], free = free, column_of[at]
    return np.flatnonzero(np.array(column_of) != FREE)
