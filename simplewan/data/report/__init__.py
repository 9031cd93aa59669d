"""A dataset as a page to look at: the clips as they are trained on, what was left out, what is worth a second look.

What lives here: `looking` (each file decoded once, a few small frames; `pictures`, `cache`), `duplicates`, `findings`
(what deserves a warning), `survey` (all of it put together, and as a JSON document), `page` (as HTML, with `bars` and
`style`). Imports errors, events, flavours, options for their types alone, and the room; numpy and PIL when files are
looked at. No torch: what a page shows needs no model. The trade-off: frames are shrunk with PIL straight from the
source, so they are what is trained on to the eye, not to the bit.
"""
