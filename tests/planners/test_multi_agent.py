import pickle
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import combinations, pairwise, product

import numpy as np
import pytest

from planners.edges import GraphError, Straight
from planners.graph import StateGraph
from planners.multi_agent import NoJointPlan, Plan, conflict_based, conflicts, prioritised, repair
from policies.spec import Array

COST = Straight(1.0)
LINE = [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]]
CORRIDOR = StateGraph.build(LINE, [*pairwise(range(5))], COST)
BAY = StateGraph.build([*LINE, [3.0, 1.0]], [*pairwise(range(5)), (3, 5)], COST)
MIDDLE = StateGraph.build([*LINE, [2.0, 1.0]], [*pairwise(range(5)), (2, 5)], COST)
CROSS = StateGraph.build([[-2, 0], [0, 0], [2, 0], [0, -2], [0, 2]], [[0, 1], [1, 2], [3, 1], [1, 4]], COST)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def by_priority(graph: StateGraph, starts: Sequence[int], goals: Sequence[int], distance: float) -> Plan:
    return prioritised(graph, starts, goals, distance, rng())


Planner = Callable[[StateGraph, Sequence[int], Sequence[int], float], Plan]
PLANNERS = [by_priority, conflict_based]


def least_distance(plan: Plan, shares: int = 20) -> float:
    """Of any two agents at any of many moments within steps."""
    length = max(plan.arrivals) + 2
    moments = np.arange(0, length, 1 / shares)
    tracks = [
        np.stack([np.interp(moments, np.arange(len(path)), path[:, axis]) for axis in (0, 1)], -1)
        for path in plan.positions
    ]
    return min(float(np.linalg.norm(one - other, axis=-1).min()) for one, other in combinations(tracks, 2))


Place = tuple[int, int, int, bool]  # from node, to node, steps gone, done for good


def joint_optimum(graph: StateGraph, starts: list[int], goals: list[int], distance: float) -> int | None:
    """Sum of costs of two agents by Dijkstra over both at once, step by step; None if there is no plan."""
    points, moves = graph.nodes[:, :2].astype(float), dict[int, list[tuple[int, int]]]()
    for (one, other), cost in zip(graph.edges.tolist(), np.ceil(graph.costs - 1e-6).astype(int).tolist(), strict=True):
        moves.setdefault(one, []).append((other, cost))
        moves.setdefault(other, []).append((one, cost))
    steps = {(node, after): cost for node, ways in moves.items() for after, cost in ways}

    def where(place: Place) -> Array:
        node, after, gone, _ = place
        return points[node] + (points[after] - points[node]) * (gone / steps[node, after] if gone else 0)

    def moved(node: int, after: int, gone: int) -> Place:
        return (after, after, 0, False) if gone == steps[node, after] else (node, after, gone, False)

    def following(place: Place) -> Iterator[Place]:
        node, after, gone, done = place
        if done or not gone:
            yield place
        if gone:
            yield moved(node, after, gone + 1)
        elif not done:
            yield from (moved(node, after, 1) for after, _ in moves[node])

    def ended(place: Place, goal: int) -> list[Place]:
        at_goal = place[:3] == (goal, goal, 0)
        return [place, (*place[:3], True)] if at_goal and not place[3] else [place]

    shares = np.linspace(0, 1, 41)[:, None]
    first: list[Place] = [(node, node, 0, False) for node in starts]
    queue, seen = [(0, *pair) for pair in product(ended(first[0], goals[0]), ended(first[1], goals[1]))], set()
    while queue:
        cost, *pair = heappop(queue)
        if tuple(pair) in seen:
            continue
        seen.add(tuple(pair))
        if all(place[3] for place in pair):
            return cost
        more = cost + sum(not place[3] for place in pair)
        for two in product(following(pair[0]), following(pair[1])):
            before, after = where(pair[0]) - where(pair[1]), where(two[0]) - where(two[1])
            if np.linalg.norm(before + shares * (after - before), axis=-1).min() >= distance - 1e-6:
                for both in product(ended(two[0], goals[0]), ended(two[1], goals[1])):
                    heappush(queue, (more, *both))
    return None


@pytest.mark.parametrize("plan_of", PLANNERS)
def test_two_swap_where_there_is_a_bay(plan_of: Planner) -> None:
    plan = plan_of(BAY, [0, 4], [4, 0], 1.0)
    assert not conflicts(plan.positions, 1.0) and least_distance(plan) >= 1 - 1e-6
    for path, route, (start, goal) in zip(plan.positions, plan.routes, [(0, 4), (4, 0)], strict=True):
        np.testing.assert_array_equal(path[[0, -1]], BAY.nodes[[start, goal]])
        np.testing.assert_array_equal(path[route.times.astype(int)], route.states)
    assert plan.arrivals == [len(path) - 1 for path in plan.positions]
    assert plan.cost == sum(plan.arrivals) == joint_optimum(BAY, [0, 4], [4, 0], 1.0)


def test_a_bay_that_only_both_together_can_use_takes_conflict_based_search() -> None:
    # Whoever goes first meets the other before it has reached the bay.
    with pytest.raises(NoJointPlan) as refusal:
        by_priority(MIDDLE, [0, 4], [4, 0], 1.0)
    assert refusal.value.reason == "blocked"
    plan = conflict_based(MIDDLE, [0, 4], [4, 0], 1.0)
    assert plan.cost == joint_optimum(MIDDLE, [0, 4], [4, 0], 1.0) and least_distance(plan) >= 1 - 1e-6


def test_without_a_bay_there_is_no_swap() -> None:
    with pytest.raises(NoJointPlan, match=r"agent [01] has no way") as refusal:
        prioritised(CORRIDOR, [0, 4], [4, 0], 1.0, rng())
    assert refusal.value.reason == "blocked" and refusal.value.agent in (0, 1)
    with pytest.raises(NoJointPlan, match="20 expansions") as spent:
        conflict_based(CORRIDOR, [0, 4], [4, 0], 1.0, 20)
    assert spent.value.reason == "budget" and spent.value.agent is None


@pytest.mark.parametrize("plan_of", PLANNERS)
@pytest.mark.parametrize(("distance", "delay"), [(0.0, 0), (0.7, 1), (1.4, 2), (1.5, 3)])
def test_at_a_crossing_one_waits_as_long_as_the_distance_asks(plan_of: Planner, distance: float, delay: int) -> None:
    # One a steps behind the other: at right angles they are never nearer than a / sqrt(2).
    plan = plan_of(CROSS, [0, 3], [2, 4], distance)
    assert sorted(plan.arrivals) == [4, 4 + delay]
    assert least_distance(plan) >= distance - 1e-6


def random_graph(seed: int) -> tuple[StateGraph, list[int], list[int]]:
    """A ring of six nodes with chords, and starts and goals of two agents that are far enough apart."""
    draw = np.random.default_rng(seed)
    nodes = draw.uniform(0, 4, (6, 2))
    edges = [*pairwise(range(6)), *draw.integers(6, size=(int(draw.integers(3)), 2)).tolist()]
    graph = StateGraph.build(nodes, edges, Straight(1.5))
    apart = np.linalg.norm(nodes[:, None] - nodes, axis=-1)
    while True:
        ends = draw.permutation(6)[:4].tolist()
        if min(apart[ends[0], ends[1]], apart[ends[2], ends[3]]) > 1:
            return graph, ends[:2], ends[2:]


def test_conflict_based_is_optimal_and_prioritised_never_better() -> None:
    optima, harder, spent = list[int](), 0, 0
    for seed in range(40):
        graph, starts, goals = random_graph(seed)
        optimum = joint_optimum(graph, starts, goals, 0.8)
        try:
            cost = prioritised(graph, starts, goals, 0.8, rng()).cost
        except NoJointPlan:
            cost = None
        if optimum is None:
            assert cost is None
            continue
        try:
            plan = conflict_based(graph, starts, goals, 0.8, 300)
        except NoJointPlan as refusal:  # head-on
            assert refusal.reason == "budget"
            spent += 1
            continue
        assert plan.cost == optimum and least_distance(plan) >= 0.8 - 1e-6, seed
        assert cost is None or cost >= optimum
        harder += optimum > prioritised(graph, starts, goals, 0.0, rng()).cost
        optima.append(optimum)
    assert len(optima) >= 20 and harder >= 5 and spent <= 3


def test_distance_holds_within_steps_for_many_agents() -> None:
    side = 7
    nodes = np.stack(np.divmod(np.arange(side**2), side), -1)
    edges = [(k, k + 1) for k in range(side**2) if k % side < side - 1] + [(k, k + side) for k in range(side * 6)]
    graph = StateGraph.build(nodes, edges, Straight(0.3))
    draw, solved = np.random.default_rng(1), 0
    for _ in range(5):
        starts, goals = (draw.permutation(side**2)[:6] for _ in range(2))
        plan = prioritised(graph, starts, goals, 0.9, draw)
        solved += 1
        assert not conflicts(plan.positions, 0.9) and least_distance(plan, 50) >= 0.9 - 1e-6
        assert plan.cost >= prioritised(graph, starts, goals, 0.0, draw).cost
    assert solved == 5


@pytest.mark.parametrize("plan_of", PLANNERS)
def test_who_has_arrived_is_an_obstacle(plan_of: Planner) -> None:
    # The short way of the second one leads over the goal of the first; the long one around it takes 6 steps.
    nodes = [[0, 0], [1, 0], [2, 0], [3, 0], [1, 3], [2, 3], [2, -1]]
    graph = StateGraph.build(nodes, [[0, 1], [1, 2], [2, 3], [0, 4], [4, 5], [5, 3], [2, 6]], COST)
    plan = plan_of(graph, [6, 0], [2, 3], 0.9)
    assert plan.cost == joint_optimum(graph, [6, 0], [2, 3], 0.9) == 4 + 3  # the first one lets the second pass
    closed = StateGraph.build(nodes, [[0, 1], [1, 2], [2, 3]], COST)
    with pytest.raises(NoJointPlan) as refusal:
        plan_of(closed, [2, 0], [2, 3], 0.9)
    assert refusal.value.reason in ("blocked", "budget")


def test_conflicts_are_found_between_steps_and_after_arrival() -> None:
    swap = [np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([[1.0, 0.1], [0.0, 0.1]])]
    assert [(*found[:2], round(found.distance, 6)) for found in conflicts(swap, 0.5)] == [((0, 1), 0, 0.1)]
    assert not conflicts(swap, 0.1)
    parked, passing = np.array([[2.0, 0.0]]), np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    far = np.array([[9.0, 9.0]])
    assert conflicts([far, passing, parked], 0.5) == [((1, 2), 2, 0.0)]
    assert not conflicts([far], 1.0) and not conflicts([], 1.0)


def test_repair_lets_one_wait_at_a_crossing() -> None:
    walk = np.linspace(-2, 2, 21)[:, None]
    paths = [walk * [1, 0], walk * [0, 1], np.array([[5.0, 5.0]])]
    assert conflicts(paths, 0.5)[0].agents == (0, 1)
    plan = repair(paths, 0.5, rng())
    delays = [arrival - len(path) + 1 for arrival, path in zip(plan.arrivals, paths, strict=True)]
    assert sorted(delays) == [0, 0, 4]  # 4 steps of 0.2 m are the first to keep 0.5 m at right angles
    assert least_distance(plan) >= 0.5 - 1e-6
    for path, old in zip(plan.positions, paths, strict=True):
        kept = np.r_[True, (np.diff(path, axis=0) != 0).any(1)]
        np.testing.assert_allclose(path[kept], old)


def least_delay(mine: Array, other: Array, distance: float) -> int | None:
    """Of one path among another that is fixed, by going through all places and steps; None if waiting is no help."""
    horizon = len(mine) + len(other)
    other = np.concatenate([other, np.repeat(other[-1:], 2 * horizon, axis=0)])

    def safe(place: int, after: int, step: int) -> bool:
        before, later = mine[place] - other[step], mine[after] - other[step + 1]
        shares = np.linspace(0, 1, 201)[:, None]
        return bool(np.linalg.norm(before + shares * (later - before), axis=-1).min() >= distance)

    here, last = {0}, len(mine) - 1
    for step in range(horizon):
        if last in here and all(safe(last, last, later) for later in range(step, horizon)):
            return step - last
        here = {k for place in here for k in (place, min(place + 1, last)) if safe(place, k, step)}
    return None


def test_repair_delays_two_by_the_least() -> None:
    draw, delays = np.random.default_rng(3), []
    for _ in range(60):
        paths = [np.cumsum(draw.normal(way, 0.3, (12, 2)), axis=0) for way in ([0.3, 0], [0, 0.3])]
        paths[1] += [2, -2]
        options = [least_delay(*paths, 0.7), least_delay(*paths[::-1], 0.7)]
        least = min((delay for delay in options if delay is not None), default=None)
        try:
            delays.append(repair(paths, 0.7, rng()).cost - 22)
        except NoJointPlan:
            delays.append(None)
        assert delays[-1] == least
    assert None in delays and 0 in delays and len({*delays}) > 4


def test_repair_leaves_good_paths_alone_and_does_not_count_standing_at_the_end() -> None:
    walk = np.linspace(0, 2, 11)[:, None] * [1, 0]
    standing = np.concatenate([walk, np.repeat(walk[-1:], 30, axis=0)]) + np.array([0, 3])
    plan = repair([walk, standing], 1.0, rng())
    assert plan.arrivals == [10, 10]
    np.testing.assert_array_equal(plan.positions[1], standing[:11])


def test_repair_refuses_what_waiting_does_not_mend() -> None:
    walk = np.linspace(0, 2, 11)[:, None] * [1, 0]
    with pytest.raises(NoJointPlan, match=r"agent [01] has no way") as refusal:
        repair([walk, walk[::-1]], 0.5, rng())
    assert refusal.value.reason == "blocked"
    with pytest.raises(NoJointPlan, match=r"starts 0\.1 m apart") as near:
        repair([walk, walk[::-1] - np.array([1.9, 0])], 0.5, rng())
    assert near.value.reason == "start" and near.value.agent == 1


def test_impossible_requests_are_named() -> None:
    graph = StateGraph.build([*LINE, [9.0, 9.0]], [*pairwise(range(5))], COST)
    for asked, reason, agent in [
        (([0, 1], [4, 3], 1.5), "start", 1),
        (([0, 4], [2, 3], 1.5), "goal", 1),
        (([0, 4], [1, 5], 0.5), "components", 1),
    ]:
        with pytest.raises(NoJointPlan) as refusal:
            conflict_based(graph, *asked)
        assert (refusal.value.reason, refusal.value.agent) == (reason, agent)
    with pytest.raises(NoJointPlan, match="join the graph, or open what is closed"):
        prioritised(BAY.close(nodes=[2]), [0, 5], [4, 3], 0.5, rng())


@pytest.mark.parametrize(
    ("starts", "goals", "distance"),
    [([0], [1, 2], 1.0), ([0, 9], [1, 2], 1.0), ([0.5, 1], [1, 2], 1.0), ([], [], 1.0), ([0], [1], -1.0)],
)
def test_malformed_requests_are_refused(starts: list[int], goals: list[int], distance: float) -> None:
    with pytest.raises(GraphError):
        prioritised(CORRIDOR, starts, goals, distance, rng())
    directed = StateGraph.build(LINE, [*pairwise(range(5))], COST, directed=True)
    with pytest.raises(GraphError, match="undirected"):
        conflict_based(directed, [0], [1], 1.0)
    with pytest.raises(GraphError, match="path of agent 1"):
        conflicts([np.zeros((3, 2)), np.full((3, 2), np.nan)], 1.0)
    with pytest.raises(GraphError, match="there are no paths"):
        repair([], 1.0, rng())
    with pytest.raises(GraphError, match="orders is 0"):
        prioritised(CORRIDOR, [0], [1], 1.0, rng(), orders=0)
    with pytest.raises(GraphError, match="safety distance"):
        repair([np.zeros((3, 2))], np.inf, rng())


def test_the_same_generator_gives_the_same_plan() -> None:
    plans = [prioritised(CROSS, [0, 3, 2], [2, 4, 0], 0.0, rng()) for _ in range(2)]
    for one, other in zip(plans[0].positions, plans[1].positions, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_refusal_crosses_processes() -> None:
    refusal = pickle.loads(pickle.dumps(NoJointPlan("blocked", 2, "no way")))
    assert (refusal.reason, refusal.agent, str(refusal)) == ("blocked", 2, "no way")
    assert isinstance(refusal, RuntimeError)
