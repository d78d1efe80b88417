"""The actors of a Ray cluster at work on one cache: who is handed which shard, and what if one is lost.

Ray places the actors, starts them again and lets the cluster grow. Here shards are handed out from an
iterator, few to each actor, so that no more is kept of many than of few; those of an actor that was lost are
handed out again. Nothing else has to be known: a shard that is done twice is committed once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from featcache.errors import CacheError
from featcache.extraction.joining import Message, error_of

LOST = 3  # times in a row that an actor may be lost before it has anything committed
SOON = 30.0  # seconds until it is said that the cluster has no room yet
ENDING = 60.0  # seconds for actors to end

Answered = Callable[[int, int], None]
"""Told a shard's number and the images embedded for it."""


@dataclass(eq=False)
class _Member:
    """One actor: whether it is ready, the shards it has in hand, how often it was lost since the last one."""

    handle: Any
    ready: bool = False
    flight: int = 0
    lost: int = 0


class Crew:
    """Actors that fill a cache.

    Args:
        ray: the module, connected.
        make: makes an actor with the methods of `featcache.extraction.actor.Extracting`.
        window: shards an actor may have in hand.
    """

    def __init__(self, ray: Any, make: Callable[[], Any], window: int) -> None:
        self._ray, self._make, self._window = ray, make, window
        self._members: list[_Member] = []
        self._asked: dict[Any, tuple[_Member, int | None]] = {}  # shard, None: whether it is ready
        self._again: deque[int] = deque()

    def first(self, notify: Callable[[str], None]) -> Message:
        """Make one actor, wait until it is ready and return what it chose.

        Raises:
            FeatcacheError: what it met.
            CacheError: it was lost again and again.
        """
        self.add()
        if not self._ray.wait(list(self._asked), timeout=SOON)[0]:
            notify("Waiting for the Ray cluster to have room for an actor, or for it to open the data set.")
        while True:
            for _, number, answer in self._answers():
                if number is None and answer is not None:
                    return answer

    def add(self) -> None:
        """Make another actor; it is handed shards as soon as it is ready."""
        self._members.append(_Member(self._make()))
        self._begin(self._members[-1])

    def work(self, numbers: Iterator[int], count: int, answered: Answered) -> None:
        """Have `count` shards committed, whose numbers come from an iterator.

        Raises:
            FeatcacheError: what an actor met.
            CacheError: all actors were lost again and again.
        """
        while count:
            self._hand_out(numbers)
            for _, number, answer in self._answers():
                if number is not None and answer is not None:
                    answered(number, answer["images"])
                    count -= 1

    def end(self, finished: bool) -> None:
        """End all actors: after what is in hand where all is finished, else at once."""
        asked = [member.handle.end.remote(finished) for member in self._members if member.ready]
        if asked:
            self._ray.wait(asked, num_returns=len(asked), timeout=ENDING if finished else ENDING / 12)
        for member in self._members:
            self._ray.kill(member.handle, no_restart=True)
        self._members, self._asked = [], {}

    def _hand_out(self, numbers: Iterator[int]) -> None:
        """Give each actor that is ready what it may have, in turn."""
        room = [member for member in self._members if member.ready and member.flight < self._window]
        while room:
            for member in sorted(room, key=lambda member: member.flight):
                number = self._again.popleft() if self._again else next(numbers, None)
                if number is None:
                    return
                member.flight += 1
                self._asked[member.handle.shard.remote(number)] = member, number
            room = [member for member in room if member.flight < self._window]

    def _answers(self) -> Iterator[tuple[_Member, int | None, Message | None]]:
        """Wait for an answer; yield who, the shard, and what was said, None where the actor was lost."""
        if not self._asked:
            raise CacheError(
                "All Ray actors were lost again and again before the cache was finished.",
                "See Ray's logs; the same command goes on where it stopped.",
            )
        for reference in self._ray.wait(list(self._asked))[0]:
            member, number = self._asked.pop(reference)
            answer = self._answer(reference)
            if answer is not None and "error" in answer:
                raise error_of(*answer["error"])
            self._note(member, number, answer)
            yield member, number, answer

    def _answer(self, reference: Any) -> Message | None:
        try:
            answer: Message = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError:
            raise  # a fault of the program, with the actor's traceback
        except self._ray.exceptions.RayError:
            return None
        return answer

    def _note(self, member: _Member, number: int | None, answer: Message | None) -> None:
        if number is not None:
            member.flight -= 1
        if answer is None:
            if number is not None:
                self._again.append(number)
            self._lose(member, number)
        elif number is None:
            member.ready = True
        else:
            member.lost = 0

    def _lose(self, member: _Member, number: int | None) -> None:
        """Ask a lost actor to tell when Ray has made it anew; give up one that is lost again and again."""
        if number is not None and not member.ready:
            return  # known already, by another of its shards
        member.ready = False
        member.lost += 1
        if member.lost > LOST:
            self._ray.kill(member.handle, no_restart=True)
            self._members.remove(member)
        else:
            self._begin(member)

    def _begin(self, member: _Member) -> None:
        # Answered when there is a process again, however long the cluster takes to find room for it.
        self._asked[member.handle.begin.options(max_task_retries=-1).remote()] = member, None
