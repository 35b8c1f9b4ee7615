"""Files and key-value stores, on disks and in object storage: folders of runs, URIs, and leases.

Start reading at `folder`, whose `Storage` holds the files of a run. `kvstore` opens the stores of volumes and outputs,
and `lease` lets one process at a time write to a run.
"""
