"""Verdicts on objects in the viewer: keys, the object that is shown, and the file that is written at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from kasthuri_ray.errors import InputError, InputNotFound
from kasthuri_ray.geometry import Nm
from kasthuri_ray.output.reviewed_file import KEEP, REJECT, UNSURE, ReviewedObject, read_reviewed, write_reviewed
from kasthuri_ray.viewer.data_server import ViewerServer
from kasthuri_ray.viewer.layers import Scene
from kasthuri_ray.viewer.review_sample import check_sample, chosen_object, draw_objects
from kasthuri_ray.viewer.viewer_keys import bind_key, selected_object, show_object, show_status

VERDICT_KEYS = {"keyk": KEEP, "keyr": REJECT, "keyu": UNSURE}
NEXT_KEY, PREVIOUS_KEY = "keyn", "keyp"


class ReviewFile:
    """The objects of a review and their verdicts; each verdict is written at once.

    Parameters
    ----------
    path : str
        `<output>.reviewed.csv`.
    rows : sequence of mapping
        Rows of the table of objects.
    number : int or None
        How many objects are drawn if the file holds none; None for none.

    Raises
    ------
    InputError
        If the file is of another output, or holds a review of another number of objects.
    """

    def __init__(self, path: str, rows: Sequence[Mapping[str, Any]], number: int | None) -> None:
        self.path = path
        self._rows = {int(row["id"]): row for row in rows}
        try:
            self.objects = read_reviewed(path)
        except InputNotFound:
            self.objects = []
        check_sample(self.objects, rows, path)
        drawn = [each for each in self.objects if each.is_drawn]
        if number is None:
            return
        if drawn and len(drawn) != min(number, len(rows)):
            raise InputError(
                f"{path} holds a review of {len(drawn)} objects: resume it with --review {len(drawn)}, or move the "
                "file away to draw others"
            )
        if not drawn:
            sample = draw_objects(rows, number)
            chosen = {each.id: each.verdict for each in self.objects}
            kept = [each for each in self.objects if each.id not in {one.id for one in sample}]
            self.objects = [replace(each, verdict=chosen.get(each.id, "")) for each in sample] + kept
            write_reviewed(path, self.objects)

    @property
    def drawn(self) -> list[ReviewedObject]:
        """The objects that were drawn at random, in their order."""
        return [each for each in self.objects if each.is_drawn]

    def record(self, number: int, verdict: str) -> bool:
        """Write a verdict on an object; return whether the table has such an object.

        Verdicts that another viewer of the same output wrote meanwhile are kept.

        Raises
        ------
        InputError
            If the file is no longer one of reviewed objects.
        OSError
            If it cannot be written.
        """
        if number not in self._rows:
            return False
        self._take_over()
        known = {each.id: place for place, each in enumerate(self.objects)}
        if number in known:
            self.objects[known[number]] = replace(self.objects[known[number]], verdict=verdict)
        else:
            self.objects.append(replace(chosen_object(self._rows[number]), verdict=verdict))
        write_reviewed(self.path, self.objects)
        return True

    def _take_over(self) -> None:
        """Take over what is in the file: verdicts, and strata that were drawn meanwhile."""
        try:
            stored = {each.id: each for each in read_reviewed(self.path)}
        except InputNotFound:
            return
        for place, each in enumerate(self.objects):
            self.objects[place] = stored.pop(each.id, each)
        self.objects += stored.values()


class Review:
    """The keys of a review, and the walk through the objects that were drawn.

    Parameters
    ----------
    server : ViewerServer
        Shows the scene.
    scene : Scene
        What is shown.
    file : ReviewFile
        Keeps the verdicts.
    place_of : callable
        Returns the middle of an object in nm (voxels), by its id.
    walks : bool
        Whether the objects that were drawn are shown one after the other.
    """

    def __init__(
        self,
        server: ViewerServer,
        scene: Scene,
        file: ReviewFile,
        place_of: Callable[[int], Nm],
        walks: bool,
    ) -> None:
        self.server, self.scene, self.file, self.place_of, self.walks = server, scene, file, place_of, walks
        self._lock = threading.Lock()
        self._at = 0
        for key, verdict in VERDICT_KEYS.items():
            bind_key(server, key, f"review-{verdict}", partial(self.decide, verdict))
        if walks:
            bind_key(server, NEXT_KEY, "review-next", lambda action: self.step(1))
            bind_key(server, PREVIOUS_KEY, "review-previous", lambda action: self.step(-1))
            undecided = [place for place, each in enumerate(file.drawn) if not each.verdict]
            self._at = undecided[0] if undecided else 0
            self._show()
        else:
            show_status(
                server, "K keep, R reject, U unsure: of the object that is selected (double click), or under the mouse"
            )

    def decide(self, verdict: str, action: Any) -> None:
        """Record a verdict on the selected object, and show the next one that was drawn."""
        with self._lock:
            number = selected_object(action)
            if number is None and self.walks:
                number = self.file.drawn[self._at].id
            if number is None:
                show_status(self.server, "No object is selected: double click one, or move the mouse to one")
                return
            try:
                is_known = self.file.record(number, verdict)
            except (InputError, OSError) as error:
                show_status(self.server, f"The verdict was not saved: {error}")
                return
            if not is_known:
                show_status(self.server, f"The table has no object {number}")
            elif self.walks and number == self.file.drawn[self._at].id:
                self._to_next_undecided()
            elif self.walks:  # another one was selected, or the browser did not show the next one yet
                self._show(f"Object {number}: {verdict}. ")
            else:
                show_status(self.server, f"Object {number}: {verdict}")

    def step(self, by: int) -> None:
        """Show another object that was drawn."""
        with self._lock:
            self._at = (self._at + by) % len(self.file.drawn)
            self._show()

    def _to_next_undecided(self) -> None:
        drawn = self.file.drawn
        following = [(self._at + by) % len(drawn) for by in range(1, len(drawn) + 1)]
        self._at = next((place for place in following if not drawn[place].verdict), following[0])
        self._show()

    def _show(self, note: str = "") -> None:
        drawn = self.file.drawn
        each = drawn[self._at]
        num_done = sum(bool(one.verdict) for one in drawn)
        verdict = f", {each.verdict}" if each.verdict else ""
        rest = (
            f"{num_done} of {len(drawn)} done"
            if num_done < len(drawn)
            else f"all {len(drawn)} are done: evaluate.py --reviewed"
        )
        text = f"{note}Object {each.id} (p {each.mean_probability:.2f}, {each.size_voxels} voxels{verdict}); {rest}. "
        show_object(self.server, self.scene, each.id, self.place_of(each.id))
        show_status(self.server, text + "K keep, R reject, U unsure, N next, P previous")
