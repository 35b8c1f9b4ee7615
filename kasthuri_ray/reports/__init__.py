"""HTML pages and figures that show a run, an evaluation or a sweep to people.

Everything here takes plain data: numbers, arrays, dataclasses of them. Read `run_page` first; `rendering` holds the
parts that all pages share, `figures` and `section_images` what they show.
"""
