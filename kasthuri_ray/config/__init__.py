"""Settings: their types and defaults, the files they are read from, and which value wins where several set one.

`settings.py` lists every setting of a network and of a job, `task.py` those of a task. Read `settings.py` first.
`loading.py` merges files and flags into one `Settings` object, `sweep_settings.py` into those of a sweep.
"""
