from rectiflow.shapeworld.scene import Item, Scene, Word, held_out_kinds, sample_scene
from rectiflow.shapeworld.world import FULL, SMALL, is_held_out_word
from rectiflow.training.parts.captioned_scenes import draw_scenes, true_sentences


def _item(shape: str, color: str, x: float, y: float) -> Item:
    return Item(shape=shape, color=color, center_px=(x, y), radius_px=10.5)


def test_scenes_come_from_both_worlds_and_never_show_a_held_out_combination():
    scenes = draw_scenes((SMALL, FULL), split="train", seed=7, count=200)
    assert scenes.pictures.shape == (200, 64, 64, 3)
    assert scenes.images(scenes.pictures[:3, 0, 0, 0] * 0).shape == (3, 3, 64, 64)
    for index in range(200):
        world = (SMALL, FULL)[index % 2]
        scene = sample_scene(world, split="train", seed=7, index=index)
        content = tuple((item.shape, item.color) for item in scene.items)
        assert not held_out_kinds(content)
        assert scene.word is None or not is_held_out_word(scene.word.text)
        assert set(scenes.captions[index]) <= scenes.truths[index]


def test_images_lie_between_minus_one_and_one():
    scenes = draw_scenes((SMALL,), split="train", seed=0, count=4)
    images = scenes.images(scenes.pictures[:, 0, 0, 0] * 0)
    assert images.min() >= -1
    assert images.max() <= 1


def test_a_single_object_also_makes_the_sentence_without_colour_true():
    scene = Scene(task="colors", items=(_item("circle", "red", 16, 16),))
    assert true_sentences(SMALL, scene) == {
        "a photo of a circle",
        "a photo of a red circle",
        "a red circle top left",
    }


def test_two_objects_may_be_named_in_any_order():
    items = (_item("circle", "red", 16, 32), _item("square", "blue", 48, 32))
    found = true_sentences(SMALL, Scene(task="two_object", items=items))
    assert {
        "a photo of a circle and a square",
        "a photo of a square and a circle",
        "a photo of a circle left of a square",
        "a photo of a square right of a circle",
        "a photo of a red circle and a blue square",
        "a red circle left and a blue square right",
        "a blue square right of a red circle",
    } <= found
    assert "a photo of a square left of a circle" not in found


def test_words_are_true_with_and_without_colour():
    word = Word(text="AC", color="red", center_px=(32, 32))
    assert true_sentences(SMALL, Scene(task="typography", items=(), word=word)) == {
        'the word "AC"',
        'the word "AC" in red',
    }
