"""Contact sheets: images in a grid, each with its caption below."""

import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONT_SIZE = 11
CAPTION_HEIGHT = 28  # pixels, for two lines
MARGIN = 6  # pixels between cells
MARKS = {True: ("green", ((2, 9), (6, 13), (13, 3))), False: ("red", ((3, 3), (13, 13)))}


def contact_sheet(images, captions, *, right=None, columns=8, side=128):
    """Arranges images in a grid.

    Args:
      images: uint8[M, h, w, 3].
      captions: M strings; two lines of each are shown.
      right: M times True or False, whether an image is what its caption says: a green tick or a
        red stroke in its corner; None for no marks.
      columns: images per row.
      side: height and width of each image on the sheet, pixels.

    Returns:
      PIL image.
    """
    font = ImageFont.load_default(FONT_SIZE)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    cell_width = side + MARGIN
    cell_height = side + CAPTION_HEIGHT + MARGIN
    sheet = Image.new("RGB", (columns * cell_width + MARGIN, rows * cell_height + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
        x = MARGIN + i % columns * cell_width
        y = MARGIN + i // columns * cell_height
        image = Image.fromarray(np.asarray(pixels)).resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(image, (x, y))
        if right is not None:
            color, points = MARKS[bool(right[i])]
            draw.line([(x + side - 18 + px, y + 2 + py) for px, py in points], color, width=3)
        lines = textwrap.wrap(caption, max(side // 6, 8))[:2]
        draw.text((x, y + side + 1), "\n".join(lines), fill="black", font=font, spacing=1)
    return sheet
