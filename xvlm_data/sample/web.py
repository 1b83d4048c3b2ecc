"""SBU and CC3M in miniature: captions and addresses, the pictures where a download would put them.

Some addresses have no picture, because links rot.
"""

from __future__ import annotations

import hashlib
import random
import re
from pathlib import Path

from xvlm_data.sample import language
from xvlm_data.sample.release import HOST, Ids, Picture, Release, held_out, sentence, write_json
from xvlm_data.sample.scene import Scene, SceneKey, make_scene

_PHOTO_ID_PRIME = 9_999_999_967
_CC3M_FILES = {
    "train": "Train_GCC-training.tsv",
    "val": "Validation_GCC-1.1.0-Validation.tsv",
}


def write_sbu(folder: Path, images: int, seed: int) -> list[tuple[str, Release]]:
    """Writes sbu-captions-all.json; a picture is named by the last part of its address."""
    ids = Ids.of(seed, "sbu", _PHOTO_ID_PRIME)
    release = Release()
    urls, users, captions = [], [], []
    rotten = _rotten(images)
    for number in range(images + rotten):
        key = SceneKey(seed, "sbu/train", number)
        rng = key.random("sbu")
        name = f"{ids[number]}_{rng.getrandbits(40):010x}.jpg"
        urls.append(f"http://static.{HOST}/{rng.randint(1, 5000)}/{name}")
        users.append(f"{rng.randint(10**7, 10**8 - 1)}@N0{rng.randint(0, 8)}")
        captions.append(_as_on_flickr(language.captions(make_scene(key), rng, 1)[0], rng))
        if number < images:
            release.pictures.append(Picture(folder / "images" / name, key))
    order = list(range(images + rotten))
    random.Random(f"{seed}/sbu/order").shuffle(order)
    columns = {"image_urls": urls, "user_ids": users, "captions": captions}
    write_json(
        folder / "sbu-captions-all.json",
        {name: [column[i] for i in order] for name, column in columns.items()},
    )
    release.counts["train"] = {"images": images, "captions": len(captions), "lost": rotten}
    return [("sbu", release)]


def write_cc3m(folder: Path, images: int, seed: int) -> list[tuple[str, Release]]:
    """Writes the two TSV files; a picture is images/<xx>/<key>.jpg.

    The key is the first 32 hexadecimal digits of the address's SHA-256, xx its first two digits.
    """
    ids = Ids.of(seed, "cc3m", _PHOTO_ID_PRIME)
    release = Release()
    for split, size in {"train": images, "val": held_out(images)}.items():
        rotten = _rotten(size)
        lines = []
        for number in range(size + rotten):
            key = SceneKey(seed, f"cc3m/{split}", number)
            rng = key.random("cc3m")
            scene = make_scene(key)
            url = _address(ids[2 * number + (split == "train")], scene, rng)
            caption = _tokenised(language.captions(scene, rng, 1)[0], rng)
            lines.append(f"{caption}\t{url}\n")
            if number < size:
                name = hashlib.sha256(url.encode()).hexdigest()[:32]
                release.pictures.append(Picture(folder / "images" / name[:2] / f"{name}.jpg", key))
        random.Random(f"{seed}/cc3m/{split}/order").shuffle(lines)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _CC3M_FILES[split]).write_bytes("".join(lines).encode())
        release.counts[split] = {"images": size, "captions": len(lines), "lost": rotten}
    return [("cc3m", release)]


def _rotten(images: int) -> int:
    return max(images // 50, 1)


def _as_on_flickr(text: str, rng: random.Random) -> str:
    """Free user text: case and punctuation as anybody likes."""
    form = rng.randrange(5)
    if form == 0:
        return sentence(text)
    if form == 1:
        return text.title()
    if form == 2:
        return f"{text}..."
    if form == 3:
        return f"{text[0].upper()}{text[1:]} !"
    return text


def _tokenised(text: str, rng: random.Random) -> str:
    """Lower case, one space between tokens, punctuation a token of its own."""
    tokens = re.findall(r"\w+|[^\w\s]", text.lower())
    return " ".join([*tokens, "."] if rng.random() < 0.33 else tokens)


def _address(photo_id: int, scene: Scene, rng: random.Random) -> str:
    """Addresses of the web at large: with a query, without an extension, or plain."""
    draw = rng.random()
    if draw < 0.2:
        tail = f"{photo_id}.jpg?w={scene.width}&h={scene.height}"
    elif draw < 0.34:
        tail = f"view/{photo_id}"
    else:
        tail = f"{rng.randint(2008, 2017)}/{rng.randint(1, 12):02d}/shapes-{photo_id}.jpg"
    return f"{rng.choice(('http', 'https'))}://media{rng.randint(1, 40)}.{HOST}/{tail}"
