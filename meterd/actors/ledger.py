"""The ledger actor: write-behind with group commit.

Every accepted fact waits here, in the journal, until PostgreSQL has committed it; only then may it
be acknowledged. The journal belongs to this actor, so an organization that crashes reloads what is
stored, replays what is waiting, and loses nothing.

Rule 1: facts of one organization are written in order, and never one without those before it.
Rule 2: a failed or lost flush is sent again, unchanged or longer: every fact is idempotent.
Rule 3: what PostgreSQL rejects (not an outage) is found by halving the batch by organization; from
        the poison fact on, that organization's facts are dropped and buried, all others commit.
Rule 4: the journal is bounded; when it is full new work is refused, nothing is dropped.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

import attrs
import structlog
import trio

from meterd.core.journal import OrganizationBatch, coalesce
from meterd.core.organization import Facts
from meterd.core.supervision import backoff_ms
from meterd.core.units import SECOND_MS
from meterd.errors import PortalClosedError, StoreRejectedError, StoreUnavailableError
from meterd.observe.counting import SIZES, Histogram
from meterd.observe.spans import Spans, no_span
from meterd.ports.clock import Clock
from meterd.ports.ids import Ids
from meterd.ports.ledger import LedgerStore
from meterd.ports.trail import DeadLetter


log = structlog.get_logger(__name__)

LETTERS_MAX = 1_000
"""Dead letters kept while the store is away; older ones are counted and logged only."""


SEQ_MAX = 2**63 - 1
"""Larger than any sequence number: PostgreSQL's bigint ends here."""


@attrs.frozen(kw_only=True)
class FlushPolicy:
    """How facts are gathered into transactions."""

    interval_ms: int = 20
    """Least time between the starts of two flushes: what one acknowledgement waits at most."""
    rows_max: int = 500
    """Rows in one transaction: encoding more would hold the interpreter."""
    positions_max: int = 2_000
    """Positions in one transaction: small ones, and the more at once, the more reports share."""
    journal_max: int = 100_000
    """Facts that may wait before new work is refused."""
    retry_min_ms: int = 50
    retry_max_ms: int = 2_000


class DurabilityListener(Protocol):
    """Hears what became of facts; synchronous, never raises."""

    def on_durable(self, organization_id: str, seq: int) -> None:
        """Hear that everything of this organization up to `seq` is committed."""
        ...

    def on_dropped(self, organization_id: str, durable_seq: int, error: Exception) -> None:
        """Hear that the facts after `durable_seq` were rejected and are gone."""
        ...


@attrs.frozen
class _Share:
    """One organization's part of a flush: so many facts from the front of its queue."""

    organization_id: str
    facts: tuple[Facts, ...]

    def batch(self) -> OrganizationBatch:
        return coalesce(self.organization_id, self.facts)


class Ledger:
    """Makes facts durable, in groups, in order, once."""

    def __init__(
        self,
        store: LedgerStore,
        *,
        clock: Clock,
        ids: Ids,
        jitter: Iterator[float],
        policy: FlushPolicy,
        spans: Spans = no_span,
    ) -> None:
        self._store = store
        self._spans = spans
        self._clock = clock
        self._ids = ids
        self._jitter = jitter
        self._policy = policy
        self._journal: dict[str, deque[Facts]] = {}
        self._last_seqs: dict[str, int] = {}
        self._settled_seqs: dict[str, int] = {}
        self._holes: dict[str, int] = {}
        self._letters: deque[DeadLetter] = deque(maxlen=LETTERS_MAX)
        self._kick = trio.Event()
        self._drained = trio.Event()
        self.listener: DurabilityListener | None = None
        self.unflushed = 0
        """Facts that are accepted and not durable."""
        self.unflushed_peak = 0
        self.flushes = 0
        self.flush_failures = 0
        self.rejected = 0
        """Facts that were given up because the store refused them."""
        self.ack_latency = Histogram()
        self.flush_duration = Histogram()
        self.flush_size = Histogram(SIZES)
        self._oldest_s: float | None = None
        """When the first fact since the last round was accepted; Trio's clock."""
        self._round_oldest_s: float | None = None
        """The same for the facts of the round under way."""
        self.failing_since_ms: int | None = None
        self.last_error: str | None = None

    # --- what organizations use -------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Tell whether new facts must be refused."""
        return self.unflushed >= self._policy.journal_max

    def accept(self, organization_id: str, facts: Facts) -> None:
        """Take responsibility for facts that are already part of the live state."""
        queue = self._journal.get(organization_id)
        if queue is None:
            queue = self._journal[organization_id] = deque()
        queue.append(facts)
        self._last_seqs[organization_id] = facts.seq
        self.unflushed += 1
        self.unflushed_peak = max(self.unflushed_peak, self.unflushed)
        if self._oldest_s is None:
            self._oldest_s = trio.current_time()
        self._kick.set()

    def pending(self, organization_id: str) -> Sequence[Facts]:
        """Return the organization's facts that are not durable yet, oldest first."""
        return tuple(self._journal.get(organization_id, ()))

    def waiting(self, organization_id: str) -> int:
        """Return how many of the organization's facts are not durable yet."""
        return len(self._journal.get(organization_id, ()))

    def durable_seq(self, organization_id: str) -> int:
        """Return a number up to which no fact is waiting; `SEQ_MAX` when none is at all."""
        queue = self._journal.get(organization_id)
        return SEQ_MAX if queue is None else queue[0].seq - 1

    def last_seq(self, organization_id: str) -> int:
        """Return the highest number given out, rejected facts included; 0 when forgotten."""
        return self._last_seqs.get(organization_id, 0)

    def settled_seq(self, organization_id: str) -> int:
        """Return the highest fact known to be committed; what is read back must not be older."""
        return self._settled_seqs.get(organization_id, 0)

    def forget(self, organization_id: str) -> None:
        """Forget the numbers of an organization that leaves memory with all durable.

        While the store has not seen a number past rejected facts, theirs must not be used again.
        """
        assert organization_id not in self._journal, organization_id
        self._settled_seqs.pop(organization_id, None)
        if organization_id not in self._holes:
            self._last_seqs.pop(organization_id, None)

    def bury(self, letter: DeadLetter) -> None:
        """Write a dead letter with the next flush."""
        self._letters.append(letter)
        self._kick.set()

    @property
    def fill(self) -> float:
        """Return which share of the journal is in use."""
        return self.unflushed / self._policy.journal_max

    @property
    def oldest_age_s(self) -> float:
        """Return for how many seconds the oldest fact has waited; 0 when none waits."""
        since = [at for at in (self._round_oldest_s, self._oldest_s) if at is not None]
        return trio.current_time() - min(since) if since and self.unflushed else 0.0

    def backlog(self) -> Iterator[tuple[str, int]]:
        """Yield each organization with waiting facts and how many."""
        for organization_id, queue in self._journal.items():
            yield organization_id, len(queue)

    # --- the actor --------------------------------------------------------------------------

    async def run(self) -> None:
        """Flush for ever: at once when nothing was flushed lately, else in groups.

        Errors: OwnershipLostError when another process owns the database now.
        """
        tries = 0
        started = -math.inf
        while True:
            await self._kick.wait()
            await trio.sleep_until(started + self._policy.interval_ms / SECOND_MS)
            started = trio.current_time()
            try:
                await self._flush_round()
            except (StoreUnavailableError, PortalClosedError) as error:
                tries += 1
                await self._wait_after(error, tries)
            else:
                tries = 0
                self.failing_since_ms = None

    async def drained(self) -> None:
        """Return when nothing waits any more; the caller sets the deadline."""
        while self._journal or self._letters:
            if self._drained.is_set():
                self._drained = trio.Event()
            await self._drained.wait()

    async def _wait_after(self, error: Exception, tries: int) -> None:
        self.flush_failures += 1
        self.last_error = str(error)
        if self.failing_since_ms is None:
            self.failing_since_ms = self._clock.now_ms()
            log.warning("store_unavailable", error=str(error), unflushed=self.unflushed)
        delay_ms = backoff_ms(
            tries, least_ms=self._policy.retry_min_ms, most_ms=self._policy.retry_max_ms
        )
        await trio.sleep(delay_ms * (0.5 + next(self._jitter)) / SECOND_MS)
        self._kick.set()

    async def _flush_round(self) -> None:
        """Write everything that waits now, a transaction of bounded size at a time."""
        self._kick = trio.Event()
        if self._round_oldest_s is None:  # else a failed round is taken up again
            self._round_oldest_s = self._oldest_s
        self._oldest_s = None
        try:
            for shares in self._groups():
                await self._flush(shares)
            self._round_oldest_s = None
            await self._bury_letters()
        finally:
            if self._journal or self._letters:
                self._kick.set()
            else:
                self._drained.set()

    async def _bury_letters(self) -> None:
        """Write the dead letters; one that the store rejects is logged, or it would stay for ever.

        More may arrive meanwhile and push old ones out: only what was written is taken off.
        """
        letters = list(self._letters)
        if not letters:
            return
        try:
            await self._store.bury(letters)
        except StoreRejectedError:
            for letter in letters:
                await self._bury_one(letter)
        self._take_off(letters)

    async def _bury_one(self, letter: DeadLetter) -> None:
        try:
            await self._store.bury([letter])
        except StoreRejectedError as error:
            log.warning(
                "dead_letter_rejected",
                address=letter.address,
                kind=letter.kind,
                letter_error=letter.error,
                error=str(error),
            )

    def _take_off(self, written: Sequence[DeadLetter]) -> None:
        ids = {letter.id for letter in written}
        while self._letters and self._letters[0].id in ids:
            self._letters.popleft()

    def _groups(self) -> Iterator[list[_Share]]:
        """Cut the journal as it is now into transactions, organizations in order of waiting."""
        group: list[_Share] = []
        size = 0
        for organization_id in list(self._journal):
            queue = self._journal.get(organization_id)
            if queue is None:  # dropped meanwhile
                continue
            share = self._share(organization_id, queue)
            group.append(share)
            size += sum(1 + len(facts.rows) for facts in share.facts)
            if size >= self._policy.rows_max:
                yield group
                group, size = [], 0
        if group:
            yield group

    def _share(self, organization_id: str, queue: deque[Facts]) -> _Share:
        """Take facts from the front until their distinct tasks and rows fill a transaction."""
        count = size = 0
        tasks: set[str] = set()
        policy = self._policy
        for facts in queue:
            count += 1
            size += len(facts.rows)
            for task in facts.tasks:
                tasks.add(task.info.task_id)
            if size >= policy.rows_max or len(tasks) >= policy.positions_max:
                break
        return _Share(organization_id, tuple(islice(queue, count)))

    async def _flush(self, shares: Sequence[_Share]) -> None:
        started_s = trio.current_time()
        try:
            with self._spans("flush", attributes={"meterd.organizations": len(shares)}):
                await self._store.flush([share.batch() for share in shares])
        except StoreRejectedError as error:
            await self._flush_around(shares, error)
        else:
            self._measure(shares, started_s)
            for share in shares:
                self._settle(share)

    def _measure(self, shares: Sequence[_Share], started_s: float) -> None:
        """Count a committed transaction."""
        now_s = trio.current_time()
        facts = sum(len(share.facts) for share in shares)
        oldest_s = started_s if self._round_oldest_s is None else self._round_oldest_s
        self.flushes += 1
        self.flush_duration.observe(now_s - started_s)
        self.flush_size.observe(facts)
        self.ack_latency.observe(now_s - oldest_s, facts)

    async def _flush_around(self, shares: Sequence[_Share], error: StoreRejectedError) -> None:
        """Halve a rejected group until the poison fact is alone; everything else commits."""
        if len(shares) > 1:
            middle = len(shares) // 2
            await self._flush(shares[:middle])
            await self._flush(shares[middle:])
            return
        [share] = shares
        if len(share.facts) > 1:
            middle = len(share.facts) // 2
            await self._flush([attrs.evolve(share, facts=share.facts[:middle])])
            queue = self._journal.get(share.organization_id)
            if queue is not None and queue[0].seq == share.facts[middle].seq:
                await self._flush([attrs.evolve(share, facts=share.facts[middle:])])
            return
        self._drop(share, error)

    def _settle(self, share: _Share) -> None:
        """Forget facts that are durable and tell who waits for them."""
        organization_id, last_seq = share.organization_id, share.facts[-1].seq
        queue = self._journal[organization_id]
        for facts in share.facts:
            assert queue.popleft() is facts, (organization_id, facts.seq)
        self.unflushed -= len(share.facts)
        self._settled_seqs[organization_id] = last_seq
        if last_seq > self._holes.get(organization_id, SEQ_MAX):
            del self._holes[organization_id]
        del self._journal[organization_id]
        if queue:  # to the end of the line: nobody starves behind a busy organization
            self._journal[organization_id] = queue
        if self.listener is not None:
            self.listener.on_durable(organization_id, last_seq)

    def _drop(self, share: _Share, error: StoreRejectedError) -> None:
        """Give up an organization's facts from the poison one on: totals build on each other."""
        queue = self._journal.pop(share.organization_id)
        self.unflushed -= len(queue)
        self.rejected += len(queue)
        poison, last_seq = queue[0], queue[-1].seq
        self.last_error = str(error)
        log.error(
            "facts_rejected",
            organization_id=share.organization_id,
            seq=poison.seq,
            dropped=len(queue),
            error=str(error),
        )
        self.bury(
            DeadLetter(
                id=self._ids.new("dead"),
                at_ms=self._clock.now_ms(),
                address=f"organization/{share.organization_id}",
                kind="facts",
                error=str(error),
                detail_json=f'{{"first_seq":{poison.seq},"last_seq":{last_seq}}}',
            )
        )
        if self.listener is not None:
            self.listener.on_dropped(share.organization_id, poison.seq - 1, error)
        # One number is skipped: it stands for what is answered before the next fact, which must
        # not look like one of the rejected facts.
        self._last_seqs[share.organization_id] = last_seq + 1
        self._holes[share.organization_id] = last_seq
