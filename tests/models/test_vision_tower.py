import pytest
import torch
from transformers import AutoModel

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
