"""From folders of clips to pixels: backends, media decoding, captions, the index of samples, bucket arithmetic.

Imports errors, events, flavours and, for types only, options. Everything up to `scan` works without torch (PyAV and
PIL are imported when the first file is opened); only `loading` needs it.
"""
