"""The commands, one file each: arguments in, one call. An installed package has them as `kasthuri_ray.jobs`."""
