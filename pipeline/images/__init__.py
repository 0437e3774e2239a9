"""From the bytes of an image file to the pixels that it means, or to the reason why not."""
