"""Names, sizes and frame counts of what is rendered."""

import pytest

from simplewan.errors import UserError
from simplewan.flavours import find_flavour
from simplewan.validation.prompts import (
    BUILT_IN_LIBRARY,
    Prompt,
    collect_prompts,
    latent_shape,
    safe_name,
    validation_frames,
    validation_sizes,
)

WAN = find_flavour("t2v-480p-1.3b-2.1")
WAN_5B = find_flavour("ti2v-5b-2.2")


def test_prompts_come_in_order_with_unique_names():
    prompts = collect_prompts(
        validation_prompt="A cat.",
        user_library={"dog": "A dog.", "DOG": "Another dog.", "validation": "A bird.", "dog!": "A third dog."},
        use_built_in_library=True,
    )
    assert prompts[:5] == (
        Prompt("validation", "A cat."),
        Prompt("dog", "A dog."),
        Prompt("DOG_2", "Another dog."),
        Prompt("validation_2", "A bird."),
        Prompt("dog_3", "A third dog."),
    )
    assert len(prompts) == 5 + len(BUILT_IN_LIBRARY) and len(BUILT_IN_LIBRARY) >= 12
    names = [prompt.name.casefold() for prompt in prompts]
    assert len(set(names)) == len(names)


def test_the_same_prompt_twice_is_one_prompt():
    prompts = collect_prompts(
        validation_prompt="A cat.", user_library={"validation": "A cat."}, use_built_in_library=False
    )
    assert prompts == (Prompt("validation", "A cat."),)
    assert collect_prompts(validation_prompt=None, user_library={}, use_built_in_library=False) == ()


def test_the_same_prompt_from_another_picture_is_another_clip():
    prompts = collect_prompts(
        validation_prompt="A cat.",
        user_library={"validation": "A cat.", "validation!": "A cat."},
        use_built_in_library=False,
        images={"validation": "a.png", "validation!": "a.png"},
    )
    assert prompts == (Prompt("validation", "A cat."), Prompt("validation_2", "A cat.", "a.png"))


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("red car", "red_car"),
        ("../../etc/passwd", "etc_passwd"),
        ("a/b\\c:d*e?", "a_b_c_d_e"),
        ("..", "prompt"),
        ("", "prompt"),
        ("\u732b\u548c\u72d7", "\u732b\u548c\u72d7"),
        ("v1.5-final", "v1.5-final"),
        ("x" * 200, "x" * 80),
        (".hidden", "hidden"),
    ],
)
def test_names_are_safe_file_names(name, safe, tmp_path):
    assert safe_name(name) == safe
    (tmp_path / f"{safe}.png").touch()


def test_sizes_are_read_and_rounded_down():
    said = []
    assert validation_sizes("832x480", flavour=WAN, emit=said.append) == ((832, 480),)
    assert validation_sizes(["832x480", "480x832"], flavour=WAN, emit=said.append) == ((832, 480), (480, 832))
    assert validation_sizes("832x480, 256", flavour=WAN, emit=said.append) == ((832, 480), (256, 256))
    assert validation_sizes(((832, 480), (480, 832)), flavour=WAN, emit=said.append) == ((832, 480), (480, 832))
    assert said == []
    assert validation_sizes("840x490", flavour=WAN, emit=said.append) == ((832, 480),)
    assert validation_sizes("848x480", flavour=WAN_5B, emit=said.append) == ((832, 480),)
    assert ["840x490" in said[0].message, "832x480" in said[0].message, "multiples of 32" in said[1].message] == [
        True
    ] * 3


def test_every_wrong_size_is_named():
    with pytest.raises(UserError) as caught:
        validation_sizes(["832x480", "large", "8x8"], flavour=WAN, emit=print, where="config.json")
    assert [problem.value for problem in caught.value.problems] == ["large", "8x8"]
    assert "config.json: validation_resolution = 'large'" in str(caught.value)
    with pytest.raises(UserError):
        validation_sizes([], flavour=WAN, emit=print)


def test_frames_are_rounded_down_and_said():
    said = []
    assert [validation_frames(n, flavour=WAN, emit=said.append) for n in (1, 81)] == [1, 81] and said == []
    assert [validation_frames(n, flavour=WAN, emit=said.append) for n in (75, 4, 84)] == [73, 1, 81]
    assert "75" in said[0].message and "73" in said[0].message
    with pytest.raises(UserError):
        validation_frames(0, flavour=WAN, emit=print)


def test_latent_shape_follows_the_vae():
    assert latent_shape((832, 480), 81, flavour=WAN) == (1, 16, 21, 60, 104)
    assert latent_shape((1280, 704), 121, flavour=WAN_5B) == (1, 48, 31, 44, 80)
