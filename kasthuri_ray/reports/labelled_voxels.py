"""How many voxels are labelled, in words."""

from __future__ import annotations

from collections.abc import Mapping

FEW_VOXELS = 100_000  # fewer labelled ones, and scores vary with the tiles that happen to be labelled
NAMES = {"train": "training", "val": "validation", "test": "test"}


def describe_labelled(splits: Mapping[str, Mapping[str, int]], judged: str) -> str:
    """Return a sentence about the labelled voxels of a run.

    Parameters
    ----------
    splits : mapping
        `labelled` and `voxels` of train, val and test; and `sampled_from`, if those voxels are a sample.
    judged : str
        The split whose scores are shown.

    Returns
    -------
    str
        Sentences; "" where every voxel is labelled.
    """
    if all(each["labelled"] == each["voxels"] for each in splits.values()):
        return ""
    parts = [f"{_share_text(each)} of the {NAMES[split]} box" for split, each in splits.items()]
    text = f"Labelled are {', '.join(parts[:-1])} and {parts[-1]}. Only these count."
    few = splits.get(judged, {}).get("labelled", FEW_VOXELS)
    if few >= FEW_VOXELS:
        return text
    return f"{text} The scores rest on {few:,} voxels: read them with their intervals."


def _share_text(counted: Mapping[str, int]) -> str:
    labelled, voxels = counted["labelled"], counted["voxels"]
    sampled = f", a sample of {counted['sampled_from']:,}," if "sampled_from" in counted else ""
    return f"{labelled:,} of {voxels:,} voxels{sampled} ({labelled / voxels:.2%})"
