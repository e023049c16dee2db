"""The store's twin in memory: `LedgerStore`, `KeyStore` and `Directory`, deterministic.

Rule 1: it does what PostgreSQL does, or the contract tests fail: the same guards by seq, the same
refusals, nothing written when one fact of a flush is refused.
Rule 2: `Database` outlives its stores like a database outlives its clients: a crashed meterd is a
new `MemoryStore` with the next epoch on the same `Database`.
Rule 3: what a caller gets is frozen and holds what the columns hold: positions lose what is not
stored, exactly as they do in PostgreSQL.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import attrs
import trio

from meterd.adapters.memory.webhook_tables import WebhookTables
from meterd.core.event import EventKey, KnownEvent
from meterd.core.ids import fact_id
from meterd.core.journal import OrganizationBatch, StoredOrganization
from meterd.core.organization import CLOSED_PERIODS_KEPT_MS, AuditEntry, Finding, Profile
from meterd.core.period import Period
from meterd.core.plan import Terms, contract_fields
from meterd.core.task import LOST_KEPT_MAX, LOST_REPORTS_MS, Task, TaskInfo, TaskState
from meterd.core.units import day_start_ms
from meterd.core.usage import UsageRow
from meterd.errors import CustomerTakenError, OwnershipLostError, StoreRejectedError
from meterd.ports.answers import RememberedAnswer
from meterd.ports.clock import Clock
from meterd.ports.directory import NewOrganization, OrganizationSummary
from meterd.ports.keys import StoredKey
from meterd.ports.trail import DeadLetter
from meterd.ports.usage import DaySum, RowFilter


BIGINT_MAX = 2**63 - 1
INTEGER_MAX = 2**31 - 1
ROW_COST_END = Decimal(10_000)
"""`numeric(10,6)` holds less than this."""


@attrs.define(kw_only=True)
class OrganizationRecord:
    """One organization's tables."""

    profile: Profile
    seq: int = 0
    terms: dict[int, Terms] = attrs.Factory(dict)
    periods: dict[int, tuple[int, Period]] = attrs.Factory(dict)
    """By start: the batch's seq and the counters."""
    tasks: dict[str, Task] = attrs.Factory(dict)
    rows: dict[str, UsageRow] = attrs.Factory(dict)
    events: dict[EventKey, KnownEvent] = attrs.Factory(dict)

    def put_period(self, seq: int, period: Period) -> None:
        """Keep a period's counters unless newer ones are there; its label is assigned once."""
        known_seq, known = self.periods.get(period.start_ms, (-1, period))
        if known_seq < seq:
            self.periods[period.start_ms] = (seq, attrs.evolve(period, label=known.label))

    def put_task(self, task: Task, *, is_new: bool) -> None:
        """Keep a task's position unless a newer one is there; what it was started with stays."""
        known = self.tasks.get(task.task_id)
        if known is None and is_new:
            self.tasks[task.task_id] = as_stored(task, task.info)
        elif known is not None and known.seq < task.seq:
            self.tasks[task.task_id] = as_stored(task, known.info)

    def put_events(self, batch: OrganizationBatch) -> None:
        """Keep events and what took them back, each once."""
        for event in batch.events:
            self.events.setdefault(event.key, KnownEvent(event))
        for void in batch.voids:
            known = self.events[void.event.key]
            if known.void is None:
                self.events[void.event.key] = KnownEvent(known.event, void)


@attrs.define
class Database:
    """What is stored, readable by tests and by the audit of a simulation."""

    epoch: int = 0
    organizations: dict[str, OrganizationRecord] = attrs.Factory(dict)
    audits: dict[str, tuple[str, AuditEntry]] = attrs.Factory(dict)
    findings: dict[str, tuple[str, Finding]] = attrs.Factory(dict)
    letters: dict[str, DeadLetter] = attrs.Factory(dict)
    webhooks: WebhookTables = attrs.Factory(WebhookTables)
    keys: dict[str, tuple[StoredKey, bytes]] = attrs.Factory(dict)
    stored_pepper: bytes | None = None
    answers: dict[tuple[str, bytes], RememberedAnswer] = attrs.Factory(dict)

    def take(self) -> int:
        """Become the owner: return the next epoch; stores with an older one are fenced off."""
        self.epoch += 1
        return self.epoch


@attrs.define(eq=False)
class MemoryStore:
    """The ports on a `Database`, for one owner epoch. Every method is a checkpoint."""

    database: Database
    epoch: int = attrs.field(kw_only=True)
    clock: Clock = attrs.field(kw_only=True)

    # --- LedgerStore ------------------------------------------------------------------------

    async def flush(self, batches: Sequence[OrganizationBatch]) -> None:
        """Write all batches or none. Errors: OwnershipLostError, StoreRejectedError."""
        assert len({batch.organization_id for batch in batches}) == len(batches), "one batch each"
        await trio.lowlevel.checkpoint()
        if batches and self.database.epoch != self.epoch:
            raise OwnershipLostError(
                f"epoch {self.epoch} no longer owns the database: nothing was written"
            )
        for batch in batches:
            self._check(batch)
        for batch in batches:
            self._write(batch)

    async def load(self, organization_ids: Sequence[str]) -> Mapping[str, StoredOrganization]:
        """Return the organizations that exist."""
        await trio.lowlevel.checkpoint()
        known = self.database.organizations
        return {key: self._stored(key, known[key]) for key in organization_ids if key in known}

    async def recall_task(self, organization_id: str, task_id: str) -> Task | None:
        """Return a task as stored."""
        await trio.lowlevel.checkpoint()
        record = self.database.organizations.get(organization_id)
        return None if record is None else record.tasks.get(task_id)

    async def recall_period(self, organization_id: str, label: str) -> tuple[Period, Terms] | None:
        """Return a closed period as stored, with the terms at its end."""
        await trio.lowlevel.checkpoint()
        record = self.database.organizations.get(organization_id)
        for _, period in record.periods.values() if record is not None else ():
            if record is not None and period.label == label and period.closed:
                return period, record.terms[period.terms_seq]
        return None

    async def recall_events(
        self, organization_id: str, keys: Sequence[EventKey]
    ) -> Sequence[KnownEvent]:
        """Return those of these events that are stored."""
        await trio.lowlevel.checkpoint()
        record = self.database.organizations.get(organization_id)
        known = {} if record is None else record.events
        return [known[key] for key in keys if key in known]

    async def recall_events_named(
        self, organization_id: str, event_id: str
    ) -> Sequence[KnownEvent]:
        """Return two at most of the events with this id."""
        await trio.lowlevel.checkpoint()
        record = self.database.organizations.get(organization_id)
        known = {} if record is None else record.events
        return [known[key] for key in sorted(known) if key[1] == event_id][:2]

    async def organizations_at_work(self) -> Sequence[str]:
        """Return the organizations with running tasks, by id."""
        await trio.lowlevel.checkpoint()
        return sorted(
            key
            for key, record in self.database.organizations.items()
            if any(task.state is TaskState.RUNNING for task in record.tasks.values())
        )

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        """Keep dead letters, each id once."""
        await trio.lowlevel.checkpoint()
        for letter in letters:
            self.database.letters.setdefault(letter.id, letter)

    # --- KeyStore ---------------------------------------------------------------------------

    async def find_key(self, digest: bytes) -> StoredKey | None:
        """Return the key with this digest, revoked or not."""
        await trio.lowlevel.checkpoint()
        return next((key for key, known in self.database.keys.values() if known == digest), None)

    async def add_key(self, key: StoredKey, digest: bytes) -> bool:
        """Store a key; False when its organization does not exist."""
        await trio.lowlevel.checkpoint()
        if (
            key.organization_id is not None
            and key.organization_id not in self.database.organizations
        ):
            return False
        if key.id not in self.database.keys:
            self.database.keys[key.id] = (key, digest)
            self._audit_key("key.create", key, key.created_at_ms, key.created_by)
        return True

    def _audit_key(self, action: str, key: StoredKey, at_ms: int, actor: str) -> None:
        entry = AuditEntry(
            id=fact_id("aud", at_ms, action, key.id),
            at_ms=at_ms,
            actor=actor,
            action=action,
            reason="made" if action == "key.create" else "revoked",
            before_json="{}",
            after_json=json.dumps({"key_id": key.id, "last4": key.last4}),
        )
        self.database.audits[entry.id] = (key.organization_id or "", entry)

    async def keys_of(
        self, organization_id: str | None, *, after: tuple[int, str] | None, limit: int
    ) -> Sequence[StoredKey]:
        """Return an organization's keys, newest first."""
        await trio.lowlevel.checkpoint()
        keys = [
            (key.created_at_ms, key.id, key)
            for key, _ in self.database.keys.values()
            if key.organization_id == organization_id
        ]
        keys.sort(key=lambda each: each[:2], reverse=True)
        found = [key for *position, key in keys if after is None or tuple(position) < after]
        return found[:limit]

    async def valid_keys(self, organization_id: str | None) -> int:
        """Return how many keys it has that are not revoked."""
        await trio.lowlevel.checkpoint()
        return sum(
            key.organization_id == organization_id and key.revoked_at_ms is None
            for key, _ in self.database.keys.values()
        )

    async def revoke_key(
        self, organization_id: str | None, key_id: str, *, at_ms: int, revoked_by: str = "operator"
    ) -> StoredKey | None:
        """Revoke a key of this organization; the first instant counts."""
        await trio.lowlevel.checkpoint()
        key, digest = self.database.keys.get(key_id, (None, b""))
        if key is None or key.organization_id != organization_id:
            return None
        if key.revoked_at_ms is None:
            self._audit_key("key.revoke", key, at_ms, revoked_by)
            key = attrs.evolve(key, revoked_at_ms=at_ms)
            self.database.keys[key_id] = (key, digest)
        return key

    async def revocations(self) -> int:
        """Return how many keys were ever revoked."""
        await trio.lowlevel.checkpoint()
        return sum(key.revoked_at_ms is not None for key, _ in self.database.keys.values())

    async def revoked_among(self, key_ids: Sequence[str]) -> Sequence[str]:
        """Return which of these keys are revoked."""
        await trio.lowlevel.checkpoint()
        known = ((key_id, self.database.keys.get(key_id)) for key_id in key_ids)
        return [key_id for key_id, found in known if found and found[0].revoked_at_ms is not None]

    async def pepper(self, candidate: bytes) -> bytes:
        """Return the pepper, storing the candidate if there is none yet."""
        await trio.lowlevel.checkpoint()
        if self.database.stored_pepper is None:
            self.database.stored_pepper = candidate
        return self.database.stored_pepper

    # --- Directory --------------------------------------------------------------------------

    async def create_organization(self, new: NewOrganization) -> bool:
        """Create it with its audit entry; False when the id is taken."""
        await trio.lowlevel.checkpoint()
        key, profile = new.organization_id, new.profile
        if key in self.database.organizations:
            return False
        self._check_customer(key, profile.stripe_customer_id)
        self.database.organizations[key] = OrganizationRecord(
            profile=profile,
            terms={new.terms.seq: new.terms},
            periods={new.period.start_ms: (0, new.period)},
        )
        after = {
            "name": profile.name,
            "stripe_customer_id": profile.stripe_customer_id,
            "plan": new.terms.plan.value,
            "contract": contract_fields(new.terms.contract),
        }
        audit = AuditEntry(
            id=fact_id("aud", profile.created_at_ms, key, 0),
            at_ms=profile.created_at_ms,
            actor=new.created_by,
            action="organization.create",
            reason=new.reason,
            before_json="{}",
            after_json=json.dumps(after, sort_keys=True),
        )
        self.database.audits[audit.id] = (key, audit)
        return True

    async def claim_customer(self, organization_id: str, customer_id: str | None) -> None:
        """Link a Stripe customer; CustomerTakenError if another organization has it."""
        await trio.lowlevel.checkpoint()
        self._check_customer(organization_id, customer_id)
        record = self.database.organizations.get(organization_id)
        if record is not None:
            record.profile = attrs.evolve(record.profile, stripe_customer_id=customer_id)

    async def organizations(
        self, *, after: str | None, limit: int
    ) -> Sequence[OrganizationSummary]:
        """Return organizations ordered by id, after the given one."""
        await trio.lowlevel.checkpoint()
        keys = sorted(key for key in self.database.organizations if key > (after or ""))
        return [self._summary(key, self.database.organizations[key]) for key in keys[:limit]]

    async def tasks(
        self,
        organization_id: str,
        *,
        state: TaskState | None,
        after: tuple[int, str] | None,
        limit: int,
    ) -> Sequence[Task]:
        """Return tasks, newest start first."""
        await trio.lowlevel.checkpoint()
        record = self.database.organizations.get(organization_id)
        tasks = [] if record is None else list(record.tasks.values())
        found = sorted(
            (task for task in tasks if state is None or task.state is state), key=_page_key
        )
        if after is not None:
            found = [task for task in found if _page_key(task) > (-after[0], after[1])]
        return found[:limit]

    # --- UsageBooks -------------------------------------------------------------------------

    async def usage_rows(
        self, organization_id: str, chosen: RowFilter, *, after: tuple[int, str] | None, limit: int
    ) -> Sequence[UsageRow]:
        """Return rows, newest first."""
        await trio.lowlevel.checkpoint()
        found = [row for row in self._rows(organization_id) if is_chosen(row, chosen)]
        found.sort(key=lambda row: (row.at_ms, row.id), reverse=True)
        if after is not None:
            found = [row for row in found if (row.at_ms, row.id) < after]
        return found[:limit]

    async def adjustment(self, organization_id: str, entry_id: str) -> Sequence[UsageRow] | None:
        """Return the rows of the adjustment with this audit entry; None: there is none."""
        await trio.lowlevel.checkpoint()
        key, entry = self.database.audits.get(entry_id, (None, None))
        if entry is None or key != organization_id:
            return None
        rows = self.database.organizations[organization_id].rows
        return [rows[row_id] for row_id in json.loads(entry.after_json)["rows"]]

    async def usage_days(self, organization_id: str, *, since_ms: int) -> Sequence[DaySum]:
        """Return the sums of the UTC days from the one that contains an instant on."""
        await trio.lowlevel.checkpoint()
        since_ms = day_start_ms(since_ms)
        return day_sums(row for row in self._rows(organization_id) if row.at_ms >= since_ms)

    async def usage_of_period(self, organization_id: str, label: str) -> Sequence[DaySum]:
        """Return the sums of the days of one billing period."""
        await trio.lowlevel.checkpoint()
        rows = self._rows(organization_id)
        return day_sums(row for row in rows if row.billing_period == label)

    async def periods(
        self, organization_id: str, *, before_ms: int | None, limit: int
    ) -> Sequence[tuple[Period, Terms]]:
        """Return periods with their terms, newest first, that start before an instant."""
        await trio.lowlevel.checkpoint()
        record = self.database.organizations.get(organization_id)
        if record is None:
            return []
        found = [
            (period, record.terms[period.terms_seq])
            for _, (_, period) in sorted(record.periods.items(), reverse=True)
            if before_ms is None or period.start_ms < before_ms
        ]
        return found[:limit]

    def _rows(self, organization_id: str) -> Iterable[UsageRow]:
        record = self.database.organizations.get(organization_id)
        return () if record is None else record.rows.values()

    # --- AnswerStore ------------------------------------------------------------------------

    async def begin_answer(
        self, scope: str, key_hash: bytes, fingerprint: bytes, *, at_ms: int, forget_before_ms: int
    ) -> RememberedAnswer:
        """Return what is known of the key, remembering it; what is older is forgotten."""
        await trio.lowlevel.checkpoint()
        known = self.database.answers.get((scope, key_hash))
        if known is None or known.begun_at_ms < forget_before_ms:
            known = RememberedAnswer(
                is_new=True, fingerprint=fingerprint, begun_at_ms=at_ms, status=None, sealed=None
            )
            self.database.answers[scope, key_hash] = attrs.evolve(known, is_new=False)
        return known

    async def keep_answer(self, scope: str, key_hash: bytes, *, status: int, sealed: bytes) -> None:
        """Keep the answer of a request that has begun."""
        await trio.lowlevel.checkpoint()
        begun = self.database.answers.get((scope, key_hash))
        if begun is not None:
            kept = attrs.evolve(begun, status=status, sealed=sealed)
            self.database.answers[scope, key_hash] = kept

    async def drop_answer(self, scope: str, key_hash: bytes) -> None:
        """Forget a request that has begun: it changed nothing."""
        await trio.lowlevel.checkpoint()
        self.database.answers.pop((scope, key_hash), None)

    # --- what PostgreSQL does by itself -----------------------------------------------------

    def _check(self, batch: OrganizationBatch) -> None:
        """Refuse what types, constraints and foreign keys refuse, before anything is written."""
        record = self.database.organizations.get(batch.organization_id)
        if record is None:
            raise _rejected("no such organization")
        for text in _texts(batch):
            if "\0" in text or "\\u0000" in text or _has_surrogate(text):
                raise _rejected("text that cannot be stored")
        if batch.profile is not None:
            try:
                self._check_customer(batch.organization_id, batch.profile.stripe_customer_id)
            except CustomerTakenError as error:
                raise _rejected("the Stripe customer is taken") from error
        terms = record.terms.keys() | {terms.seq for terms in batch.terms}
        labels = {period.label for _, period in record.periods.values()}
        labels |= {period.label for period in batch.periods}
        for period in batch.periods:
            _check_period(period, terms)
        for task in (*batch.started, *batch.moved):
            _check_task(task)
        for row in batch.rows:
            _check_row(row, terms, labels)

    def _write(self, batch: OrganizationBatch) -> None:
        key, database = batch.organization_id, self.database
        record = database.organizations[key]
        for terms in batch.terms:
            record.terms.setdefault(terms.seq, terms)
        if batch.profile is not None and record.seq < batch.seq:
            record.profile = batch.profile
        for period in batch.periods:
            record.put_period(batch.seq, period)
        for task in batch.started:
            record.put_task(task, is_new=True)
        for task in batch.moved:
            record.put_task(task, is_new=False)
        for row in batch.rows:
            record.rows.setdefault(row.id, row)
        record.put_events(batch)
        for audit in batch.audits:
            database.audits.setdefault(audit.id, (key, audit))
        for finding in batch.findings:
            database.findings.setdefault(finding.id, (key, finding))
        database.webhooks.keep(key, batch.notifications)
        record.seq = max(record.seq, batch.seq)

    def _check_customer(self, organization_id: str, customer_id: str | None) -> None:
        for key, record in self.database.organizations.items():
            taken = record.profile.stripe_customer_id
            if customer_id is not None and taken == customer_id and key != organization_id:
                raise CustomerTakenError("another organization has this Stripe customer")

    def _stored(self, key: str, record: OrganizationRecord) -> StoredOrganization:
        periods = [period for _, (_, period) in sorted(record.periods.items(), reverse=True)]
        if not periods or periods[0].closed:
            raise StoreRejectedError("load an organization", f"{key} has no open period")
        kept_from_ms = periods[0].start_ms - CLOSED_PERIODS_KEPT_MS
        closed = tuple(period for period in periods[1:] if period.end_ms >= kept_from_ms)
        latest = max(record.terms)
        named = {period.terms_seq for period in closed} - {latest}
        lost_after_ms = self.clock.now_ms() - LOST_REPORTS_MS
        losses_ms = [t.ended_at_ms for t in record.tasks.values() if t.state is TaskState.LOST]
        unneeded_ms = sorted(filter(None, losses_ms), reverse=True)[LOST_KEPT_MAX:]
        lost_after_ms = max([lost_after_ms, *unneeded_ms[:1]])
        live = [
            task
            for task in record.tasks.values()
            if task.state is not TaskState.FINISHED
            and (task.ended_at_ms is None or task.ended_at_ms > lost_after_ms)
        ]
        return StoredOrganization(
            organization_id=key,
            seq=record.seq,
            profile=record.profile,
            terms=record.terms[latest],
            earlier_terms=tuple(record.terms[seq] for seq in sorted(named, reverse=True)),
            period=periods[0],
            closed_periods=closed,
            tasks=tuple(sorted(live, key=lambda task: (task.reported_at_ms, task.task_id))),
        )

    def _summary(self, key: str, record: OrganizationRecord) -> OrganizationSummary:
        return OrganizationSummary(
            organization_id=key, profile=record.profile, terms=record.terms[max(record.terms)]
        )


def is_chosen(row: UsageRow, chosen: RowFilter) -> bool:
    """Tell whether a row is asked for."""
    asked = (chosen.billing_period, chosen.task_id, chosen.agent_id, chosen.resource)
    found = (row.billing_period, row.task_id, row.agent_id, row.resource)
    return all(want is None or want == have for want, have in zip(asked, found, strict=True))


def day_sums(rows: Iterable[UsageRow]) -> list[DaySum]:
    """Return rows summed by day, period, resource, band and price, in this order."""
    sums: dict[tuple[Any, ...], DaySum] = {}
    for row in rows:
        day_ms = day_start_ms(row.at_ms)
        key = (day_ms, row.billing_period, row.resource.value, row.kind.value, row.unit_cost_usd)
        known = sums.get(key)
        sums[key] = DaySum(
            day_start_ms=day_ms,
            billing_period=row.billing_period,
            resource=row.resource,
            kind=row.kind,
            unit_cost_usd=row.unit_cost_usd,
            quantity=row.quantity + (known.quantity if known else 0),
            quantity_ms=row.quantity_ms + (known.quantity_ms if known else 0),
            cost_usd=row.total_cost_usd + (known.cost_usd if known else 0),
        )
    return [sums[key] for key in sorted(sums)]


def as_stored(task: Task, info: TaskInfo) -> Task:
    """Return what the columns keep: unreported time and pace count from the last report."""
    return attrs.evolve(
        task,
        info=info,
        burning_from_ms=task.reported_at_ms,
        pace_from_ms=task.reported_at_ms,
        pace_elapsed_ms=task.elapsed_ms,
    )


def _page_key(task: Task) -> tuple[int, str]:
    return (-task.info.started_at_ms, task.task_id)


def _check_period(period: Period, terms: Iterable[int]) -> None:
    if period.terms_seq not in terms:
        raise _rejected("a period under unknown terms")
    if not 0 <= period.recorded_ms <= period.used_ms <= BIGINT_MAX:
        raise _rejected("a period's counters")
    if period.end_ms <= period.start_ms:
        raise _rejected("a period that ends before it starts")


def _check_task(task: Task) -> None:
    if not 0 <= task.recorded_ms <= task.metered_ms <= task.elapsed_ms <= BIGINT_MAX:
        raise _rejected("a task's counters")


def _check_row(row: UsageRow, terms: Iterable[int], labels: Iterable[str]) -> None:
    if row.terms_seq not in terms or row.billing_period not in labels:
        raise _rejected("a row of unknown terms or period")
    if row.total_cost_usd != row.unit_cost_usd * row.quantity:
        raise _rejected("a row's cost")
    if abs(row.total_cost_usd) >= ROW_COST_END or not 0 <= row.unit_cost_usd < 1:
        raise _rejected("a row's amount")
    if abs(row.quantity) > INTEGER_MAX or abs(row.quantity_ms) > BIGINT_MAX:
        raise _rejected("a row's quantity")


def _texts(value: object) -> Iterable[str]:
    """Yield every text inside a value of the core."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _texts(item)
    elif attrs.has(kind := type(value)):
        for field in attrs.fields(kind):
            yield from _texts(getattr(value, field.name))


def _has_surrogate(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text)


def _rejected(detail: str) -> StoreRejectedError:
    return StoreRejectedError("flush facts", detail)
