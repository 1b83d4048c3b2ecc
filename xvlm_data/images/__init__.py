"""Images: find them on disk, check them, decode them."""
