"""Routing batches through toys of every family, against one row at a time worked out by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stepping import outcome, step, walked
from toys import CLASSES, IMAGE, TREE, ExitTree, Gates, RunSkip

from routing_gym.networks import EXIT, Decision, RoutedMLP, RoutingState


def batch_of(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, *IMAGE, generator=generator), torch.zeros(size, dtype=torch.int64)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_hard_tree_equals_each_row_alone(size, seed):
    torch.manual_seed(seed)
    network = ExitTree(TREE)
    images, task = batch_of(size, seed)
    table = torch.randint(3, (size, len(network.decisions)), generator=torch.Generator().manual_seed(seed))
    table = torch.minimum(table, torch.tensor([d.n - 1 for d in network.decisions]))

    def choose(state):
        return table[torch.arange(size), state.at.clamp(max=len(network.decisions) - 1)]

    state = walked(network, network.start(images, task), choose)
    assert sum(len(exit.logits) for exit in state.exits) == size
    for row in range(size):
        column, h, macs = 0, network.columns[0](images[row : row + 1].flatten(1)), network.stem_macs
        while True:
            decision = network.inner.index(column) if column in network.inner else None
            if decision is None:
                break
            choice = int(table[row, decision])
            macs += network.decisions[decision].macs[choice]
            if choice == 0:
                break
            column = network.tree[column][choice - 1]
            h = network.columns[column](h)
        torch.testing.assert_close(outcome(network, state)[0][row], network.heads[column](h)[0])
        assert float(state.macs[row]) == float(state.expected_macs[row]) == macs


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 5), zeros=st.booleans(), seed=st.integers(0, 10**6))
def test_soft_tree_equals_brute_force_over_paths(size, zeros, seed):
    torch.manual_seed(seed)
    network = ExitTree(TREE)
    images, task = batch_of(size, seed)
    weights = torch.rand(size, len(network.decisions), 3)
    for number, decision in enumerate(network.decisions):
        weights[:, number, decision.n :] = 0
    if zeros:
        weights[:, :, 0] *= torch.rand(size, len(network.decisions)) < 0.5
    weights = (weights / weights.sum(-1, keepdim=True)).requires_grad_()

    def choose(state):
        return weights[torch.arange(size), state.at.clamp(max=len(network.decisions) - 1)]

    state = walked(network, network.start(images, task), choose)

    def paths(column, h, reach, row):
        """Yield (share, logits) of every way out from a column, and what is spent on the way, reach-weighted."""
        if column not in network.inner:
            yield reach, network.heads[column](h), 0.0
            return
        number = network.inner.index(column)
        for choice in range(network.decisions[number].n):
            share = weights[row, number, choice]
            spent = reach * share * network.decisions[number].macs[choice]
            if choice == 0:
                yield reach * share, network.heads[column](h), spent
                continue
            child = network.tree[column][choice - 1]
            yield torch.zeros(()), torch.zeros(1, CLASSES), spent
            yield from paths(child, network.columns[child](h), reach * share, row)

    for row in range(size):
        ways = list(paths(0, network.columns[0](images[row : row + 1].flatten(1)), torch.ones(()), row))
        torch.testing.assert_close(outcome(network, state)[0][row], sum(share * logits[0] for share, logits, _ in ways))
        torch.testing.assert_close(
            state.expected_macs[row], sum(spent for _, _, spent in ways) + network.stem_macs, rtol=1e-5, atol=1e-4
        )
    (gradient,) = torch.autograd.grad(state.expected_macs.sum(), weights)
    assert bool((gradient[:, 0, 0] > 0).all())
    torch.testing.assert_close(outcome(network, state)[1], torch.ones(size))


def test_softly_routed_rows_visit_every_decision_in_order_and_hard_ones_their_path():
    network = ExitTree(TREE)
    images, task = batch_of(2)
    state, seen = network.start(images, task), []
    soft = {3: torch.tensor([[0.2, 0.3, 0.5]] * 2), 2: torch.tensor([[0.5, 0.5, 0.0]] * 2)}
    while bool(state.active.any()):
        number = int(state.at[0])
        seen.append(number)
        state = step(network, state, soft[network.decisions[number].n])
    assert seen == [0, 1, 2, 3]
    assert [len(set(network.decisions[0].next))] == [3] and network.decisions[0].next[0] == EXIT


def test_only_reached_columns_run():
    network = ExitTree(TREE)
    images, task = batch_of(4)
    state = step(network, network.start(images, task), torch.tensor([0, 0, 1, 1]))
    assert state.at.tolist() == [4, 4, 1, 1]
    assert network.rows_run == [4, 2, 0, 0, 0, 0, 0]
    assert network.observe(state)[:2].abs().sum() == 0
    assert network.action_mask(state).tolist() == [[[True] * 3]] * 2 + [[[True, True, False]]] * 2


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 6), hard=st.booleans(), seed=st.integers(0, 10**6))
def test_run_skip_equals_each_row_alone(size, hard, seed):
    torch.manual_seed(seed)
    network = RunSkip()
    images, task = batch_of(size, seed)
    run = torch.randint(2, (size, 3)) if hard else torch.rand(size, 3)

    def choose(state):
        depth = int(state.at[0])
        return run[:, depth] if hard else torch.stack([1 - run[:, depth], run[:, depth]], 1)

    state = walked(network, network.start(images, task), choose)
    for row in range(size):
        h = images[row : row + 1].flatten(1)
        for depth in range(3):
            h = h + float(run[row, depth]) * network.residual[depth](h)
        torch.testing.assert_close(state.exits[0].logits[row], network.head(h)[0])
    torch.testing.assert_close(state.expected_macs, run.float().sum(1) * 36)
    torch.testing.assert_close(state.macs, (run != 0).float().sum(1) * 36)
    if hard:
        assert network.rows_run == int(run.sum())


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 6), paths=st.integers(2, 3), seed=st.integers(0, 10**6))
def test_hard_gates_equal_each_row_alone(size, paths, seed):
    torch.manual_seed(seed)
    network = Gates(paths)
    images, task = batch_of(size, seed)
    choices = torch.randint(paths, (3, size, paths))
    state = network.start(images, task)
    for depth in range(3):
        assert state.sole == depth
        state = step(network, state, choices[depth])
    for row in range(size):
        alive, macs = {0: images[row].flatten()}, 0.0
        for depth in range(3):
            sums = {}
            for tensor, h in alive.items():
                target = int(choices[depth, row, tensor])
                sums[target] = sums.get(target, 0) + h
            alive = {j: torch.tanh(network.layers[depth][j](h)) for j, h in sums.items()}
            macs += len(alive) * network.decisions[depth].macs[0]
        logits = torch.stack([network.heads[j](h) for j, h in alive.items()]).mean(0)
        torch.testing.assert_close(state.exits[0].logits[row], logits)
        assert float(state.macs[row]) == macs == float(state.expected_macs[row])


def test_tensors_that_are_not_alive_may_choose_anything():
    network = Gates(2)
    images, task = batch_of(2)
    state = step(network, network.start(images, task), torch.tensor([[1, 0], [0, 0]]))
    masked = network.action_mask(state)
    assert masked.shape == (2, 2, 2) and bool(masked.all())
    outputs = [step(network, state, torch.tensor([[dead, 1], [1, dead]])) for dead in (0, 1)]
    torch.testing.assert_close(outputs[0].waiting[2].activation[0], outputs[1].waiting[2].activation[0])


def test_expected_gate_cost_counts_the_union():
    network = Gates(2)
    gates = torch.tensor([[[0.5, 0.5], [0.25, 0.75]]])
    executed, expected = network.macs(1, gates)
    assert float(executed) == 32
    assert float(expected) == pytest.approx(16 * (1 - 0.5 * 0.75) + 16 * (1 - 0.5 * 0.25))


@pytest.mark.parametrize("recurrent", [False, True])
@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 8), blocks=st.integers(1, 4), layers=st.integers(3, 5), seed=st.integers(0, 10**6))
def test_routed_mlp_equals_each_row_alone(recurrent, size, blocks, layers, seed):
    torch.manual_seed(seed)
    network = RoutedMLP(IMAGE, CLASSES, blocks, width=6, layers=layers, recurrent=recurrent)
    images, task = batch_of(size, seed)
    choices = [torch.randint(d.n, (size,)) for d in network.decisions]
    state = walked(network, network.start(images, task), lambda state: choices[int(state.at[0])])
    for row in range(size):
        h, macs = images[row].flatten(), 0.0
        for depth, choice in enumerate(choices):
            c, bank = int(choice[row]), network.bank(depth)
            if recurrent and depth < layers - 1:
                if c == blocks * (layers - 1):
                    continue
                bank = bank.blocks
            h = h @ bank.weight[c] + bank.bias[c]
            macs += bank.weight[c].numel()
            h = h.clamp(min=0) if depth < layers - 1 else h
        torch.testing.assert_close(state.exits[0].logits[row], h)
        assert float(state.macs[row]) == macs


def test_recurrent_offers_what_fits():
    network = RoutedMLP((1, 8, 8), 2, 10, width=48, layers=4, recurrent=True)
    assert [d.n for d in network.decisions] == [10, 21, 21, 10]  # 64 -> 48 cannot be repeated; PASS is the last
    assert network.bank(1) is network.bank(2)
    assert network.masks[0, 0].tolist() == [True] * 10 + [False] * 11
    assert network.parameters_of(1, 20) == []
    layered = RoutedMLP((1, 8, 8), 2, 10, width=48, layers=4)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(network) == count(layered)
    with pytest.raises(ValueError, match="hidden layer that can be repeated"):
        RoutedMLP((1, 8, 8), 2, 10, width=48, layers=2, recurrent=True)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), family=st.sampled_from(["tree", "gates", "mlp"]))
def test_select_and_merge_do_not_change_any_row(seed, family):
    """Cut a batch in two mid-way, shuffle, put together, go on: every row comes out as if left alone."""
    torch.manual_seed(seed)
    network = {"tree": ExitTree(TREE), "gates": Gates(2), "mlp": RoutedMLP(IMAGE, CLASSES, 3, width=4)}[family]
    images, task = batch_of(6, seed)
    m = (network.num_tensors,) if network.num_tensors > 1 else ()
    table = torch.randint(10**6, (6, len(network.decisions) + 1, *m))

    def choose(state, rows):
        sizes = torch.tensor([d.n for d in network.decisions] + [1])
        limit = sizes[state.at]
        return table[rows, state.at] % limit.view(-1, *[1] * len(m))

    everyone = torch.arange(6)
    plain = walked(network, network.start(images, task), lambda s: choose(s, everyone))
    state = network.start(images, task)
    state = step(network, state, choose(state, everyone))
    order = torch.randperm(6)
    pieces = [state.select(order[:2]), state.select(order[2:])]
    left = outcome(network, state)[0][order]  # of those who left before, cutting and merging keep nothing
    pieces[0] = step(network, pieces[0], choose(pieces[0], order[:2]))
    left[:2] += outcome(network, pieces[0])[0]
    merged = RoutingState.merge(pieces)
    assert len(merged) == 6 and not merged.exits
    merged = walked(network, merged, lambda s: choose(s, order))
    torch.testing.assert_close(left + outcome(network, merged)[0], outcome(network, plain)[0][order])
    torch.testing.assert_close(merged.macs, plain.macs[order])


BAD_TREE_ACTIONS = [
    (torch.tensor([0, 3]), r"choices must lie in \[0, 3\), got 3"),
    (torch.tensor([-1, 0]), r"got -1"),
    (torch.tensor([0]), r"shape \(2,\) here, got \(1,\)"),
    (torch.tensor([[0, 1]]), r"shape \(2,\)"),
    (torch.tensor([True, False]), "integers or floating-point weights, got torch.bool"),
    (torch.tensor([[0.5, 0.5, 0.5]] * 2), "sum to 1"),
    (torch.tensor([[1.5, -0.5, 0.0]] * 2), "at least 0"),
    (torch.tensor([[float("nan"), 0.5, 0.5]] * 2), "finite"),
    (torch.zeros(2, dtype=torch.int64, device="meta"), "device cpu, got meta"),
    (torch.zeros(2, 4), r"shape \(2, 3\)"),
    ((torch.zeros(2, 1), torch.ones(2, 1)), "integer indices"),
    ((torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 2)), "one shape"),
    ((torch.full((2, 1), 7), torch.ones(2, 1)), "got 7"),
    ("left", "torch tensor"),
]


@pytest.mark.parametrize(("action", "message"), BAD_TREE_ACTIONS)
def test_bad_actions_are_refused(action, message):
    network = ExitTree(TREE)
    state = network.start(*batch_of(2))
    with pytest.raises(ValueError, match=message):
        step(network, state, action)
    assert state.at.tolist() == [0, 0]


def test_masked_choices_are_refused_for_active_rows_only():
    network = ExitTree(TREE)
    state = step(network, network.start(*batch_of(3)), torch.tensor([0, 1, 2]))
    assert state.at.tolist() == [4, 1, 2]
    with pytest.raises(ValueError, match=r"row 1 at decision 1 \('column 1'\) may choose from \[0, 1\], got 2"):
        step(network, state, torch.tensor([2, 2, 2]))
    assert step(network, state, torch.tensor([2, 1, 2])).at.tolist() == [4, 4, 3]
    with pytest.raises(ValueError, match="row 1"):
        step(network, state, torch.tensor([[0.0, 0.0, 1.0]] * 3))


def test_masks_restrict_what_is_legal():
    masks = torch.ones(2, 1, 2, dtype=torch.bool)
    masks[1, 0, 0] = False

    network = RunSkip(2, masks=masks)
    state = step(network, network.start(*batch_of(2)), torch.tensor([0, 1]))
    assert network.action_mask(state).tolist() == [[[False, True]]] * 2
    with pytest.raises(ValueError, match=r"may choose from \[1\], got 0"):
        step(network, state, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"masks must be bool of shape \(2, 1, 2\), got torch.bool of \(2, 2\)"):
        RunSkip(2, masks=masks[:, 0])
    masks[1] = False
    with pytest.raises(ValueError, match="no choice"):
        RunSkip(2, masks=masks)


def test_sparse_weights_share_out_outcomes():
    network = ExitTree(TREE)
    images, task = batch_of(2)
    dense = step(network, network.start(images, task), torch.tensor([[0.0, 0.25, 0.75]] * 2))
    sparse = step(network, network.start(images, task), (torch.tensor([[2, 1]] * 2), torch.tensor([[0.75, 0.25]] * 2)))
    assert dense.at.tolist() == sparse.at.tolist() == [1, 1]
    torch.testing.assert_close(dense.waiting[2].reach, sparse.waiting[2].reach)
    torch.testing.assert_close(dense.waiting[2].activation[0], sparse.waiting[2].activation[0])


def test_bad_decisions_are_refused():
    def network(*decisions):
        class Any(RunSkip):
            def __init__(self):
                super(RunSkip, self).__init__(decisions, num_classes=2, input_shape=IMAGE)

        return Any()

    ok = Decision("a", (1.0, 1.0), (1, 1))
    with pytest.raises(ValueError, match="later decision"):
        network(ok, Decision("b", (1.0, 1.0), (0, 0)))
    with pytest.raises(ValueError, match="one cost per choice"):
        network(Decision("b", (1.0,), (EXIT, EXIT)))
    with pytest.raises(ValueError, match="all choices lead to one place"):
        network(ok, Decision("b", (1.0, 1.0), (EXIT, 2)), Decision("c", (1.0, 1.0), (EXIT, EXIT)))
    with pytest.raises(ValueError, match="no decision"):
        network(Decision("b", (1.0,), (EXIT,), mixing="outcome"))
    with pytest.raises(ValueError, match="at least one decision"):
        network()


def test_paths_that_meet_again_take_integers_only():
    class Diamond(ExitTree):
        def __init__(self):
            super().__init__([[1, 2], [3], [3], [4], []])

    network = Diamond()
    images, task = batch_of(4)
    state = step(network, network.start(images, task), torch.tensor([1, 2, 0, 1]))
    state = step(network, state, torch.tensor([1, 1, 0, 0]))
    assert sorted(state.waiting) == [3] and state.at.tolist() == [3, 3, 4, 4]
    with pytest.raises(ValueError, match="meet again"):
        step(network, network.start(images, task), torch.tensor([[0.0, 0.5, 0.5]] * 4))


def test_parallel_ways_to_one_place_take_integers_only():
    images, task = batch_of(2)
    network = ExitTree([[1], [2], []])
    columns, heads, tree, inner = network.columns, network.heads, network.tree, network.inner
    first = Decision("both", (1.0, 1.0), (1, 1), mixing="outcome", width=4)
    super(ExitTree, network).__init__([first, network.decisions[1]], num_classes=CLASSES, input_shape=IMAGE)
    network.columns, network.heads, network.tree, network.inner = columns, heads, tree, inner
    network.rows_run = [0] * 3
    with pytest.raises(ValueError, match="meet again"):
        step(network, network.start(images, task), torch.full((2, 2), 0.5))
    assert step(network, network.start(images, task), torch.tensor([0, 1])).at.tolist() == [1, 1]


def test_batch_norm_sees_the_rows_that_run_it():
    network = ExitTree([[1], []], batch_norm=True).train()
    images, task = batch_of(5)
    step(network, network.start(images, task), torch.tensor([0, 0, 0, 1, 0]))  # one row alone: running statistics
    assert int(network.columns[1][1].num_batches_tracked) == 0
    step(network, network.start(images, task), torch.tensor([1, 0, 0, 1, 0]))
    assert int(network.columns[1][1].num_batches_tracked) == 1
