"""Contact sheets: pictures in a grid with a line of text under each."""

import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def contact_sheet(pictures, captions, *, columns=8, side=128):
    """Lays pictures out.

    Args:
      pictures: uint8[M, h, w, 3].
      captions: a string each.
      columns: pictures a row.
      side: shown size, pixels.

    Returns:
      PIL picture.
    """
    font, band, margin = ImageFont.load_default(11), 28, 6
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    cell = (side + margin, side + band + margin)
    sheet = Image.new("RGB", (columns * cell[0] + margin, rows * cell[1] + margin), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (pixels, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = margin + i % columns * cell[0], margin + i // columns * cell[1]
        sheet.paste(Image.fromarray(np.asarray(pixels)).resize((side, side), Image.Resampling.NEAREST), (x, y))
        lines = textwrap.wrap(caption, max(side // 6, 8))[:2]
        draw.text((x, y + side + 1), "\n".join(lines), fill="black", font=font, spacing=1)
    return sheet
