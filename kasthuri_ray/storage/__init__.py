"""Files and key-value stores, on disks and in object storage: folders of runs, URIs, and leases.

Start reading at `storage`, the interface to a folder of files, and at `folder`, which opens one. `kvstore` opens the
stores of volumes and outputs, and `lease` lets one process at a time write to a run. S3 is accessed with tensorstore.
"""
