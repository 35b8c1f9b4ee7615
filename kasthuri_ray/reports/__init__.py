"""HTML pages and figures that show a run, an evaluation or a sweep to people.

Everything here takes plain data: numbers, arrays, dataclasses of them. The sentences and tables of the pages are in
`templates/`. Read `run_page` and `templates/run.html.jinja` first; `figures` and `examples` are what the pages show.
"""
