"""What `bench` counts: multiply-accumulates, and memory that is alive at once."""

import dataclasses

import torch

from routing_gym.experiments.benchmarks import steps, timing

CPU = torch.device("cpu")


def test_multiply_accumulates_are_those_of_the_blocks_and_the_router():
    subject, layer = steps.mlp(4, CPU), 128 * 128
    agents = {"shared": (), "top-k": ("k=3",), "gumbel": ("representation=mlp",)}
    ratios = {name: steps.macs_of(subject, name, options) for name, options in agents.items()}
    assert ratios == {
        "shared": (3 * layer, 0),
        "top-k": (3 * 3 * layer, 3 * 128 * 4),
        "gumbel": (3 * layer, 3 * ((128 + 1) * 64 + 64 * 4)),
    }


def test_the_static_network_does_what_one_route_does():
    """Trained side by side from the same weights on the same instances, both end with the same weights."""
    subject, built = steps.mlp(2, CPU), []
    watched = dataclasses.replace(subject, static=lambda network: built.append(steps.one_route(network)) or built[0])
    static = steps.static_steps(watched, 32)
    routed = steps.agent_steps(subject, 32, "shared", ())
    env = routed.train.args[1]
    before = env.network.banks[0].weight[0].detach().clone()
    for _ in range(4):
        static.train()
        routed.train()
    static.inference()
    routed.inference()
    linear = [layer for layer in built[0] if isinstance(layer, torch.nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linear] == [(128, 128)] * 3
    for layer, bank in zip(linear, env.network.banks, strict=True):
        torch.testing.assert_close(layer.weight.t(), bank.weight[0])
        torch.testing.assert_close(layer.bias, bank.bias[0])
    assert not torch.equal(before, env.network.banks[0].weight[0])


def test_peak_memory_is_what_is_alive_at_once():
    there_before = torch.zeros(5000)

    def make():
        kept = torch.zeros(1000)  # 4 000 bytes

        def step():
            a = there_before[:1000] + kept  # 4 000
            b = torch.zeros(2000)  # 8 000: 16 000 are alive
            del a
            c = torch.zeros(500)  # 2 000: 14 000
            return b.sum() + c.sum()

        return step

    assert timing.peak_memory(make) - 16_000 in range(0, 17)  # the sums


def test_peak_memory_counts_parameters_gradients_and_the_optimisers_state_once():
    side, x = 300, torch.ones(2, 300)

    def make(optimizer, **options):
        weight = torch.nn.Parameter(torch.zeros(side, side))
        optimizer = optimizer([weight], lr=0.1, fused=True, **options)

        def step():
            optimizer.zero_grad()
            (x @ weight).sum().backward()
            optimizer.step()

        return step

    whole, little = 4 * side * side, 3 * 4 * 2 * side  # three activations, or gradients of them, of 2 x 300
    for tensors, optimizer in (
        (2, lambda *a, **o: make(torch.optim.SGD)),
        (3, lambda *a, **o: make(torch.optim.SGD, momentum=0.9)),
        (4, lambda *a, **o: make(torch.optim.Adam)),
    ):
        peak = timing.peak_memory(optimizer)
        assert tensors * whole <= peak <= tensors * whole + little, (tensors, peak)


def test_peak_memory_sees_what_stays_from_one_step_to_the_next():
    def make():
        left = []

        def step():
            left[:] = [torch.zeros(100), *left[:1]]  # never more than two, but three while the new one is made
            return None

        return step

    assert timing.peak_memory(make) == 3 * 400
