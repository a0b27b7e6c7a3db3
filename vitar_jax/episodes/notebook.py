"""Shows an episode in a notebook, as HTML that needs neither a server nor a network."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from vitar_jax.episodes.mask_drawing import object_colours, outlined
from vitar_jax.episodes.object_masks import ObjectMask
from vitar_jax.episodes.regions import Size

if TYPE_CHECKING:
    from vitar_jax.episodes.episode import Episode

LARGEST = 384  # pixels of the longer side of a shown image
OUTLINE_WIDTH = 2  # pixels of a shown image

_PAGE = """
<div style="font-family: sans-serif; max-width: 60em; line-height: 1.4">
  <p><b>{{ question }}</b>{% for letter, text in options %}<br>{{ letter }} {{ text }}{% endfor %}</p>
  <div style="display: flex; flex-wrap: wrap; gap: 1em">
  {% for image in images %}
    <figure style="margin: 0">
      <svg viewBox="0 0 {{ image.width }} {{ image.height }}" width="{{ image.shown }}"
        role="img" aria-label="{{ image.caption }}">
        <image href="{{ image.url }}" width="{{ image.width }}" height="{{ image.height }}"/>
        {% for number, (x1, y1, x2, y2) in image.boxes %}
        <rect x="{{ x1 }}" y="{{ y1 }}" width="{{ x2 - x1 }}" height="{{ y2 - y1 }}"
          fill="none" stroke="#e6550d" stroke-width="2" vector-effect="non-scaling-stroke">
          <title>turn {{ number }}</title>
        </rect>
        {% endfor %}
      </svg>
      <figcaption>{{ image.caption }}
      {% for colour, words in image.objects %}
        <br><span style="color: {{ colour }}">&#9632;</span> {{ words }}
      {% endfor %}
      </figcaption>
    </figure>
  {% endfor %}
  </div>
  <ol>
  {% for turn in turns %}
    <li>{{ turn.thought if turn.thought is not none else turn.text }}
    {%- if turn.action is not none %}<br><code>{{ turn.action }}</code>{% endif %}
    {%- if turn.error is not none %}<br>tool error: {{ turn.error[1] }}{% endif %}</li>
  {% endfor %}
  </ol>
  <p><b>{{ "no answer (" + end + ")" if answer is none else answer }}</b></p>
</div>
"""


def episode_html(episode: "Episode") -> str:
    """Returns an episode as HTML, all escaped: its images with the boxes and masks of turns, its turns and its answer."""
    from jinja2 import Environment  # imported only where a notebook asks

    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_PAGE)
    return template.render(
        question=episode.sample.question,
        options=episode.sample.options,
        images=[
            *(_image(episode, number) for number in range(len(episode.images))),
            *(_masked(episode, number) for number, turn in enumerate(episode.turns) if turn.masks),
        ],
        turns=episode.turns,
        answer=episode.predicted_answer,
        end=episode.end_reason or "unfinished",
    )


def _image(episode: "Episode", number: int) -> dict[str, object]:
    image = episode.images[number]
    made = "" if image.turn is None else f", made in turn {image.turn + 1}"
    boxes = [
        (place, box)
        for place, turn in enumerate(episode.turns, start=1)
        if turn.carried_out and turn.acted_on == number
        for box in turn.boxes_original
    ]
    return _figure(_small(image.pixels), image.pixels.size, f"image {number}{made}", boxes=boxes)


def _masked(episode: "Episode", number: int) -> dict[str, object]:
    """Returns image 0 with the outlines of a turn's masks."""
    masks, small = episode.turns[number].masks, _small(episode.images[0].pixels)
    objects = [
        ("#{:02x}{:02x}{:02x}".format(*colour), _in_words(one))
        for one, colour in zip(masks, object_colours(masks), strict=True)
    ]
    return _figure(outlined(small, masks, OUTLINE_WIDTH), small.size, f"masks of turn {number + 1}", objects=objects)


def _figure(
    shown: Image.Image, size: Size, caption: str, *, boxes: Sequence[object] = (), objects: Sequence[object] = ()
) -> dict[str, object]:
    """Returns the values of a figure. Boxes are in pixels of an image of this size."""
    from vitar_jax.runtime.endpoint import data_url  # imports an HTTP client

    width, height = size
    figure = {"width": width, "height": height, "shown": max(shown.width, 96), "url": data_url(shown)}
    return figure | {"caption": caption, "boxes": boxes, "objects": objects}


def _in_words(one: ObjectMask) -> str:
    size = "no mask" if one.mask is None else f"{one.mask.area:.0f} px" if one.mask.area else "no pixel"
    return ", ".join(part for part in (one.name or "unnamed object", one.part, size) if part)


def _small(pixels: Image.Image) -> Image.Image:
    scale = min(1.0, LARGEST / max(pixels.size))
    width, height = (max(1, round(side * scale)) for side in pixels.size)
    return pixels.resize((width, height), Image.Resampling.BICUBIC)
