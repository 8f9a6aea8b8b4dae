"""The one thread that writes, and group commit: jobs that wait together share one transaction and one fsync.

    run → a few turns of the loop → queue → [ begin immediate · job · … · commit ] → bell → one turn of the loop for all

- A lone caller's job is handed over at once. What many ask is handed over together, when the thread has nothing to do
  and the loop has turned a few more times: a turn is short when there is little to do, and with much to do more of them
  come to share the commit, which costs as much as some ten jobs.
- A job is a function of the open transaction (transaction.py). It answers with a value or a BrokerError; either way
  what it wrote is committed with the batch, so a job that refuses does so before it writes, or means what it wrote.
- `Undo`, and anything else a job raises, which is a bug of that job alone, has the batch rolled back and run once more
  with a savepoint around each job. So the common case pays for no savepoints.
- When the file is locked, full, broken or gone, everybody in the batch and in the queue is told RecordUnavailable at
  once, and nothing of it happened. `fault` says why until a later batch commits; while there is a fault a batch is
  tried every PROBE_S even if nobody asks, and the first one that succeeds records the outage.
- A disk that hangs cannot be interrupted. The event loop's watch then gives up on behalf of the waiting; should the
  commit succeed after all, what was admitted and never sent is settled as such (`regret`).

Futures and the loop's own timer are asyncio's, on purpose: a future for each call and one wake-up for each batch is the
cheapest hand-over between a thread and the loop, and this is the hottest path of the broker. Awaiting them works under
anyio's cancellation like any other await.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import structlog

from broker.data import dataclass
from broker.errors import BrokerError, Internal, RecordUnavailable
from broker.model.ledger import Heads
from broker.ports import Clock, Load
from broker.stores.sqlite.bell import Bell
from broker.stores.sqlite.database import unavailable
from broker.stores.sqlite.ledger import Ledger, all_heads
from broker.stores.sqlite.live_file import LiveFile, is_busy, is_storage
from broker.stores.sqlite.liveness import Life
from broker.stores.sqlite.rows import Rows, Spoiled
from broker.stores.sqlite.seal import Seal
from broker.stores.sqlite.transaction import Transaction, Undo

A = TypeVar("A")
R = TypeVar("R")

Remedy = tuple[Callable[[Transaction, Any], Any], Any]
"""A job to be done: its function and argument."""

MOST = 512  # jobs in one transaction
TURNS = 4  # of the loop, at most, until a batch is handed over
PROBE_S = 0.5
STALL_S = 1.0  # beyond the patience with locks: how long a disk may take for one batch
CLOSE_S = 5.0

log = structlog.get_logger("broker.store")


@dataclass(slots=True, eq=False)
class Job:
    """future: None for the writer's own jobs. regret: given the argument, and a result that came too late for anybody,
    the job that makes it good, or None."""

    function: Callable[[Transaction, Any], Any]
    argument: Any
    future: asyncio.Future[Any] | None = None
    regret: Callable[[Any, Any], Remedy | None] | None = None
    answer: Any = None  # in a list, once there is one and the future was cancelled


class Writer:
    """patience_s: how long a batch waits for another connection's lock. lease_s: see liveness.py."""

    def __init__(
        self,
        path: Path,
        *,
        chain: str,
        clock: Clock,
        seal: Seal,
        patience_s: float,
        lease_s: float,
        open_per_agent: int,
    ) -> None:
        self._path = path
        self._clock = clock
        self._patience_s = patience_s
        self._lease_ms = int(lease_s * 1000)
        self._life = Life(path, chain)
        self._file = LiveFile(path, patience_s)
        self._rows = Rows(self._file.db)
        self._tx = Transaction(self._rows, Ledger(self._rows, chain, self._register), seal, open_per_agent)
        self._queue: SimpleQueue[list[Job] | None] = SimpleQueue()
        self._answers: deque[tuple[list[Job], list[Any], bool]] = deque()  # of batches, and whether they are urgent
        self._bell: Bell | None = None
        self._asked: list[Job] = []  # not handed over yet
        self._handed = False  # there are some whose answers have not come
        self._batch: list[Job] = []  # what the thread is at
        self._busy_since = 0.0
        self._batches = self._jobs = 0  # of transactions that were committed
        self._commit_s = 0.0
        self._again: list[Job] = []  # own jobs that failed and must not be forgotten
        self._beat_at = monotonic() + lease_s / 3
        self._fault = self._stall = ""
        self._fault_since_ms = 0
        self._stopping = self._closed = self._ended = False
        self.left: Heads | None = None  # where the chains stood when this one ended
        self._waiting = 0  # futures not yet answered; of the event loop's thread
        self._watch: asyncio.TimerHandle | None = None
        self._on_commit: Callable[[], None] = lambda: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._work, name="broker-records", daemon=True)

    def start(self, on_urgent: Callable[[], None]) -> None:
        """Begin to work for this event loop. on_urgent: called in it after a commit that changed a hold."""
        self._loop = asyncio.get_running_loop()
        self._bell = Bell(self._loop, self._deliver)
        self._on_commit = on_urgent
        self._thread.start()

    @property
    def fault(self) -> str:
        return self._stall or self._fault

    @property
    def load(self) -> Load:
        since = self._busy_since
        lag_s = monotonic() - since if since else 0.0
        return Load(max(0, self._waiting - len(self._batch)), lag_s, self._batches, self._jobs, self._commit_s)

    # ------------------------------------------------------------------------------------------- the event loop's side

    async def run(
        self,
        function: Callable[[Transaction, A], R],
        argument: A,
        regret: Callable[[A, R], Remedy | None] | None = None,
    ) -> R:
        """The result of this job once it is durable. Raises the BrokerError it answered with, or RecordUnavailable.

        On cancel: once a commit is asked for it may happen, so it is waited for all the same, and what `regret` gives
        is done before this leaves; without `regret`, an error is raised all the same. A shield around the wait would do
        that too, and cost every call what only this one needs.
        """
        if self._closed or self._stall or self._loop is None:
            raise self._unanswered() if self._stall else RecordUnavailable("The broker is shutting down.")
        future: asyncio.Future[R] = self._loop.create_future()
        self._waiting += 1
        if self._watch is None:
            self._watch = self._loop.call_later(PROBE_S, self._look)
        job = Job(function, argument, future, regret)
        self._asked.append(job)
        if self._waiting == 1:
            self._hand_over()
        elif len(self._asked) == 1 and not self._handed:
            self._gather()
        try:
            return await future
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                try:
                    result = await self._seen_out(job)
                    remedy = None if regret is None else regret(argument, result)
                    if remedy is not None:
                        await self.run(*remedy)
                except BrokerError:
                    if regret is None:  # with one, whoever asked needs to know of a success only
                        raise
            raise

    def _gather(self) -> None:
        """Hand over what is asked until the loop has turned a few times more."""
        if self._asked and self._loop is not None:
            self._loop.call_soon(self._turn, min(TURNS, 1 + self._waiting // TURNS))

    def _turn(self, left: int) -> None:
        if left > 1 and self._loop is not None:
            self._loop.call_soon(self._turn, left - 1)
        else:
            self._hand_over()

    def _hand_over(self) -> None:
        asked, self._asked = self._asked, []
        if asked:
            self._handed = True
            self._queue.put(asked)

    async def _seen_out(self, job: Job) -> Any:
        """The answer to a job whose caller was cancelled, be it here already, lost in between, or still to come."""
        assert self._loop is not None and job.future is not None, "it was asked in its loop"  # noqa: S101
        if not job.future.cancelled():
            return job.future.result()
        if job.answer is None:
            job.future = self._loop.create_future()
            return await job.future
        (result,) = job.answer
        if isinstance(result, BrokerError):
            raise result
        return result

    def _deliver(self) -> None:
        """All answers there are."""
        while self._answers:
            self._stall = ""
            self._handed = False
            self._gather()
            self._tell(*self._answers.popleft())

    def _tell(self, batch: list[Job], results: list[Any], urgent: bool) -> None:
        for job, result in zip(batch, results, strict=True):
            future = job.future
            if future is None:
                continue
            self._waiting -= 1
            if not future.done():
                if isinstance(result, BrokerError):
                    future.set_exception(result)
                else:
                    future.set_result(result)
            elif future.cancelled() and job.answer is None:
                job.answer = [result]  # its caller sees to it (`_see_out`)
            else:
                self._make_good(job, result)
        if urgent:
            self._on_commit()

    def _make_good(self, job: Job, result: Any) -> None:
        """A result nobody waits for any more: the caller was told that records cannot be written."""
        if job.regret is None or isinstance(result, BrokerError):
            return
        remedy = job.regret(job.argument, result)
        if remedy is not None:
            self._queue.put([Job(*remedy)])

    def _look(self) -> None:
        """While anybody waits: see whether the thread still gets on. Runs on the loop's timer."""
        self._watch = None
        if self._loop is None or self._waiting == 0:
            return
        self._watch = self._loop.call_later(PROBE_S, self._look)
        since = self._busy_since
        if since and monotonic() - since > self._patience_s + STALL_S:
            self._give_up()

    def _give_up(self) -> None:
        if not self._stall:
            log.error("the disk does not answer; calls are refused until it does", database=str(self._path))
        self._stall = f"Records cannot be written to {self._path.name} now: the disk does not answer."
        asked, self._asked = self._asked, []
        for job in (*asked, *self._drain()):
            if job.future is None:
                self._queue.put([job])
            else:
                self._waiting -= 1
                self._refuse(job)
        for job in self._batch:
            self._refuse(job)  # answered later by _tell, which then finds it done

    def _refuse(self, job: Job) -> None:
        if job.future is not None and not job.future.done():
            job.future.set_exception(self._unanswered())
        elif job.future is not None and job.future.cancelled():
            job.answer = [self._unanswered()]

    def _unanswered(self) -> RecordUnavailable:
        return RecordUnavailable(self._stall, next_step="Check the disk; the broker goes on by itself.")

    def _drain(self) -> list[Job]:
        """Everything in the queue. A request to stop is remembered."""
        jobs: list[Job] = []
        while True:
            try:
                some = self._queue.get_nowait()
            except Empty:
                return jobs
            if some is None:
                self._stopping = True
            else:
                jobs.extend(some)

    async def aclose(self) -> None:
        """Commit what is queued, end the chain, end the thread. Bounded: a disk that hangs is left behind."""
        if self._closed:
            return
        self._closed = True
        with anyio.CancelScope(shield=True):
            self._hand_over()
            self._queue.put([Job(self._end, None)])
            self._queue.put(None)
            if self._thread.is_alive():
                await anyio.to_thread.run_sync(self._thread.join, CLOSE_S)
            self._deliver()
            if self._bell is not None and not self._thread.is_alive():  # one that hangs may ring it yet
                self._bell.close()
            await anyio.lowlevel.checkpoint()  # whoever waits hears the last answers
        if self._watch is not None:
            self._watch.cancel()

    # ---------------------------------------------------------------------------------------------- the thread's side

    def _work(self) -> None:
        try:
            while not self._stopping:
                batch = self._next_batch()
                if batch:
                    self._batch, self._busy_since = batch, monotonic()
                    self._carry_out(batch)
                    self._batch, self._busy_since = [], 0.0
        finally:
            self._life.end(remove=self._ended)
            self._file.db.close()

    def _next_batch(self) -> list[Job]:
        """What waits now, after waiting for something to do. Empty: there was nothing, or it is time to stop."""
        batch: list[Job] = []
        try:
            some = self._queue.get(timeout=max(0.0, self._beat_at - monotonic()))
            while some is not None:
                batch.extend(some)
                if len(batch) >= MOST or self._queue.empty():
                    break
                some = self._queue.get_nowait()  # only this thread and a stall take jobs
            else:
                self._stopping = True
        except Empty:
            pass
        if monotonic() >= self._beat_at:
            self._beat_at = monotonic() + self._lease_ms / 3000
            if self._tx.ledger.has_begun:
                batch.append(Job(self._beat, None))
            batch.extend(self._again)
            self._again = []
            if self._fault and not batch:
                batch.append(Job(_nothing, None))
        if self._fault and batch:
            batch.insert(0, Job(self._outage, (self._fault, self._fault_since_ms)))
        return batch

    def _carry_out(self, batch: list[Job]) -> None:
        try:
            try:
                results = self._commit(batch, self._plain, at_once=len(batch) == 1)
            except Spoiled:
                results = self._commit(batch, self._guarded, at_once=True)
        except (sqlite3.Error, OSError) as error:
            self._fail(batch, error)
            return
        if self._fault:
            log.warning("records can be written again", database=str(self._path))
            self._fault = ""
        self._batches += 1
        self._jobs += len(batch)
        self._commit_s += monotonic() - self._busy_since
        self._answer(batch, results, self._tx.urgent)

    def _commit(self, batch: list[Job], run: Callable[[Job], Any], *, at_once: bool) -> list[Any]:
        """One transaction. Raises Spoiled, sqlite3.Error or OSError when it was not committed; then nothing of it
        happened."""
        tx, file, rows = self._tx, self._file, self._rows
        tx.urgent = False
        rows.at_once = at_once
        if file.is_doubtful:
            file.reopen()
            self._rows.connection = file.db
        file.begin(min(self._patience_s, PROBE_S / 2) if self._fault else self._patience_s)
        mark = tx.ledger.mark()
        try:
            if file.is_doubtful:
                tx.ledger.reload()
                mark = tx.ledger.mark()
                file.is_doubtful = False
            results = [run(job) for job in batch]
            self._plain(_WRITE)
            file.check_in_place()
            file.db.execute("commit")
        except BaseException:
            rows.forget()
            tx.back_to(mark)
            file.roll_back()
            raise
        return results

    def _plain(self, job: Job) -> Any:
        try:
            return job.function(self._tx, job.argument)
        except BrokerError as answer:
            return answer
        except Exception as error:  # a bug in one job must not fail those that share its transaction
            if is_storage(error):
                raise
            raise Spoiled from error

    def _guarded(self, job: Job) -> Any:
        mark = self._tx.ledger.mark()
        db = self._tx.db
        db.execute("savepoint job")
        try:
            answer = job.function(self._tx, job.argument)
        except BrokerError as refusal:
            answer = refusal
        except Undo as refusal:
            db.execute("rollback to job")
            self._tx.back_to(mark)
            answer = refusal.answer
        except Exception as error:  # as above; here the job alone is undone
            if is_storage(error):
                raise
            db.execute("rollback to job")
            self._tx.back_to(mark)
            log.exception("a record could not be written: our bug", job=getattr(job.function, "__qualname__", "?"))
            answer = Internal("The broker failed to record this.", next_step="Tell the operator.")
            answer.__cause__ = error
        db.execute("release job")
        return answer

    def _fail(self, batch: list[Job], error: sqlite3.Error | OSError) -> None:
        """Tell everybody who waits; they have waited long enough."""
        told = unavailable(self._path, error)
        if not is_busy(error):
            self._file.is_doubtful = True
        if not self._fault:
            self._fault_since_ms = self._clock.now_ms()
            log.error("records cannot be written; calls are refused until they can", reason=told.sentence)
        self._fault = told.sentence
        self._beat_at = min(self._beat_at, monotonic() + PROBE_S)
        batch = [*batch, *self._drain()]
        self._again.extend(job for job in batch if job.future is None and job.function not in self._own)
        answers = [RecordUnavailable(told.message, next_step=told.next_step) for _ in batch]
        self._answer(batch, answers, urgent=False)

    @property
    def _own(self) -> tuple[Callable[[Transaction, Any], Any], ...]:
        return (self._beat, self._outage, self._end, _nothing)

    def _answer(self, batch: list[Job], results: list[Any], urgent: bool) -> None:
        assert self._bell is not None, "the thread is started with its loop"  # noqa: S101
        self._answers.append((batch, results, urgent))
        if not self._bell.ring():
            self._stopping = True  # nobody is left to be told

    # ---------------------------------------------------------------------------------------------- the writer's jobs

    def _register(self, at_ms: int) -> None:
        """In the transaction that begins the chain: be known as alive. The lock is first, so nobody finds us dead."""
        self._life.begin()
        ledger = self._tx.ledger
        self._tx.db.execute(
            "insert into writer (chain, host, pid, started_at_ms, lease_until_ms) values (?, ?, ?, ?, ?)",
            (ledger.chain, os.uname().nodename, os.getpid(), at_ms, self._clock.now_ms() + self._lease_ms),
        )

    def _beat(self, tx: Transaction, _: None) -> None:
        self._life.begin()
        tx.db.execute(
            "update writer set lease_until_ms = ? where chain = ?",
            (self._clock.now_ms() + self._lease_ms, tx.ledger.chain),
        )

    def _outage(self, tx: Transaction, fault: tuple[str, int]) -> None:
        tx.ledger.append("outage", "", self._clock.now_ms(), {"reason": fault[0], "since_ms": fault[1]})

    def _end(self, tx: Transaction, _: None) -> None:
        if not tx.ledger.has_begun:
            return
        now_ms = self._clock.now_ms()
        tx.ledger.append("chain_end", "", now_ms, {})
        tx.db.execute("update writer set ended_at_ms = ? where chain = ?", (now_ms, tx.ledger.chain))
        self.left = all_heads(tx.db)
        self._ended = True


def _nothing(_tx: Transaction, _argument: None) -> None:
    """A batch of its own, to see whether records can be written again."""


_WRITE = Job(lambda tx, _: tx.rows.write(), None)  # the last of each batch: what the others put off
