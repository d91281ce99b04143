from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModel, ConvNextConfig, ResNetConfig, SwinConfig

from gaze_vlm.models.modeling_vision_tower import patch_tokens, tower_width


@pytest.mark.parametrize(
    ("kind", "args", "grid"),
    [("vit", (), (4, 4)), ("timm", ("test_efficientnet",), (2, 2)), ("timm", ("test_vit",), (4, 4))],
    ids=["vit", "timm map", "timm sequence"],
)
def test_tokens_lie_on_the_grid(kind, args, grid, make_vision_config, make_films):
    tower = AutoModel.from_config(make_vision_config(kind, *args)).eval()
    size = 160 if args == ("test_vit",) else 64
    films = torch.nn.functional.interpolate(make_films(2), size=(size, size))
    tokens = patch_tokens(tower, films)
    rows = 10 if args == ("test_vit",) else grid[0]
    assert tokens.shape == (2, rows, rows, tower_width(tower))


def test_a_token_stands_where_its_patch_is(make_vision_config, make_films):
    tower = AutoModel.from_config(make_vision_config("vit", num_hidden_layers=0)).eval()
    film = make_films(1)
    changed = film.clone()
    changed[:, :, 16:32, 48:64] += 1  # second row, last column
    moved = (patch_tokens(tower, film) != patch_tokens(tower, changed)).any(-1)[0]
    assert moved.nonzero().tolist() == [[1, 3]]


def test_a_map_keeps_rows_and_columns_apart(make_vision_config, make_films):
    tower = AutoModel.from_config(make_vision_config("timm")).eval()
    wide = torch.cat([make_films(1), make_films(1, seed=1)], dim=-1)
    assert patch_tokens(tower, wide).shape[1:3] == (2, 4)


def test_wrong_shapes_are_named(make_vision_config):
    tower = AutoModel.from_config(make_vision_config("vit"))
    with pytest.raises(ValueError, match=r"\(1, 1, 64, 64\)"):
        patch_tokens(tower, torch.zeros(1, 1, 64, 64))


HF_TOWERS = {
    "resnet": (ResNetConfig, {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}, 8),
    "convnext": (ConvNextConfig, {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2}, 8),
    "swin": (SwinConfig, {"embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 1, 1], "window_size": 2}, 16),
}


@pytest.mark.parametrize("kind", HF_TOWERS)
def test_towers_of_transformers_that_shrink_the_grid(kind, make_films):
    config_class, sizes, stride = HF_TOWERS[kind]
    tower = AutoModel.from_config(config_class(**sizes)).eval()
    tokens = patch_tokens(tower, torch.cat([make_films(1), make_films(1, seed=1)], dim=-1))  # 64 x 128 pixels
    assert tokens.shape == (1, 64 // stride, 128 // stride, tower_width(tower))


def test_swin_fills_up_an_odd_grid():
    tower = AutoModel.from_config(SwinConfig(**HF_TOWERS["swin"][1])).eval()
    assert patch_tokens(tower, torch.zeros(1, 3, 72, 40)).shape[1:3] == (5, 3)


def test_timm_swin_has_its_channels_behind(make_vision_config):
    sizes = {"img_size": 64, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1), "window_size": 2}
    config = make_vision_config("timm", "swin_tiny_patch4_window7_224")
    config.model_args = sizes
    tower = AutoModel.from_config(config).eval()
    tokens = patch_tokens(tower, torch.zeros(2, 3, 64, 64))
    assert tokens.shape == (2, 8, 8, tower_width(tower)) == (2, 8, 8, 16)


class Answer(torch.nn.Module):
    """A tower that gives the same, whatever it sees."""

    dtype = torch.float32

    def __init__(self, features, **config):
        super().__init__()
        self.config = SimpleNamespace(model_type="answer", **config)
        self.features = features

    def forward(self, pixel_values):
        return SimpleNamespace(last_hidden_state=self.features)


def test_features_that_fit_no_grid_are_named():
    films = torch.zeros(1, 3, 64, 64)
    with pytest.raises(ValueError, match=r"\(1, 7, 4, 9\).* 8"):
        patch_tokens(Answer(torch.zeros(1, 7, 4, 9), hidden_size=8), films)
    with pytest.raises(ValueError, match=r"3 tokens .* 4 x 4 patches"):
        patch_tokens(Answer(torch.zeros(1, 3, 8), hidden_size=8, patch_size=16), films)
    square = torch.rand(1, 8, 4, 8)  # either axis could be the channels
    assert torch.equal(patch_tokens(Answer(square, hidden_size=8), films), square.permute(0, 2, 3, 1))
