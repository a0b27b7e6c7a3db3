"""Text near borders of drawn images."""

from PIL import Image, ImageDraw, ImageFont

from data_prep.reading.burned_in import has_text

TEXT = "DOE JANE 03-02-1971"


def test_text_in_the_middle_and_single_letters_are_not_called():
    black = Image.new("L", (512, 512))
    draw = ImageDraw.Draw(black)
    draw.text((180, 250), TEXT, fill=255, font=ImageFont.load_default(14))
    for x, y in ((5, 5), (490, 5), (5, 490)):
        draw.text((x, y), "R", fill=255, font=ImageFont.load_default(20))
    assert not has_text(black)
    assert not has_text(Image.new("L", (1, 1))) and not has_text(Image.new("RGB", (5000, 40)))


def test_large_images_are_shrunk_first():
    large = Image.new("L", (4000, 3000))
    ImageDraw.Draw(large).text((40, 40), TEXT, fill=255, font=ImageFont.load_default(60))
    assert has_text(large)
