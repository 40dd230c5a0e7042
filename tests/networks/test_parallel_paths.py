"""Parallel paths (Tissera et al.): Algorithms 1 and 2, the gradients of section 5, and hard routing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_paths import Slow, randomised
from stepping import step
from torch import nn
from torch.nn import functional

from routing_gym.networks import make_network
from routing_gym.networks.parallel_paths import mix

SMALL = {"basecnn": {"width": 2, "hidden": 3}, "resnet20": {"width": 2}}
KINDS = [
    ("basecnn-3-cc", "columns"),
    ("basecnn-2-cc", "gated-columns"),
    ("basecnn-3-cp", "columns"),
    ("basecnn-2-cp", "gated-columns"),
    ("resnet20-2-cc", "gated-columns"),
    ("resnet20-3-cp", "columns"),
]
CLASSES = 4


def small(name, form="columns", **options):
    torch.manual_seed(0)
    sizes = SMALL[name.split("-")[0]]
    network = make_network(
        name, num_tasks=1, num_classes=CLASSES, input_shape=(3, 8, 8), form=form, **{**sizes, **options}
    )
    return randomised(network).eval()


def routed(network, images, actions):
    state = network.start(images, torch.zeros(len(images), dtype=torch.int64))
    seen = []
    for action in actions:
        seen.append(network.observe(state))
        state = step(network, state, action)
    return state, seen


def slowly(network, images, gates):
    """Row by row: logits, costs, and what each decision sees."""
    slow = Slow(network)
    logits, macs, seen = zip(
        *(slow.run(image, [gate[row] for gate in gates]) for row, image in enumerate(images)), strict=True
    )
    described = []
    for number, decision in enumerate(network.decisions):
        rows = torch.zeros(len(images), network.observation_size)
        for row in range(len(images)):
            channels = decision.width // decision.m
            for i, x in enumerate(seen[row][number]):
                if x is not None:
                    rows[row, i * channels : (i + 1) * channels] = x.mean((2, 3))[0] if x.ndim == 4 else x[0]
        described.append(rows)
    return torch.stack(logits), torch.tensor(macs), described


# ---------------------------------------------------------------------- soft gates


@pytest.mark.parametrize(("name", "form"), KINDS)
def test_soft_gates_against_a_loop(name, form):
    network = small(name, form)
    images = torch.randn(3, 3, 8, 8)
    shape = (3, network.num_tensors, network.num_choices)
    gates = [torch.randn(shape).softmax(-1) for _ in network.decisions]
    with torch.no_grad():
        state, seen = routed(network, images, gates)
        logits, macs, described = slowly(network, images, gates)
    torch.testing.assert_close(state.exits[0].logits, logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(state.macs, macs)
    for ours, theirs in zip(seen, described, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["basecnn-2-cc", "basecnn-2-cp"])
def test_soft_training_is_that_of_plain_modules(name):
    """Outputs and gradients in train mode, with the statistics of the batch, against two towers of plain modules."""
    network = small(name).train()
    images = torch.randn(5, 3, 8, 8)
    gates = [torch.randn(5, 2, 2).softmax(-1).requires_grad_() for _ in network.decisions]
    slow = Slow(network)
    for part in [*slow.banks, *filter(None, slow.predicting)]:
        for module in part:
            module.train()
    tensors, _ = slow._segment(0, [images], [[1.0, 1.0]])
    for number, gate in enumerate(gates, start=1):
        columns = [[gate[:, i, j].view(-1, *[1] * (tensors[i].ndim - 1)) for j in range(2)] for i in range(2)]
        tensors = by_batch(slow, number, tensors, columns)
    expected = (tensors[0] + tensors[1]) / 2
    state, _ = routed(network, images, gates)
    torch.testing.assert_close(state.exits[0].logits, expected, rtol=1e-3, atol=1e-4)
    loss = torch.randn(5, CLASSES)
    ours = torch.autograd.grad((state.exits[0].logits * loss).sum(), gates)
    theirs = torch.autograd.grad((expected * loss).sum(), gates)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-4)


def by_batch(slow, number, tensors, gate):
    made = []
    for j, behind in enumerate(slow.banks[number]):
        fed = [
            gate[i][j] * (x if slow.predicting[number] is None else slow.predicting[number][2 * i + j](x))
            for i, x in enumerate(tensors)
        ]
        total = sum(fed)
        made.append(behind(total if slow.predicting[number] is None else total.clamp(min=0)))
    return made


def test_cross_connections_by_hand():
    """Algorithm 2 on two tensors of two pixels: Y_j = Σ_i g_ij X_i."""
    columns = torch.tensor([[[[[1.0, 2.0]]], [[[10.0, 20.0]]]]])  # (1, 2, 1, 1, 2)
    gates = torch.tensor([[[0.9, 0.1], [0.3, 0.7]]])
    mixed = mix(columns, gates)
    torch.testing.assert_close(mixed[0, :, 0, 0], torch.tensor([[0.9 + 3.0, 1.8 + 6.0], [0.1 + 7.0, 0.2 + 14.0]]))


def test_cross_predictions_by_hand():
    """Algorithm 1 at the last crossing of a network of one feature: Y_j = ReLU(Σ_i g_ij (w_ij x_i + b_ij))."""
    network = small("basecnn-2-cp", hidden=1)
    last = len(network.decisions) - 1
    blocks = network.predicting(last).layers[0].blocks
    with torch.no_grad():
        blocks.weight.copy_(torch.tensor([2.0, -1.0, 0.5, 3.0]).view(4, 1, 1))  # w_11 w_12 w_21 w_22
        blocks.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]).view(4, 1))
        columns, alive = torch.tensor([[[1.0], [2.0]]]), torch.ones(1, 2, dtype=torch.bool)
        gates = torch.tensor([[[0.25, 0.75], [0.6, 0.4]]])
        fed, reached = network.feed(last, columns, alive, gates)
    # 0.25 * 2.1 + 0.6 * 1.3 and 0.75 * -0.8 + 0.4 * 6.4
    torch.testing.assert_close(fed[0, :, 0], torch.tensor([1.305, 1.96]))
    assert reached.all()
    with torch.no_grad():
        fed, reached = network.feed(last, columns, alive, torch.tensor([[[0.0, 1.0], [0.0, 0.0]]]))
    assert fed[0, :, 0].tolist() == [0.0, 0.0] and reached.tolist() == [[False, True]]  # ReLU(-0.8)


# ---------------------------------------------------------------------- gradients of section 5


def section_5(x, w, upstream):
    """Eqs. 8 and 9 for vectors and gates softmax(W_i x_i), tensor by tensor."""
    m, n = len(x), w.shape[1]
    gates = torch.stack([torch.softmax(w[i] @ x[i], 0) for i in range(m)])
    to_w, to_x = [], []
    for i in range(m):
        to_gate = torch.stack([(upstream[j] * x[i]).sum() for j in range(n)])
        jacobian = torch.diag(gates[i]) - torch.outer(gates[i], gates[i])
        to_score = jacobian.T @ to_gate
        to_w.append(torch.outer(to_score, x[i]))
        to_x.append(sum(gates[i, j] * upstream[j] for j in range(n)) + w[i].T @ to_score)
    return gates, torch.stack(to_x), torch.stack(to_w)


def crossed(x, w):
    gates = torch.einsum("ijk,ik->ij", w, x).softmax(-1)
    return mix(x.unsqueeze(0), gates.unsqueeze(0))[0]


def test_gradients_of_section_5():
    torch.manual_seed(0)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 3, dtype=torch.float64)
    gates, to_x, to_w = section_5(x.detach(), w.detach(), upstream)
    y = crossed(x, w)
    torch.testing.assert_close(y, torch.stack([sum(gates[i, j] * x[i] for i in range(2)) for j in range(2)]))
    ours = torch.autograd.grad(y, [x, w], upstream)
    torch.testing.assert_close(ours, (to_x, to_w))
    assert torch.autograd.gradcheck(crossed, (x, w))
    images = torch.randn(2, 3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    gates = torch.rand(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mix, (images, gates))


# ---------------------------------------------------------------------- hard routing


@pytest.mark.long
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**4), rows=st.integers(1, 4), kind=st.sampled_from(KINDS))
def test_hard_routes_against_a_loop(seed, rows, kind):
    network = small(*kind)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(rows, 3, 8, 8, generator=generator)
    shape = (rows, network.num_tensors)
    actions = [torch.randint(network.paths, shape, generator=generator) for _ in network.decisions]
    with torch.no_grad():
        state, seen = routed(network, images, actions)
        logits, macs, described = slowly(network, images, [functional.one_hot(a, network.paths) for a in actions])
    torch.testing.assert_close(state.exits[0].logits, logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(state.macs, macs)
    for ours, theirs in zip(seen, described, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    # Weights of 0 and 1 are the same routes.
    with torch.no_grad():
        soft, _ = routed(network, images, [functional.one_hot(a, network.paths).float() for a in actions])
    torch.testing.assert_close(soft.exits[0].logits, state.exits[0].logits)
    torch.testing.assert_close(soft.macs, state.macs)


def test_tensors_merge_and_never_split():
    network = small("basecnn-3-cc")
    state = network.start(torch.randn(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64))
    assert network.choosing(state).tolist() == [[True] * 3] * 2
    state = step(network, state, torch.tensor([[2, 2, 0], [1, 1, 1]]))
    assert network.choosing(state).tolist() == [[True, False, True], [False, True, False]]
    # What tensors that are not there choose is ignored.
    one = step(network, state, torch.tensor([[1, 0, 1], [0, 2, 0]]))
    other = step(network, state, torch.tensor([[1, 2, 1], [2, 2, 1]]))
    assert network.choosing(one).tolist() == [[False, True, False], [False, False, True]]
    torch.testing.assert_close(network.observe(one), network.observe(other))
    torch.testing.assert_close(one.macs, other.macs)
    assert network.action_mask(one).all()


@pytest.mark.parametrize("name", ["basecnn-3-cc", "basecnn-3-cp"])
def test_what_is_not_reached_is_not_run(name):
    network, ran = small(name), []
    for number, bank in enumerate(network.banks):
        bank.layers.register_forward_hook(lambda _, inputs, __, n=number: ran.append((n, inputs[1:], len(inputs[0]))))
    predicted = []
    for blocks in network.predictions:
        if not isinstance(blocks, nn.Identity):
            blocks.layers.register_forward_hook(lambda _, inputs, __: predicted.append((inputs[1:], len(inputs[0]))))
    rows = 4
    actions = [torch.tensor([[1, 1, 1]] * 3 + [[1, 1, 0]])] + [torch.tensor([[2, 2, 2]] * rows)] * (
        len(network.decisions) - 1
    )
    routed(network, torch.randn(rows, 3, 8, 8), actions)
    assert ran[:3] == [(0, (), 4), (1, (0,), 1), (1, (1,), 4)]
    assert ran[3:] == [(number, (2,), 4) for number in range(2, len(network.banks))]
    if name.endswith("cp"):
        # (tensor, path) pairs: 0 to 1, 1 to 1 and 2 to 0 or 1; then 0 to 2 of one row, 1 to 2 of all; then 2 to 2.
        assert predicted == [((), 4), ((1,), 4), ((4,), 4), ((6,), 1), ((7,), 3), ((2,), 1), ((5,), 4), ((8,), 4)]


def test_training_under_hard_routing_moves_only_what_ran():
    network = small("basecnn-2-cc").train()
    actions = [torch.tensor([[0, 0]] * 4)] * len(network.decisions)
    before = {name: value.clone() for name, value in network.named_buffers()}
    state, _ = routed(network, torch.randn(4, 3, 8, 8), actions)
    state.exits[0].logits.sum().backward()
    for number, bank in enumerate(network.banks):
        for parameter in bank.parameters():
            assert number == 0 or not bool(parameter.grad[1].any())
    moved = {name for name, value in network.named_buffers() if not torch.equal(value, before[name])}
    assert all(name.startswith("banks") for name in moved) and moved
    for name in moved:
        if not name.startswith("banks.0."):
            assert torch.equal(dict(network.named_buffers())[name][1], before[name][1])


def test_predictions_that_were_not_chosen_have_a_gradient_if_that_is_asked_for():
    for dense in (False, True):
        network = small("basecnn-2-cp").train()
        network.dense_backward = dense
        gates = [torch.eye(2).repeat(3, 1, 1).requires_grad_() for _ in network.decisions]
        state, _ = routed(network, torch.randn(3, 3, 8, 8), gates)
        (grad,) = torch.autograd.grad(state.exits[0].logits.square().sum(), gates[:1])
        others = grad[:, [0, 1], [1, 0]]
        assert bool(others.any()) is dense and bool(grad[:, [0, 1], [0, 1]].any())


def test_a_row_without_any_path_says_nothing_and_costs_nothing_more():
    network = small("basecnn-2-cc")
    first = torch.eye(2).repeat(2, 1, 1)
    first[1] = 0
    gates = [first] + [torch.eye(2).repeat(2, 1, 1)] * (len(network.decisions) - 1)
    with torch.no_grad():
        state, _ = routed(network, torch.randn(2, 3, 8, 8), gates)
    assert bool(state.exits[0].logits[0].any()) and not bool(state.exits[0].logits[1].any())
    assert float(state.macs[1]) == network.stem_macs


def test_expected_costs_by_hand():
    """Gate entries are independent chances: a path is reached by 1 - Π (1 - g), a prediction made by g."""
    network = small("basecnn-2-cp")
    gates = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]])
    executed, expected = network.macs(1, gates)
    price, behind = network.predicting(1).macs[0], network.bank(1).macs[0]
    assert float(executed) == 4 * price + 2 * behind
    assert float(expected) == pytest.approx(2 * price + (1 - 0.75 * 0.5 + 1 - 0.25 * 0.5) * behind)
    executed, expected = network.macs(1, torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]))
    assert float(executed) == float(expected) == 2 * price + behind


def test_integer_choices_run_the_same_predictions_whatever_dense_backward_says():
    """They have no gradient to be completed; what else is run would change the statistics of the batch."""
    outputs, ran = [], []
    for dense in (False, True):
        network, count = small("basecnn-3-cp").train(), []
        network.dense_backward = dense
        for blocks in network.predictions:
            blocks.layers.register_forward_hook(lambda _, inputs, __, count=count: count.append(len(inputs[0])))
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(6, 3, 8, 8, generator=generator)
        actions = [torch.randint(3, (6, 3), generator=generator) for _ in network.decisions]
        outputs.append(routed(network, images, actions)[0].exits[0].logits)
        ran.append(count)
    assert ran[0] == ran[1]
    torch.testing.assert_close(outputs[0], outputs[1])


@pytest.mark.parametrize("name", ["basecnn-2-cc", "basecnn-2-cp"])
def test_a_batch_without_any_path_can_be_trained_on(name):
    network = small(name).train()
    gates = [torch.zeros(3, 2, 2) for _ in network.decisions]
    state, _ = routed(network, torch.randn(3, 3, 8, 8), gates)
    logits = state.exits[0].logits
    assert not bool(logits.any())
    logits.sum().backward()
    assert not any(bool(p.grad.any()) for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("paths", [3, 5])
@pytest.mark.parametrize("size", [(8, 8), (9, 7), (4, 4)])
def test_hard_training_against_a_loop(paths, size):
    """Outputs and every gradient in train mode: each path has the statistics of the rows that reach it."""
    torch.manual_seed(0)
    network = make_network(
        "basecnn-3-cc", num_tasks=1, num_classes=CLASSES, input_shape=(3, *size), width=2, hidden=3, paths=paths
    )
    network = randomised(network).train()
    rows = 7
    images = torch.randn(rows, 3, *size)
    actions = [torch.randint(paths, (rows, paths)) for _ in network.decisions]
    slow = Slow(network)
    for bank in slow.banks:
        for path in bank:
            path.train()
            for part in path:  # one value per channel: running statistics
                if isinstance(part, nn.BatchNorm2d):
                    part.register_forward_pre_hook(lambda m, x: m.train(x[0].numel() >= 2 * x[0].shape[1]) and None)
    tensors, alive = [path(images) for path in slow.banks[0]], torch.ones(rows, paths, dtype=torch.bool)
    macs = torch.full((rows,), network.stem_macs)
    for bank, blocks, action in zip(slow.banks[1:], network.banks[1:], actions, strict=True):
        made, reached = [None] * paths, torch.zeros_like(alive)
        for j in range(paths):
            sent = (action == j) & alive
            reached[:, j] = sent.any(1)
            own = [row for row in range(rows) if bool(sent[row].any())]
            made[j] = {}
            if own:
                fed = torch.stack([sum(tensors[i][row] for i in range(paths) if sent[row, i]) for row in own])
                made[j] = dict(zip(own, bank[j](fed), strict=True))
        tensors, alive = made, reached
        macs = macs + reached.sum(1) * blocks.macs[0]
    expected = torch.stack(
        [torch.stack([tensors[j][row] for j in range(paths) if alive[row, j]]).mean(0) for row in range(rows)]
    )
    state, _ = routed(network, images, actions)
    logits = state.exits[0].logits
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(state.macs, macs)
    pull = torch.randn(rows, CLASSES)
    (logits * pull).sum().backward()
    (expected * pull).sum().backward()
    for bank, blocks in zip(slow.banks, network.banks, strict=True):
        for j, path in enumerate(bank):
            ours = [owned.grad for owned in blocks.parameters_of(j)]
            for mine, plain_one in zip(ours, path.parameters(), strict=True):
                theirs = torch.zeros_like(plain_one) if plain_one.grad is None else plain_one.grad
                mine = torch.zeros_like(theirs) if mine is None else mine
                mine = mine.t() if mine.ndim == 2 else mine
                torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-3)
