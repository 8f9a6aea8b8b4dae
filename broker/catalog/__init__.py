"""From files and offers to one immutable snapshot of all tools.

`reader` reads the folder, `manifest` is the shape of each document, `compiler` judges everything and makes the
`Catalog`. Nothing here is done per call but look-ups and what was compiled; nothing here does I/O but the reader.
"""
