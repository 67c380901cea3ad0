"""A model and data set small enough to know what every picture must look like."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch


class SquareModel(torch.nn.Module):
    """Draws one square: z0 is its column, z1 its row, z2 the red of the background; further latents do nothing."""

    name = "square"

    def __init__(self, latent_dim: int = 4, size: int = 32, channels: int = 3) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()))
        self.latent_dim, self.size, self.channels = latent_dim, size, channels
        self.latent_groups = [[dim] for dim in range(latent_dim)]
        self.batches: list[torch.Tensor] = []

    def encode(self, x):
        bright = (x[:, -1] > 0.5).float()
        weight = bright.sum((1, 2)).clamp(min=1)
        places = torch.arange(self.size, dtype=torch.float32)
        column = (bright.sum(1) * places).sum(1) / weight / self.size
        row = (bright.sum(2) * places).sum(1) / weight / self.size
        code = [column, row, x[:, 0, 0, 0]] + [torch.rand(len(x))] * (self.latent_dim - 3)
        return SimpleNamespace(mean=torch.stack(code, 1) * self.gain)

    def decode(self, z):
        assert not torch.is_grad_enabled() and not self.training
        self.batches.append(z.clone())
        places = (torch.arange(self.size) + 0.5) / self.size
        across = ((places - z[:, 0:1]).abs() < 0.16)[:, None, None, :]
        down = ((places - z[:, 1:2]).abs() < 0.16)[:, None, :, None]
        image = torch.zeros(len(z), self.channels, self.size, self.size)
        image[:, 0] = z[:, 2].clamp(0, 1)[:, None, None]
        return torch.where(across & down, torch.ones(()), image) * self.gain


class SquareData:
    """Images the model can draw, with its three true factors."""

    name = "squares"
    factor_names = ("column", "row", "background_red")
    factor_sizes = (4, 4, 4)

    def __init__(self, size: int = 32, channels: int = 3) -> None:
        self.model = SquareModel(3, size, channels).eval()
        self.image_shape = (size, size, channels)

    def __len__(self) -> int:
        return 64

    def factors(self, indices):
        indices = np.asarray(indices)
        return np.stack([indices // 16, indices // 4 % 4, indices % 4], axis=1)

    def images(self, indices, out=None):
        codes = torch.from_numpy(0.2 + 0.2 * self.factors(indices)).float()
        with torch.no_grad():
            images = self.model.decode(codes)
        return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy().copy()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SquareModel().eval()


@pytest.fixture
def dataset():
    return SquareData()


@pytest.fixture
def codes():
    return torch.rand(40, 4, generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2


@pytest.fixture
def mig():
    information = np.array([[1.2, 0.1, 0.0], [0.05, 1.1, 0.02], [0.0, 0.0, 1.3], [0.01, 0.02, 0.0]])
    entropy = np.log([4.0, 4.0, 4.0])
    gaps = np.sort(information / entropy, axis=0)
    per_factor = gaps[-1] - gaps[-2]
    return SimpleNamespace(
        score=per_factor.mean(), per_factor=per_factor, mutual_information=information, factor_entropy=entropy
    )


@pytest.fixture
def history():
    records = []
    for step in range(10, 510, 10):
        loss = 20 * np.exp(-step / 60) + 1.0
        records.append(
            {
                "step": step,
                "split": "train",
                "loss": loss,
                "reconstruction": loss * 0.9,
                "kl": loss * 0.1,
                "images_per_s": 3000.0 + step,
                "seconds": step * 0.05,
            }
        )
        if step % 100 == 0:
            records.append(
                {"step": step, "split": "validation", "loss": loss + 0.1, "reconstruction": loss, "kl": loss / 9}
            )
    return records
