"""The processes of a run tell each other where they are, by small files in RUN_DIR/heartbeats, and
write their stacks into RUN_DIR/stacks when one of them asks.

Files, since they need no address and no open port, and outlive the processes. A shared folder bears
them: each process writes 512 bytes at most every five seconds, 50 writes a second over all of them,
and only process 0 reads all, once a minute or when a step, a batch of an evaluation or a save takes
long; then processes 1 and 2 do as well, and speak if those before them give no sign.
"""

from __future__ import annotations

import faulthandler
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from maxlm.events import event
from maxlm.process import phases
from maxlm.process.heartbeat import (
    Heartbeat,
    place_of,
    read_heartbeat,
    stragglers,
    suspects,
    write_heartbeat,
)
from maxlm.process.phases import Place

log = logging.getLogger(__name__)

LEAST_SECONDS = 5.0
WRITES_PER_SECOND = 50.0
READING_SECONDS = 60.0
READS_PER_SECOND = 10.0
SLOW_SECONDS = 60.0
"""A phase of training that takes longer is looked into: a step, a batch of an evaluation, a save."""
LOOKS = 3
"""So many looks, a period apart, come before somebody is named: at one of them a heartbeat may be late."""
LOOKERS = 3
"""Who looks; but the first speaks for all as long as it gives signs."""
ALL_READ = 64
"""Up to so many processes each names the culprit of a timeout; of more, two do."""


class Peers:
    """This process among those of its run."""

    def __init__(
        self,
        run_dir: Path,
        index: int,
        count: int,
        *,
        place: Callable[[], Place] = phases.current,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.heartbeats, self.stacks = run_dir / "heartbeats", run_dir / "stacks"
        self._index, self._count = index, count
        self._place, self._clock, self._pause = place, clock, pause
        self.period = max(LEAST_SECONDS, count / WRITES_PER_SECOND)
        self._beats, self._read_at = 0, clock()
        self._seen: dict[
            int, tuple[int, int]
        ] = {}  # of each heartbeat its number, and in how many looks
        self._named: set[int] = set()
        self._slow, self._looks, self._told = ("", -1), 0, False
        for folder in (self.heartbeats, self.stacks):
            folder.mkdir(parents=True, exist_ok=True)
        self._answered = self._asked()

    def turn(self) -> None:
        """Write a heartbeat, answer if somebody asks for stacks, and look at the others where that is
        due; raises OSError.
        """
        self._write()
        if self._asked() != self._answered:
            self._answer()
        if self._index >= LOOKERS or self._count == 1:
            return
        place = self._place()
        # Before training, phases take long for good reasons, and processes rarely wait in them.
        if place.phase not in phases.BEFORE_TRAINING and place.seconds > SLOW_SECONDS:
            self._look_into(place)
        elif self._index == 0 and self._clock() - self._read_at > max(
            READING_SECONDS, self._count / READS_PER_SECOND
        ):
            self._read_at = self._clock()
            self._warn_of_stragglers()

    def ask_for_stacks(self) -> None:
        """Write this process' stacks, and have the others write theirs; raises OSError."""
        if self._asked() == self._answered:
            self._marker.write_text(f"process {self._index} asks for the stacks of all\n")
        self._answer()

    def explain(self) -> list[str]:
        """Wait for the stacks of the others; return lines that name who hangs."""
        if self._count == 1:
            return []
        self._pause(2 * self.period + 1)
        if self._index >= 2 and self._count > ALL_READ:
            return [f"the logs of process 0 and 1 name who hangs; stacks: {self.stacks}"]
        asked = self._asked() or 0
        silent = [one for one in range(self._count) if self._written(one) < asked - 10**9]
        beats = [beat for one in range(self._count) if (beat := self._of(one)) is not None]
        last = {beat.process: f"{beat.name}, last seen in {beat.where}" for beat in beats}
        lines = [
            f"{last.get(one, f'process {one}')}: did not answer; it is stopped, or its machine is gone"
            for one in silent
        ]
        answered = [beat for beat in beats if beat.process not in silent]
        guilty = suspects(answered)
        if len(guilty) < len(answered):
            lines += [f"{one.name} is in {one.where}; the others wait for it" for one in guilty]
        return lines or ["no process is behind the others; their stacks say what they wait for"]

    @property
    def _marker(self) -> Path:
        return self.stacks / "asked"

    def _asked(self) -> int | None:
        """Return when somebody asked, by the clock of the folder, in nanoseconds."""
        try:
            return self._marker.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def _answer(self) -> None:
        self._answered = self._asked()
        beat = self._write()
        with self._stacks_of(self._index).open("w", encoding="utf-8") as file:
            file.write(f"{beat.name}: {beat.where}\n{time.strftime('%Y-%m-%d %H:%M:%S')}\n\n")
            file.flush()
            faulthandler.dump_traceback(file=file)

    def _stacks_of(self, index: int) -> Path:
        return self.stacks / f"process-{index}.txt"

    def _written(self, index: int) -> int:
        try:
            return self._stacks_of(index).stat().st_mtime_ns
        except FileNotFoundError:
            return -1

    def _write(self) -> Heartbeat:
        self._beats += 1
        beat = place_of(self._place(), self._index, socket.gethostname(), self._beats)
        write_heartbeat(self._file(self._index), beat)
        return beat

    def _file(self, index: int) -> Path:
        return self.heartbeats / f"{index}.json"

    def _of(self, index: int) -> Heartbeat | None:
        return read_heartbeat(self._file(index))

    def _all(self) -> list[Heartbeat]:
        return [beat for one in range(self._count) if (beat := self._of(one)) is not None]

    def _look_into(self, place: Place) -> None:
        """Name, once a step and phase, who does not get on or gives no sign; unless a process before
        this one is there to do it.
        """
        if (slow := (place.phase, place.step or 0)) != self._slow:
            self._slow, self._looks, self._told, self._seen = slow, 0, False, {}
        if self._told:
            return
        self._looks += 1
        beats = self._all()
        for beat in beats:
            number, looks = self._seen.get(beat.process, (-1, 0))
            self._seen[beat.process] = beat.number, looks + 1 if number == beat.number else 1
        still = [beat for beat in beats if self._seen[beat.process][1] >= LOOKS]
        if self._looks < LOOKS or self._index > sum(one.process < self._index for one in still):
            return
        silent = [f"{beat.name} gives no sign, last seen in {beat.where}" for beat in still]
        guilty = [beat for beat in suspects(beats) if beat not in still]
        behind = [f"{beat.name}, in {beat.where}" for beat in guilty if len(guilty) < len(beats)]
        if silent or behind:
            self._told = True
            log.log(
                # Of processes but the first, lines below an error are left to it.
                logging.ERROR if self._index else logging.WARNING,
                "the %s after step %d has taken %.0f s; all wait for %s",
                *slow,
                place.seconds,
                ", and for ".join([*silent, *behind]),
                extra=event(
                    "hang",
                    step=place.step,
                    phase=place.phase,
                    seconds=place.seconds,
                    processes=[beat.process for beat in [*still, *guilty]],
                ),
            )

    def _warn_of_stragglers(self) -> None:
        slow = stragglers(self._all())
        for beat, middle in slow:
            if beat.process not in self._named:
                own = beat.own_seconds or 0.0
                log.warning(
                    "%s is a straggler: its own work takes %.3f s of a step, the median of all is %.3f s "
                    "(data, Python, host; not its devices)",
                    beat.name,
                    own,
                    middle,
                    extra=event(
                        "straggler",
                        step=beat.step,
                        process=beat.process,
                        host=beat.host,
                        own_seconds=own,
                        median_seconds=middle,
                    ),
                )
        self._named = {beat.process for beat, _ in slow}


class Met:
    """The process' peers, once there is a folder to meet in."""

    peers: Peers | None = None


@contextmanager
def meeting(peers: Peers) -> Iterator[None]:
    """Send heartbeats and look at those of the others until the end of the block."""
    done = threading.Event()

    def turns() -> None:
        warned = False
        while not done.wait(peers.period):
            try:
                peers.turn()
            except OSError as error:
                if not warned:
                    log.warning("heartbeat: %s", error)
                warned = True

    thread = threading.Thread(target=turns, name="heartbeat", daemon=True)
    thread.start()
    Met.peers = peers
    try:
        yield
    finally:
        Met.peers = None
        done.set()
        # Not joined for long: its folder may not answer.
        thread.join(LEAST_SECONDS)
