"""What is shown of an output: the annotation of its task is there, but hidden until a person wants it."""

from kasthuri_ray.viewer.layer_maker import LayerMaker
from kasthuri_ray.viewer.output_scene import _annotation_layer
from kasthuri_ray.volumes.opening import VolumeOpener

IMAGE, ANNOTATION = (f"phantom://{name}?shape=4,64,64&seed=1" for name in ("em", "membrane"))


def test_the_annotation_of_the_task_is_hidden_and_one_that_is_given_is_shown():
    maker = LayerMaker(VolumeOpener(None, "none", "1GB"))
    image, _ = maker.image_layer(IMAGE)
    record = {"image": IMAGE, "task": {"annotation_chan": ANNOTATION}}
    assert not _annotation_layer(record, image, None, maker).is_visible
    assert _annotation_layer(record, image, ANNOTATION, maker).is_visible
