"""Which of an upload's files are the adapter's: those of the folder that holds its weights."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.adapters.receiving.own_files import own_files
from app.adapters.refusals import AdapterRejected

W, C = "adapter_model.safetensors", "adapter_config.json"


@pytest.mark.parametrize(
    ("paths", "own"),
    [
        ([W, C, "teacher/config.json"], {W, C}),
        ([f"m/{C}", f"m/checkpoint-5/{W}"], {f"m/checkpoint-5/{W}"}),
        ([f"m/{W}", f"m/{C}", "m/b/modules.json", "1_Pooling/config.json"], {f"m/{W}", f"m/{C}"}),
        (
            [f"m/{W}", "m/1_Pooling/config.json", "m/2_Normalize/config.json", "m/modules.json"],
            {f"m/{W}", "m/1_Pooling/config.json", "m/modules.json"},
        ),
        (
            ["config.json", f"0_Transformer/{W}", "0_Transformer/config.json", "modules.json"],
            {f"0_Transformer/{W}", "0_Transformer/config.json", "modules.json"},
        ),
        (
            [f"0_Transformer/{W}", "modules.json", "0_Transformer/modules.json"],
            {f"0_Transformer/{W}", "modules.json"},
        ),
        ([W, "model.safetensors", "optimizer.safetensors"], {W}),
        (["adapter.safetensors", C], {"adapter.safetensors", C}),
        (["mine.safetensors", f"other/{C}"], {"mine.safetensors"}),
        ([f"m/{W}", f"__MACOSX/m/._{W}", "__MACOSX/m/x.safetensors"], {f"m/{W}"}),
        (["m/x.safetensors", "__MACOSX/m/x.safetensors"], {"m/x.safetensors"}),
        (["x.safetensors", "._x.safetensors"], {"x.safetensors"}),
    ],
)
def test_all_comes_from_the_folder_that_holds_the_weights(paths: list[str], own: set[str]) -> None:
    found = own_files(paths, None)
    assert set(found.files.values()) == own
    assert set(found.aside) == set(paths) - own


@pytest.mark.parametrize("asked", ["m/a", "m/a/", "./m/a", "m\\a"])
def test_of_several_adapters_one_is_picked_by_its_folder(asked: str) -> None:
    paths = [f"m/{W}", f"m/a/{W}", f"m/a/{C}", f"m/b/{W}", f"m/b/{C}"]
    with pytest.raises(AdapterRejected) as refused:
        own_files(paths, None)
    assert all(path in refused.value.message for path in (f"m/{W}", f"m/a/{W}", f"m/b/{W}"))
    assert own_files(paths, asked).files == {W: f"m/a/{W}", C: f"m/a/{C}"}


def test_a_folder_is_picked_by_its_name_though_its_weights_lie_in_its_encoder() -> None:
    paths = [f"m/0_Transformer/{W}", "m/modules.json", f"n/{W}"]
    own = {W: f"m/0_Transformer/{W}", "modules.json": "m/modules.json"}
    assert own_files(paths, "m").files == own
    assert own_files(paths, "m/0_Transformer").files == own


@pytest.mark.parametrize(
    ("paths", "asked", "told"),
    [
        ([f"m/{W}"], "n", f"m/{W}"),
        ([f"m/{W}"], "", f"m/{W}"),
        ([f"m/{W}"], "../m", "no folder inside"),
        ([f"m/{W}"], "/m", "no folder inside"),
        ([f"m/{W}"], "m\0", "no folder inside"),
        ([W, f"b/{W}"], None, "?path=b "),
        ([f"{i:02}.txt" for i in range(25)], None, "18.txt, 19.txt and 5 more"),
        (["a.safetensors", "b.safetensors"], None, "a.safetensors, b.safetensors"),
        ([W, "adapter.safetensors"], None, "adapter.safetensors"),
        ([C, "rng_state.pth", "optimizer.pt"], None, "holds adapter_config.json, rng_state.pth"),
        (["rng_state.pth", "adapter_model.bin"], None, "adapter_model.bin is a pickle"),
        (["optimizer.pt", "lora.pt"], None, "lora.pt is a pickle"),
        ([], None, "no files"),
    ],
)
def test_what_cannot_be_told_is_refused_by_name(
    paths: list[str], asked: str | None, told: str
) -> None:
    with pytest.raises(AdapterRejected) as refused:
        own_files(paths, asked)
    assert told in refused.value.message


NAMES = st.sampled_from([W, C, "config.json", "modules.json", "1_Pooling/config.json", "x.txt"])
FOLDERS = st.sampled_from(["", "m/", "m/n/", "0_Transformer/", "m/0_Transformer/", "1_Pooling/"])


@given(st.sets(st.builds(lambda folder, name: folder + name, FOLDERS, NAMES)))
def test_no_file_of_two_folders_is_ever_mixed(paths: set[str]) -> None:
    try:
        found = own_files(sorted(paths), None)
    except AdapterRejected:
        return
    weights = found.files[W].removesuffix(W)
    root = weights.removesuffix("0_Transformer/")
    for name, path in found.files.items():
        assert path in {weights + name, root + name}
        assert path == weights + name or name not in (W, C, "config.json")
    assert sorted([*found.files.values(), *found.aside]) == sorted(paths)
