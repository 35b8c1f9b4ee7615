"""Settings of the viewer."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from kasthuri_ray.config import defaults
from kasthuri_ray.config.field_types import Count, SettingsSection
from kasthuri_ray.errors import InputError


class ViewSettings(SettingsSection):
    """What the viewer shows, and where it listens."""

    output: str | None = None
    """Output of a segmentation."""
    run: str | None = None
    """Folder of a training run."""
    evaluation: str | None = None
    """Folder of an evaluation."""
    image: str | None = None
    """URI of an image; with an output, a run or an evaluation, in place of theirs."""
    annotation: str | None = None
    """URI of an annotation of the image."""
    position: str | None = None
    """Middle of the view, z,y,x in voxels of the image; null: the most confident object, else the middle."""
    size: str = defaults.WINDOW
    """Width and height of the picture, in pixels."""
    layout: Literal["xy", "4panel"] = defaults.LAYOUT
    """One section, or three sections and a view in 3D."""
    screenshot: str | None = None
    """PNG file that is written instead of a viewer that stays."""
    link: bool = False
    """Print the address of a public Neuroglancer instead; all layers must lie in public storage."""
    review: Count | None = None
    """Number of objects that are drawn at random for verdicts; null: no walk through them."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port of viewer and data; 0: a free one."""
    bind: str = defaults.BIND
    """Address to listen on."""
    browser: str | None = None
    """Program of the browser; null: an installed one."""
    boss: str | None = None
    """JSON file with protocol, host and token of a BossDB; its token is never written anywhere; null: public data."""
    cache: str | None = None
    """Folder for chunks of remote volumes and of the phantom, or "none" for no cache; null: KASTHURI_CACHE or
    ~/.cache/kasthuri_ray."""
    cache_size: str = defaults.CACHE_SIZE
    """Disk space that the cache may take."""
    verbose: bool = False
    """Show tracebacks."""

    subjects: ClassVar[tuple[str, ...]] = ("output", "run", "evaluation")

    @model_validator(mode="after")
    def _check_one_subject(self) -> ViewSettings:
        given = [f"--{name}" for name in self.subjects if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)}: one of them is shown at a time")
        if not given and self.image is None:
            raise InputError("nothing to show: give --output, --run, --evaluation or --image")
        if self.link and self.screenshot is not None:
            raise InputError("--link and --screenshot: give one of them")
        if self.review is not None and self.output is None:
            raise InputError("--review needs --output, whose objects are reviewed")
        if self.review is not None and (self.link or self.screenshot is not None):
            raise InputError("--review needs a viewer that stays: leave out --link and --screenshot")
        return self
