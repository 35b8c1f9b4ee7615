"""Objects are matched one to one, as many as possible, with the partners that fit best."""

import itertools

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from kasthuri_ray.metrics.matching import count_label_pairs
from kasthuri_ray.metrics.one_to_one import match_by_overlap, match_one_to_one


def random_graph(rng, num_true=12, num_predicted=14, num_pairs=22):
    chosen = rng.choice(num_true * num_predicted, num_pairs, replace=False)
    return chosen // num_predicted, chosen % num_predicted, rng.integers(1, 50, num_pairs)


def dense(true, predicted, weights, num_true=12, num_predicted=14):
    matrix = np.zeros((num_true, num_predicted))
    matrix[true, predicted] = weights
    return matrix


@pytest.mark.parametrize("seed", range(60))
def test_as_many_pairs_are_matched_as_in_a_dense_assignment(seed):
    rng = np.random.default_rng(seed)
    graph = random_graph(rng)
    matrix = dense(*graph) > 0
    matched = match_one_to_one(*graph, rng.random(14))
    rows, columns = linear_sum_assignment(~matrix)
    assert len(matched.true) == matrix[rows, columns].sum()
    assert matrix[matched.true, matched.predicted].all()
    assert len(set(matched.true)) == len(set(matched.predicted)) == len(matched.true)
    assert (np.diff(matched.true) > 0).all()


@pytest.mark.parametrize("seed", range(30))
def test_at_every_cut_of_the_score_the_matching_is_a_maximum_one(seed):
    rng = np.random.default_rng(seed)
    true, predicted, weights = random_graph(rng)
    scores = rng.integers(0, 6, 14) / 5  # with ties
    matched = match_one_to_one(true, predicted, weights, scores)
    for cut in np.unique(scores):
        kept = scores[predicted] >= cut
        matrix = csr_array(dense(true[kept], predicted[kept], weights[kept]) > 0)
        expected = (maximum_bipartite_matching(matrix, "column") >= 0).sum()
        assert (scores[matched.predicted] >= cut).sum() == expected


@pytest.mark.parametrize("seed", range(20))
def test_the_partners_of_the_matched_objects_share_the_most(seed):
    rng = np.random.default_rng(seed)
    graph = random_graph(rng, 5, 5, 12)
    matrix = dense(*graph, 5, 5)
    matched = match_one_to_one(*graph)
    best = max(
        matrix[list(trues), matched.predicted].sum()
        for trues in itertools.permutations(range(5), len(matched.predicted))
        if (matrix[list(trues), matched.predicted] > 0).all()
    )
    assert matrix[matched.true, matched.predicted].sum() == best


def test_objects_that_share_a_voxel_are_partners():
    true = np.array([1, 1, 1, 0, 2, 2, 2, 0, 3])
    assert [side.tolist() for side in match_by_overlap(count_label_pairs(true, np.ones(9, int)))] == [[1], [1]]
    split = np.array([1, 0, 2, 0, 3, 3, 3, 4, 0])
    assert [side.tolist() for side in match_by_overlap(count_label_pairs(true, split))] == [[1, 2], [1, 3]]


def test_an_object_gives_way_to_one_that_has_no_other_partner():
    true, predicted = np.array([1, 1, 2, 2, 0]), np.array([1, 2, 1, 1, 0])  # 1 shares more with true 2
    scores = np.array([0, 0.9, 0.1])
    assert [side.tolist() for side in match_by_overlap(count_label_pairs(true, predicted), scores)] == [[1, 2], [2, 1]]


def test_nothing_is_matched_without_candidates():
    nothing = np.zeros(0, int)
    assert [len(side) for side in match_one_to_one(nothing, nothing, nothing)] == [0, 0]


def test_a_large_object_and_many_pieces_take_no_more_time_than_their_pairs():
    pieces = np.arange(100_000)
    spanned = match_one_to_one(np.r_[pieces, 0], np.r_[0 * pieces, 1], np.ones(100_001))
    assert spanned.true.tolist() == [0, 1]
    assert spanned.predicted.tolist() == [1, 0]
    chain = match_one_to_one(np.r_[pieces, pieces[1:]], np.r_[pieces, pieces[:-1]], np.ones(199_999))
    assert len(chain.true) == 100_000
