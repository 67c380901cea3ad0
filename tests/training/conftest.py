"""Tiny runs: SAE-2 of width 8 on procedural Shapes3D at 32x32."""

import pytest
import torch

from strucfast.training import TrainConfig
from strucfast.training.config import DataConfig, LogConfig, LoopConfig, ModelConfig, OptimConfig

TINY = {"width": 8, "blocks": 3, "hidden": [8], "latent_dim": 4}


@pytest.fixture
def tiny():
    """Makes a configuration; keyword arguments SECTION__FIELD=VALUE change fields."""

    def make(**changes):
        config = TrainConfig(
            model=ModelConfig(name="sae-2", image_size=32, overrides=dict(TINY)),
            data=DataConfig(spec="shapes3d"),
            optim=OptimConfig(learning_rate=2e-3),
            train=LoopConfig(
                steps=12, batch_size=8, eval_every=6, eval_images=16, checkpoint_every=4, device="cpu", threads=1
            ),
            log=LogConfig(every=3, progress="none", tensorboard=False),
        )
        for name, value in changes.items():
            section, field = name.split("__")
            assert hasattr(getattr(config, section), field)
            setattr(getattr(config, section), field, value)
        return config

    threads = torch.get_num_threads()
    # tiny tensors on a busy machine: two threads wait for each other more than they work
    torch.set_num_threads(1)
    yield make
    torch.set_num_threads(threads)
