"""What scenes are called."""

from swin_mim.data.scenes.find import stems


def test_scenes_that_differ_in_their_suffix_have_other_names() -> None:
    assert stems(["a.jp2", "a.tif", "a.tif.png"]) == ["a.jp2", "a.tif", "a.tif.png"]
    assert stems(["a/x.tif", "a/x.png", "b/x.tif", "c.d/y"]) == ["a/x.tif", "a/x.png", "b/x", "c.d/y"]
