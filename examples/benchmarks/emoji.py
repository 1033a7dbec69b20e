# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
About 3,600 captioned images in colour: the emoji of Noto's font, with their Unicode names and groups.

    apt install fonts-noto-color-emoji unicode-data          # Debian, Ubuntu
    python examples/benchmarks/emoji.py --output_dir emoji   # a folder for the training scripts; --size 64
    python examples/benchmarks/emoji.py --output_dir fruit --subgroups food-fruit food-vegetable

The folder has a file for each emoji, on white, and a `metadata.jsonl` with the columns `text`, `group` and `subgroup`. With
`--subgroups` it has a folder for each of these subgroups of Unicode's list instead.
"""

import argparse
import io
import json
import re
from pathlib import Path
from typing import NamedTuple

from PIL import Image


FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
NAMES = "/usr/share/unicode/emoji/emoji-test.txt"


class Emoji(NamedTuple):
    """An emoji in RGBA, square, with its code points, its Unicode name and where Unicode lists it."""

    image: Image.Image
    code: str
    name: str
    group: str
    subgroup: str


def load_emoji(size, font=FONT, names=NAMES):
    """
    All emoji of the font in the order of Unicode's list, as a list of [`Emoji`].

    Args:
        size (`int`): Height and width of the images.
        font (`str`): Noto Color Emoji, with bitmaps.
        names (`str`): Unicode's `emoji-test.txt`.
    """
    from fontTools.ttLib import TTFont

    for path, package in ((font, "fonts-noto-color-emoji"), (names, "unicode-data")):
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} is missing. Install Debian's package {package}.")
    font = TTFont(font)
    bitmaps, characters, ligatures = font["CBDT"].strikeData[0], font.getBestCmap(), {}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            for first, rest in getattr(table, "ligatures", {}).items():
                ligatures |= {(first, *each.Component): each.LigGlyph for each in rest}

    emoji, group, subgroup = [], None, None
    for line in Path(names).read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
        elif line.startswith("# subgroup: "):
            subgroup = line.removeprefix("# subgroup: ")
        elif match := re.match(r"([0-9A-F ]+?) *; fully-qualified *# \S+ E[\d.]+ (.*)", line):
            code = [word for word in match[1].split() if word != "FE0F"]  # which asks for colour
            glyphs = tuple(characters.get(int(word, 16)) for word in code)
            bitmap = bitmaps.get(glyphs[0] if len(glyphs) == 1 else ligatures.get(glyphs))
            if getattr(bitmap, "imageData", None):
                emoji.append(Emoji(_square(bitmap.imageData, size), "-".join(code), match[2], group, subgroup))
    return emoji


def _square(data, size):
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    square = Image.new("RGBA", (max(image.size),) * 2)
    square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
    return square.resize((size, size), Image.Resampling.BOX)


def on_white(image):
    """An image in RGBA as one in RGB."""
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def write_folder(folder, emoji):
    """A folder of images in RGB, on white, that the training scripts take."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for each in emoji:
        on_white(each.image).save(folder / f"{each.code}.png")
        rows.append(
            {"file_name": f"{each.code}.png", "text": each.name, "group": each.group, "subgroup": each.subgroup}
        )
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")  # last, so that a folder that has it is whole


def write_class_folders(folder, emoji, subgroups):
    """A folder of images for each subgroup."""
    unknown = set(subgroups) - {each.subgroup for each in emoji}
    if unknown:
        raise ValueError(
            f"`--subgroups` has {sorted(unknown)}, but they have to be among {sorted({each.subgroup for each in emoji})}."
        )
    for each in emoji:
        if each.subgroup in subgroups:
            path = Path(folder, each.subgroup, f"{each.code}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            on_white(each.image).save(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="emoji", help="Where the images go.")
    parser.add_argument("--size", type=int, default=64, help="Height and width; the font has 136 pixels.")
    parser.add_argument("--subgroups", nargs="+", help="Take these subgroups alone, each into a folder of its own.")
    args = parser.parse_args()
    emoji = load_emoji(args.size)
    if args.subgroups:
        write_class_folders(args.output_dir, emoji, args.subgroups)
        emoji = [each for each in emoji if each.subgroup in args.subgroups]
    else:
        write_folder(args.output_dir, emoji)
    print(f"{len(emoji)} images in {args.output_dir}")


if __name__ == "__main__":
    main()
