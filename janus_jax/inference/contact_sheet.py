"""Contact sheets: images in a grid, each with its caption below."""

import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONT_SIZE = 11
CAPTION_HEIGHT = 28  # pixels, for two lines
MARGIN = 6  # pixels between cells


def contact_sheet(images, captions, *, columns=8, side=128):
    """Arranges images in a grid.

    Args:
      images: uint8[M, h, w, 3].
      captions: M strings; two lines of each are shown.
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
        lines = textwrap.wrap(caption, max(side // 6, 8))[:2]
        draw.text((x, y + side + 1), "\n".join(lines), fill="black", font=font, spacing=1)
    return sheet
