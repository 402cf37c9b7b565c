"""Faces of a run's history: a trace for Perfetto, a page for a browser, a screen for a terminal. Each is made of a `History` and keeps nothing.

    trace.py      the history as a Chrome trace: a track for each GPU and each pipeline, counters, marks
    page_data.py  what the page shows, as plain data: lanes as numbers, splits, waits, curves, marks, what alone would have cost
    page.py       the page itself: one HTML file without any outside address (`page.html` beside it, and the data)
    screen.py     `top`: one screen of text, as wide and as high as it is told
    thinning.py   lanes of very long runs in fewer slices, with the same totals

Text in it came from children, models and files. In the page it is data that a script puts into text nodes, never markup; a policy in the page
(`Content-Security-Policy`) lets no other script run and nothing be fetched. On the screen it goes through `observe.sanitize`.
"""
