"""Birds: photographs with a caption and boxes, one JSON object a line in ``<split>.jsonl``.

{"file": "robin.jpg", "caption": "A robin.", "boxes": [[x, y, w, h, "robin", ["red"]]]}
"""

from functools import partial

import msgspec

from xvlm_data.raw.files import find_file
from xvlm_data.records import CAPTION, OBJECT
from xvlm_data.sources import Source
from xvlm_data.sources.url_list import image_key


class Bird(msgspec.Struct):
    file: str
    caption: str
    boxes: list[tuple[float, float, float, float, str, list[str]]] = []


class Birds(Source):
    name = "birds"
    licence = "CC BY 4.0"
    citation = "@misc{birds, title = {Birds}, year = {2026}}"

    def read(self, request, records):
        path = find_file(request.root, [f"{request.split}.jsonl"], "list of birds")
        records.read_lines(path, partial(convert, part=records.part(path, "line {line}")))


def convert(first, lines, sink, *, part):
    """Some lines, the first of which has number ``first``, become records: columns of them."""
    images, captions, objects = [], [], []
    for index, line in enumerate(lines, first):
        try:
            bird = msgspec.json.decode(line, type=Bird)
        except msgspec.MsgspecError as error:
            sink.malformed_images(part, [(index, str(error), line)])
            continue
        place = {"key": image_key(bird.file), "part": part, "index": index}
        name = f"birds/{bird.file.removesuffix('.jpg')}"
        images.append(place | {"id": name, "paths": [f"images/{bird.file}"]})
        captions.append(place | {"kind": CAPTION, "text": bird.caption})
        for *box, text, attributes in bird.boxes:
            said = {"kind": OBJECT, "text": text, "attributes": attributes}
            objects.append(place | said | dict(zip("xywh", box, strict=True)))
    for rows, add in ((images, sink.images), (captions + objects, sink.annotations)):
        if rows:
            add({name: [row.get(name) for row in rows] for name in rows[-1]})
