"""An existing network with GroupNorm, activation and FiLM, before and after: same numbers, less time.

python examples/film_swap.py [--quick]
"""

import argparse
import copy
import time

import torch
from torch import nn

import strucfast as sf


class Block(nn.Module):
    """As many projects write it: convolution, GroupNorm, SiLU, then a scale and shift from a condition."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(8, channels), nn.SiLU())
        self.film = nn.Linear(condition, 2 * channels)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        gain, shift = self.film(condition).chunk(2, dim=1)
        return self.body(x) * (1 + gain)[:, :, None, None] + shift[:, :, None, None]


class FusedBlock(Block):
    """The same parameters; scale and shift join the kernel. Only forward differs."""

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        gain, shift = self.film(condition).chunk(2, dim=1)
        convolution, norm, _ = self.body
        return norm(convolution(x), 1 + gain, shift)


class Network(nn.Module):
    def __init__(self, block: type[Block], depth: int = 3, channels: int = 32, condition: int = 8) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block(channels, condition) for _ in range(depth))

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, condition)
        return x


def step_ms(networks: dict[str, nn.Module], x: torch.Tensor, condition: torch.Tensor, rounds: int) -> dict[str, float]:
    """Least time of a forward and backward pass, the networks in turn."""
    least = dict.fromkeys(networks, float("inf"))
    for _ in range(rounds + 1):
        for name, network in networks.items():
            start = time.perf_counter()
            network(x, condition).square().mean().backward()
            least[name] = min(least[name], 1e3 * (time.perf_counter() - start))
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small tensors, few rounds")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    plain = Network(Block)

    converted = copy.deepcopy(plain)
    report = sf.nn.convert(converted)
    print("1. sf.nn.convert(model) found:", report, sep="\n")

    fused = Network(FusedBlock)
    sf.nn.convert(fused)
    fused.load_state_dict(plain.state_dict())
    print("\n2. The plain network's checkpoint loads into the fused one: the keys are the same.")

    size = 8 if quick else 32
    x, condition = torch.randn(2 if quick else 16, 32, size, size), torch.randn(2 if quick else 16, 8)
    networks = {"plain": plain, "converted": converted, "converted, FiLM in the kernel": fused}
    with torch.no_grad():
        wanted = plain(x, condition)
        print("\n3. Largest difference of the outputs, and milliseconds of a forward and backward pass:")
        differences = {name: float((network(x, condition) - wanted).abs().max()) for name, network in networks.items()}
    times = step_ms(networks, x, condition, 2 if quick else 15)
    for name in networks:
        ratio = times["plain"] / times[name]
        print(f"   {name:30} difference {differences[name]:.1e}   {times[name]:8.2f} ms   {ratio:.2f}x")
    assert max(differences.values()) < 1e-3 * float(wanted.abs().max())


if __name__ == "__main__":
    main()
